"""What stands in for NumPy's classes when pickles with arrays are read: checked, and nothing of NumPy's is called."""

import math
import re

import numpy as np

from moco_tf.weights.torch_objects import FUNCTIONS as PLAIN
from moco_tf.weights.torch_objects import MAX_DIMENSIONS, Buildable, Function, expect, fail, is_count

_CODE = re.compile(r"[fiu][1248]|b1")


class Dtype(Buildable):
    """numpy.dtype(code, align, copy), then its state: (version, byte order, ...)."""

    def __init__(self, code: str, *rest: object) -> None:
        expect(type(code) is str and _CODE.fullmatch(code) is not None and code != "f1", "an array of no plain numbers")
        self.dtype = np.dtype(code)

    def build(self, state: object) -> None:
        """Sets the byte order."""
        expect(type(state) is tuple and len(state) >= 2 and state[1] in ("<", ">", "|"), "a dtype of unclear order")
        expect(all(part is None for part in state[2:5]), "an array of fields")
        self.dtype = self.dtype.newbyteorder(state[1]) if state[1] != "|" else self.dtype


class Array(Buildable):
    """numpy's _reconstruct(ndarray, (0,), b"b"), then its state: (version, shape, dtype, column-major, bytes)."""

    def __init__(self, *arguments: object) -> None:
        self.values: np.ndarray | None = None

    def build(self, state: object) -> None:
        """Sets the values, of the native byte order."""
        expect(type(state) is tuple and len(state) == 5, "an array of unclear state")
        _, shape, kind, fortran, data = state
        expect(type(shape) is tuple and len(shape) <= MAX_DIMENSIONS and all(map(is_count, shape)), "an unclear shape")
        expect(type(kind) is Dtype and type(data) is bytes and type(fortran) is bool, "an array of no plain numbers")
        if len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise fail(f"an array of the shape {shape} with {len(data)} bytes")
        values = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")
        self.values = values.astype(kind.dtype.newbyteorder("="))


def _not_called(*arguments: object) -> None:
    raise fail("a call of numpy.ndarray")


FUNCTIONS = {
    **PLAIN,
    "numpy ndarray": Function(_not_called),
    "numpy dtype": Function(Dtype),
    # numpy.core until NumPy 1, numpy._core since NumPy 2.
    **{f"numpy.{core}.multiarray _reconstruct": Function(Array) for core in ("core", "_core")},
}
