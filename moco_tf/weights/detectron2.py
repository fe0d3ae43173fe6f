"""Detectron2's .pkl files of backbones, written and read without executing any pickle.

A file is the pickle of {"model": {name: float32 array in PyTorch's layout}, "__author__": str, "matching_heuristics":
True}. Names are those of facebookresearch/moco's conversion: the stem's layers and the head's stand under stem., layer1
to layer4 are res2 to res5, bn<n> is conv<n>.norm, downsample.0 is shortcut and downsample.1 shortcut.norm.
"""

import mmap
import os
import pathlib
import pickle
import re
import struct
from collections.abc import Mapping

import numpy as np

from moco_tf.errors import UserError
from moco_tf.weights import numpy_objects, torch_pickle
from moco_tf.weights.pickle_bytes import integer, integers, text
from moco_tf.weights.torch_objects import Storage, StorageType, show

AUTHOR = "moco_tf"
_DOWNSAMPLE = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}
_EXPECTED = 'expected {"model": {name: array}, "__author__": ..., "matching_heuristics": True}; give such a file'


def to_detectron2(name: str) -> str:
    """layer1.0.bn2.weight is res2.0.conv2.norm.weight, bn1.weight is stem.conv1.norm.weight."""
    stage = re.match(r"layer([1-4])\.", name)
    name = f"res{int(stage[1]) + 1}.{name[stage.end() :]}" if stage else f"stem.{name}"
    name = re.sub(r"\bbn([123])\.", r"conv\1.norm.", name)
    return re.sub(r"\bdownsample\.[01]", lambda match: _DOWNSAMPLE[match[0]], name)


def from_detectron2(name: str) -> str:
    """The inverse; other names stay as they are."""
    stage = re.match(r"res([2-5])\.", name)
    name = f"layer{int(stage[1]) - 1}.{name[stage.end() :]}" if stage else name.removeprefix("stem.")
    name = re.sub(r"\bconv([123])\.norm\.", r"bn\1.", name)
    name = re.sub(r"\bshortcut\.norm\.", "downsample.1.", name)
    return re.sub(r"\bshortcut\.", "downsample.0.", name)


def write(path: str | os.PathLike, state: Mapping[str, np.ndarray]) -> None:
    """Writes {torchvision name: array in PyTorch's layout} as float32 under Detectron2's names.

    Any NumPy's `pickle.load` reads it: arrays refer to numpy.core, which NumPy 2 still knows.

    Raises:
        UserError: the file cannot be written.
    """
    arrays = {to_detectron2(name): np.ascontiguousarray(value, "<f4") for name, value in state.items()}
    model = pickle.EMPTY_DICT + pickle.MARK + b"".join(text(k) + _array(v) for k, v in arrays.items()) + pickle.SETITEMS
    items = text("model") + model + text("__author__") + text(AUTHOR) + text("matching_heuristics") + pickle.NEWTRUE
    whole = pickle.PROTO + b"\x03" + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP
    try:
        pathlib.Path(path).write_bytes(whole)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); give a path that you may write to") from e


def _array(value: np.ndarray) -> bytes:
    """An array as NumPy pickles it: an empty one, and its state."""
    empty = _global("numpy.core.multiarray", "_reconstruct") + pickle.MARK + _global("numpy", "ndarray")
    empty += integers((0,)) + _bytes(b"b") + pickle.TUPLE + pickle.REDUCE
    kind = _global("numpy", "dtype") + pickle.MARK + text("f4") + pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE
    state = [integer(3), text("<"), *[pickle.NONE] * 3, *[integer(-1)] * 2, integer(0)]
    kind += pickle.REDUCE + pickle.MARK + b"".join(state) + pickle.TUPLE + pickle.BUILD
    state = [integer(1), integers(value.shape), kind, pickle.NEWFALSE, _bytes(value.tobytes())]
    return empty + pickle.MARK + b"".join(state) + pickle.TUPLE + pickle.BUILD


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _bytes(data: bytes) -> bytes:
    return pickle.BINBYTES + struct.pack("<I", len(data)) + data


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """A file's arrays under torchvision's names; what no ResNet has keeps its name.

    Raises:
        UserError: unreadable, damaged, or holding anything else. Nothing is executed.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            value = torch_pickle.load(data, _no_storage, numpy_objects.FUNCTIONS)
    except (OSError, ValueError) as e:  # ValueError: mmap of an empty file
        raise UserError(f"{show(str(path), 300)}: cannot be read ({e}); {_EXPECTED}") from e
    except UserError as e:
        raise UserError(f"{show(str(path), 300)}: {e}") from e.__cause__
    model = value.get("model") if isinstance(value, dict) and "__author__" in value else None
    if not isinstance(model, dict) or not all(_is_entry(name, array) for name, array in model.items()):
        raise UserError(f"{show(str(path), 300)}: a pickle, but neither PyTorch's nor Detectron2's; {_EXPECTED}")
    return {from_detectron2(name): array.values for name, array in model.items()}


def _is_entry(name: object, array: object) -> bool:
    return isinstance(name, str) and isinstance(array, numpy_objects.Array) and array.values is not None


def _no_storage(key: str, kind: StorageType, count: int) -> Storage:
    raise UserError("a tensor of PyTorch; expected NumPy arrays; give a file of Detectron2")
