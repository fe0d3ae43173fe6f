"""Measures a pre-training recipe: its step, its input, and both.

    python -m moco_tf.bench --flagfile=flags/pretrain/cifar10_moco.cfg
    python -m moco_tf.bench --flagfile=flags/pretrain/cifar10_moco.cfg --fake --compare=torch --json=figures.json
    horovodrun -np 8 python -m moco_tf.bench --flagfile=flags/pretrain/imagenet_moco_v2.cfg --fake

Takes every flag of moco_tf.pretrain. The step is measured on random images that are on the device already, with the
recipe's views and without (prepared float images). With --fake that is all, and no data set is needed. Images a second
are of all ranks. Nothing is saved but the figures. --compare=torch needs a clone, where PyTorch's step is in
tests/benchmarks; more of a step's parts: tests/benchmarks/details.py.
"""

import importlib
import json
import pathlib
import sys
from types import ModuleType

from moco_tf.config import define, options
from moco_tf.errors import UserError
from moco_tf.run import program

# Flags that say where things are on this machine: they cost no time, and a benchmark's file is for others to read.
_PLACES = ("--data_dir=", "--workdir=", "--json=", "--torch_python=")


def main(o: options.Bench) -> None:
    """Measures with the given options."""
    from moco_tf.run import measure, prepare

    ranks = prepare.connect(o.device, o.run.seed)
    check(o, ranks.size)
    bench = measure.Bench(o, ranks)
    # First, so that this process' peak of memory is of this step alone.
    torch = comparison().measure(bench) if o.bench.compare == "torch" else None
    recorded = [line for line in define.flagfile(o).splitlines() if not line.startswith(_PLACES)]
    figures = bench.figures() | {"torch": torch, "flags": recorded}
    if ranks.rank == 0:
        print(measure.table(figures), *(comparison().summary(torch) if torch else ()), sep="\n", flush=True)
        if o.bench.json:
            pathlib.Path(o.bench.json).write_text(json.dumps(figures, indent=1) + "\n")


def check(o: options.Bench, ranks: int) -> None:
    """Refuses options that contradict each other, before anything is measured."""
    path = o.bench.json
    if path and not pathlib.Path(path).absolute().parent.is_dir():
        raise UserError(f"--json={path} is in a folder that is not there; make it, or give another file")
    if o.encoder.init:
        raise UserError(f"--init={o.encoder.init} came, expected none: weights do not change the speed; leave it out")
    if o.bench.compare == "torch":
        comparison().check(o, ranks)


def comparison() -> ModuleType:
    """tests/benchmarks/compare.py. Raises UserError in an installed package, which does not have it."""
    folder = pathlib.Path(__file__).parents[1] / "tests" / "benchmarks"
    if not (folder / "compare.py").exists():
        raise UserError(f"--compare=torch came, expected a clone of the project, which has {folder}; start it in one")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module("compare")


if __name__ == "__main__":
    program.run(main, options.Bench)
