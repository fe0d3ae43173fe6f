"""Complete checkpoints: written whole or not at all, read back before older ones go, checked when read.

    checkpoints/step-00001200/variables.index, variables.data-..., checkpoint.json

Each is a tf.train.Checkpoint over nested dicts of variables under torchvision's names; checkpoint.json says what made
it (encoder, normalisation, step, flags) and holds the files' sizes and SHA-256.
"""

import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from moco_tf.errors import UserError

DESCRIPTION = "checkpoint.json"
# Running statistics of each rank, one row a rank; the encoders' own groups hold their means. See rank_statistics.py.
RANK_STATISTICS = "rank_statistics"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def save(
    folder: pathlib.Path, step: int, state: Mapping, description: Mapping, keep: int, permanent: bool = False
) -> pathlib.Path:
    """Writes a checkpoint, reads it back, then removes all but the newest `keep` and permanent ones; returns its path.

    Raises:
        UserError: it cannot be written; what was there before is untouched.
    """
    target, draft = folder / f"step-{step:08d}", folder / f".draft-{step:08d}"
    try:
        for left in folder.glob(".draft-*"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir(parents=True)
        tf.train.Checkpoint(**state).write(str(draft / "variables"))
        for path in draft.iterdir():
            _to_disk(path)
        files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in draft.iterdir()}
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
            f"cannot write a checkpoint to {target} ({_first_line(error)}); free or mend the disk{rest}"
        ) from None
    _prune(folder, target, keep)
    return target


def _to_disk(path: pathlib.Path) -> None:
    """Waits until a file (or the names in a folder) is on the disk, and forgets it: what is read next is read there."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if path.is_file() and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _compare(path: pathlib.Path, state: Mapping) -> None:
    """Raises OSError when what can be read is not what was to be written."""
    reader = tf.train.load_checkpoint(str(path / "variables"))
    reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")  # has a checksum of its own
    for key, variable in _leaves(state).items():
        if reader.get_tensor(key + _SUFFIX).tobytes() != variable.numpy().tobytes():
            raise OSError(errno.EIO, f"{_unescaped(key)} reads back differently")


def _prune(folder: pathlib.Path, newest: pathlib.Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the permanent ones."""
    found = existing(folder)
    until = found[: found.index(newest) + 1]
    for old in found:
        # Later ones are broken, or the run would have gone on from them: they must not take a place among the kept.
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
    """The newest checkpoint whose files are whole, and a line about each newer one that is not."""
    complaints = []
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
        int(description["step"]), [(file["size"], file["sha256"]) for file in description["files"].values()]
        return description
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {path}: {DESCRIPTION} is missing or broken ({_first_line(error)})") from None


def check(path: pathlib.Path) -> None:
    """Compares sizes and checksums. Raises UserError at the first file that differs."""
    for name, expected in describe(path)["files"].items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["size"] or _sha256(file) != expected["sha256"]:
            came = "is missing" if size is None else f"has {size} bytes or other contents"
            raise UserError(f"checkpoint {path} is broken: {name} {came}, expected {expected['size']} bytes")


def restore(path: pathlib.Path, state: Mapping) -> None:
    """Sets every variable of a state from a checkpoint of the same structure; RANK_STATISTICS are passed over.

    Raises:
        UserError: the checkpoint holds other variables.
    """
    saved = {key: shape for key, shape in _shapes(path).items() if key != RANK_STATISTICS}
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
    status.expect_partial()  # no word about RANK_STATISTICS


def read_group(path: pathlib.Path, group: str) -> dict[str, np.ndarray]:
    """One group of a checkpoint's variables as arrays, in Keras layout: {torchvision name: array}."""
    reader = tf.train.load_checkpoint(str(path / "variables"))
    keys = [key for key in _shapes(path) if key.startswith(f"{group}/")]
    return {_unescaped(key[len(group) + 1 :]): reader.get_tensor(key + _SUFFIX) for key in keys}


def read_rank_statistics(path: pathlib.Path) -> np.ndarray | None:
    """RANK_STATISTICS of a checkpoint, one row a rank; None in those of other programs."""
    if RANK_STATISTICS not in _shapes(path):
        return None
    return tf.train.load_checkpoint(str(path / "variables")).get_tensor(RANK_STATISTICS + _SUFFIX)


def _shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes by tf.train.Checkpoint's keys of the variables in a checkpoint."""
    try:
        shapes = tf.train.load_checkpoint(str(path / "variables")).get_variable_to_shape_map()
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({_first_line(error)}); give an undamaged one") from None
    return {key.removesuffix(_SUFFIX): tuple(shape) for key, shape in shapes.items() if key.endswith(_SUFFIX)}


def _leaves(state: Mapping, prefix: str = "") -> dict[str, tf.Variable]:
    """Variables of a state by tf.train.Checkpoint's keys."""
    leaves = {}
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


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: object) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # TensorFlow's words for a file: "{{function_node ...}} path; No space left on device [Op:SaveV2]"
    return lines[0].split("}} ")[-1].split(" [Op:")[0].split("; ")[-1][:200]
