"""Complete checkpoints: written as a whole, read back before older ones are removed, checked when read.

    checkpoints/step-00001200/variables.index, variables.data-..., checkpoint.json

Each is a tf.train.Checkpoint over nested dicts of variables under torchvision's names. checkpoint.json says what made
it (encoder, normalisation, step, flags) and the sizes of the files. TensorFlow writes a checksum (CRC32C) of every
variable and compares it whenever it reads one.
"""

import errno
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.errors import UserError
from moco_tf.training.files import one_line

DESCRIPTION = "checkpoint.json"
# Running statistics of each rank, one row a rank; the encoders' own groups hold their means. See rank_statistics.py.
RANK_STATISTICS = "rank_statistics"
# What a training may have had and have no more, or have now for the first time: then it starts anew.
OPTIONAL = ("probe", "probe_optimizer")
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # TensorFlow's own entry: which object has which variable
_UNREADABLE = (ValueError, LookupError, RuntimeError, tf.errors.OpError)  # what TensorFlow raises for damaged files


def save(
    folder: pathlib.Path, step: int, state: Mapping, description: Mapping, keep: int, permanent: bool = False
) -> pathlib.Path:
    """Writes a checkpoint, reads it back, then removes all but the newest `keep` and permanent ones; returns its path.

    Args:
        folder: of the checkpoints.
        step: of this one.
        state: nested dicts of variables.
        description: what checkpoint.json is to say besides.
        keep: number of newest ones that stay.
        permanent: whether this one stays for good.

    Raises:
        UserError: it cannot be written; what was there before is untouched.
    """
    target, draft = folder / f"step-{step:08d}", folder / f".draft-{step:08d}"
    try:
        for old in folder.glob(".draft-*"):  # of processes that were killed
            shutil.rmtree(old, ignore_errors=True)
        draft.mkdir(parents=True)
        tf.train.Checkpoint(**state).write(str(draft / "variables"))
        for path in draft.iterdir():
            _to_disk(path)
        files = {path.name: {"size": path.stat().st_size} for path in draft.iterdir()}
        _compare(draft, state)
        about = {**description, "step": step, "permanent": permanent, "files": files}
        (draft / DESCRIPTION).write_text(json.dumps(about, indent=1))
        for path in (draft / DESCRIPTION, draft):
            _to_disk(path)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
        _to_disk(folder)
    except (OSError, tf.errors.OpError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        found = existing(folder)
        rest = f"; the last one is {found[-1]}" if found else ""
        raise UserError(
            f"cannot write a checkpoint to {target} ({one_line(error)}); free or mend the disk{rest}"
        ) from None
    _prune(folder, target, keep)
    return target


def _to_disk(path: pathlib.Path) -> None:
    """Waits until a file (or a folder's names) is on the disk; drops it from the cache, so that the disk is read."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if path.is_file() and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _compare(path: pathlib.Path, state: Mapping) -> None:
    """Reads the checkpoint back. Raises OSError when a variable differs from the state."""
    reader = _reader(path)
    reader.get_tensor(_GRAPH)
    for key, variable in _leaves(state).items():
        if reader.get_tensor(key + _SUFFIX).tobytes() != variable.numpy().tobytes():
            raise OSError(errno.EIO, f"{_unescaped(key)} reads back differently")


def _prune(folder: pathlib.Path, newest: pathlib.Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the permanent ones."""
    found = existing(folder)
    until = found[: found.index(newest) + 1]
    for old in found:
        # Later ones are broken, or the run would have gone on from them: they must not count among the newest.
        if old not in until or (old not in until[-keep:] and not _is_permanent(old)):
            shutil.rmtree(old, ignore_errors=True)


def _is_permanent(path: pathlib.Path) -> bool:
    try:
        return bool(describe(path).get("permanent"))
    except UserError:
        return False


def existing(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder's finished checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if (path / DESCRIPTION).is_file()]
    return sorted(found, key=lambda path: int(re.sub(r"\D", "", path.name) or 0))


def newest_sound(folder: pathlib.Path) -> tuple[pathlib.Path | None, list[str]]:
    """The newest checkpoint that is not damaged, and a line about each newer one that is."""
    complaints: list[str] = []
    for path in reversed(existing(folder)):
        try:
            check(path)
            return path, complaints
        except UserError as error:
            complaints.append(str(error))
    return None, complaints


def describe(path: pathlib.Path) -> dict:
    """What checkpoint.json says. Raises UserError when it cannot be read."""
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        int(description["step"]), [file["size"] for file in description["files"].values()]
        return description
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {path}: {DESCRIPTION} is missing or broken ({one_line(error)})") from None


def check(path: pathlib.Path) -> None:
    """Compares the files' sizes and reads every variable. Raises UserError at the first one that is damaged."""
    for name, expected in describe(path)["files"].items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["size"]:
            came = "is missing" if size is None else f"has {size} bytes"
            raise UserError(f"checkpoint {path} is broken: {name} {came}, expected {expected['size']} bytes")
    place = "variables.index"
    try:
        reader = _reader(path)
        for place in reader.get_variable_to_shape_map():
            reader.get_tensor(place)  # compares the checksum
    except _UNREADABLE as error:
        place = _unescaped(place.removesuffix(_SUFFIX))
        raise UserError(f"checkpoint {path} is broken: {place} cannot be read ({one_line(error)})") from None


def restore(path: pathlib.Path, state: Mapping) -> None:
    """Sets every variable of a state from a checkpoint of the same structure, without RANK_STATISTICS.

    OPTIONAL groups that are in one of them alone stay as they are.

    Raises:
        UserError: the checkpoint holds other variables.
    """
    saved = {key: shape for key, shape in _shapes(path).items() if key != RANK_STATISTICS}
    groups = {_unescaped(key.partition("/")[0]) for key in saved}
    state = {name: group for name, group in state.items() if name not in OPTIONAL or name in groups}
    saved = {
        key: shape for key, shape in saved.items() if not key.startswith(OPTIONAL) or key.partition("/")[0] in state
    }
    difference = _difference(saved, {key: tuple(variable.shape) for key, variable in _leaves(state).items()})
    if difference:
        made = " ".join(f"--{name}={value}" for name, value in describe(path).get("encoder", {}).items())
        raise UserError(
            f"checkpoint {path} does not fit this model ({difference}); expected the flags that made it, "
            f"{f'{made} and ' if made else ''}the others in the run folder's flags.cfg; give these, or another "
            "--workdir"
        )
    status = tf.train.Checkpoint(**state).read(str(path / "variables"))
    status.assert_existing_objects_matched()
    status.expect_partial()  # no warning about RANK_STATISTICS


def read_group(path: pathlib.Path, group: str) -> dict[str, np.ndarray]:
    """A group of a checkpoint's variables as arrays in Keras layout: {torchvision name: array}, or {"": a lone one}."""
    reader = _reader(path)
    keys = [key for key in _shapes(path) if f"{key}/".startswith(f"{group}/")]
    return {_unescaped(key[len(group) + 1 :]): reader.get_tensor(key + _SUFFIX) for key in keys}


def read_rank_statistics(path: pathlib.Path) -> np.ndarray | None:
    """RANK_STATISTICS of a checkpoint, one row a rank; None in those of other programs."""
    if RANK_STATISTICS not in _shapes(path):
        return None
    return _reader(path).get_tensor(RANK_STATISTICS + _SUFFIX)


def _shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes by tf.train.Checkpoint's keys of the variables in a checkpoint."""
    try:
        shapes = _reader(path).get_variable_to_shape_map()
    except _UNREADABLE as error:
        raise UserError(f"checkpoint {path} cannot be read ({one_line(error)}); give an undamaged one") from None
    return {key.removesuffix(_SUFFIX): tuple(shape) for key, shape in shapes.items() if key.endswith(_SUFFIX)}


def _reader(path: pathlib.Path) -> Any:  # TensorFlow gives its class no public name
    return tf.train.load_checkpoint(str(path / "variables"))


def _leaves(state: Mapping, prefix: str = "") -> dict[str, tf.Variable]:
    """Variables of a state by tf.train.Checkpoint's keys."""
    leaves: dict[str, tf.Variable] = {}
    for name, value in state.items():
        key = prefix + _escaped(name)
        leaves |= _leaves(value, f"{key}/") if isinstance(value, Mapping) else {key: value}
    return leaves


def _difference(saved: dict[str, tuple], expected: dict[str, tuple]) -> str:
    """The first variable that differs, in words; empty when all are the same."""
    for key in [*expected, *saved]:
        if saved.get(key) != expected.get(key):
            there, here = (f"has shape {d[key]}" if key in d else "is missing" for d in (saved, expected))
            return f"{_unescaped(key)} {there} there and {here} here"
    return ""


def _escaped(name: str) -> str:
    """tf.train.Checkpoint writes a name's dots as two, and its slashes as .S"""
    return name.replace(".", "..").replace("/", ".S")


def _unescaped(key: str) -> str:
    return key.replace("..", "\0").replace(".S", "/").replace("\0", ".")
