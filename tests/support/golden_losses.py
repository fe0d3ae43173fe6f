"""The recorded losses and norms of every method's debug recipe, tests/golden/<case>_<ranks>rank.txt.

Refactorings must leave them as they are. A change that is meant to change numbers writes them anew, and its commit says
why they changed:

    python -m pytest -m "" tests/run/test_end_to_end.py --update-golden

A file has a comment with the flags, then lines of

    STEP LOSS
    norm GROUP VALUE    Euclidean norm of all variables of a group of the last checkpoint
    moved GROUP VALUE   how far the group is from where the checkpoint before had it

Norms of unit rows and of weights that barely move say little; how far they moved says whether by the right share.
"""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from support.programs import losses, steps_kept

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def groups(checkpoint):
    """{group: {variable: array}} of a checkpoint, as TensorFlow alone reads it.

    Each slot of the optimizer is a group, and running statistics are: weights move too little to be seen beside them.
    """
    reader, found = tf.train.load_checkpoint(str(checkpoint / "variables")), {}
    for key in sorted(key for key in reader.get_variable_to_shape_map() if key.endswith(SUFFIX)):
        group, _, name = key.removesuffix(SUFFIX).partition("/")
        group += f"/{name.split('.S')[0]}" if group == "optimizer" else "/running" if "..running_" in name else ""
        found.setdefault(group, {})[name] = np.asarray(reader.get_tensor(key), np.float64)
    return found


def norm(arrays):
    return float(np.sqrt(sum(np.sum(array * array) for array in arrays)))


def measured(run):
    """{what a line begins with: its number} of a run folder with two checkpoints."""
    before, after = (groups(run / "checkpoints" / f"step-{step:08}") for step in steps_kept(run)[-2:])
    numbers = {str(step): loss for step, loss in losses(run).items()}
    numbers |= {f"norm {group}": norm(arrays.values()) for group, arrays in after.items()}
    return numbers | {
        f"moved {group}": norm(arrays[name] - before[group][name] for name in arrays) for group, arrays in after.items()
    }


# Relative, a few times what moved at most between oneDNN and Eigen, one thread and two, AVX-512 and AVX2; with defects:
TOLERANCES = {
    "loss": 3e-4,  # 9e-5, simclr's last; with --temperature=0.21 in place of 0.2 the first moves 1e-3 to 9e-2
    "norm": 1e-5,  # 1e-7; without weight decay the query encoder's moves 1e-4
    "norm running": 1e-4,  # 2e-5
    "norm rank_statistics": 1e-4,  # 1e-5
    "norm momentum": 6e-2,  # 1.3e-2: an activation that crosses zero takes its share of the gradient along
    "moved": 3e-4,  # 7e-5
    "moved weights": 4e-2,  # 1e-2; with --key_momentum=0.991 in place of 0.99 the key encoder's moves 9e-2
    "moved momentum": 6e-2,  # 1.5e-2
}


def tolerance(line):
    """Relative, of what a line begins with: TOLERANCES for the part of a group, or for all of its kind."""
    kind, _, group = line.rpartition(" ")
    kind = kind or "loss"
    part = "weights" if group.endswith("_encoder") else group.split("/")[-1]
    return TOLERANCES.get(f"{kind} {part}", TOLERANCES[kind])


def write(file, numbers, flags):
    lines = [f"# {flags}", *(f"{line} {number:.8g}" for line, number in numbers.items())]
    file.write_text("\n".join(lines) + "\n")


def read(file):
    lines = [line.rsplit(" ", 1) for line in file.read_text().splitlines() if not line.startswith("#")]
    return {line: float(number) for line, number in lines}


def differences(numbers, expected):
    """A line of text about each number that is not as expected."""
    found = [f"{line}: only one of the two has it" for line in sorted(numbers.keys() ^ expected.keys())]
    for line in [line for line in expected if line in numbers]:
        if numbers[line] != pytest.approx(expected[line], rel=tolerance(line), abs=0):
            off = abs(numbers[line] / expected[line] - 1) if expected[line] else np.inf
            found.append(f"{line}: {numbers[line]:.8g}, recorded {expected[line]:.8g} (off by {off:.1e})")
    return found


def check(run, case, ranks, flags, update):
    """Compares a run folder's numbers with the recorded ones, or records them."""
    file, numbers = FOLDER / f"{case}_{ranks}rank.txt", measured(run)
    if update:
        write(file, numbers, f"{flags}, {ranks} rank{'s' * (ranks > 1)}")
    found = differences(numbers, read(file))
    assert not found, (
        f"{file.name} has other numbers. A change that is meant to change them runs `python -m pytest -m '' "
        "tests/run/test_end_to_end.py --update-golden`, and says why:\n" + "\n".join(found)
    )
