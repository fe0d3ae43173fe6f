"""What stands in for PyTorch's classes and functions when its files are read: NumPy arrays and plain data, checked."""

import math
from collections.abc import Callable

import numpy as np

from moco_tf.errors import UserError

MAX_DIMENSIONS = 32

REMEDY = 'open the file in PyTorch where you trust it and keep only tensors: torch.save({"state_dict": ...}, path)'


class StorageType:
    """An element type: how it lies in the file and what it becomes (bfloat16, kept as uint16, becomes float32)."""

    def __init__(self, raw: str, bfloat16: bool = False) -> None:
        self.raw = np.dtype(raw)
        self.bfloat16 = bfloat16
        self.dtype = np.dtype(np.float32) if bfloat16 else self.raw

    def decode(self, data: bytes, order: str = "<") -> np.ndarray:
        """A storage's bytes (little-endian, or big-endian with order ">") as a 1-D array in native byte order."""
        if self.raw == np.bool_:
            return np.frombuffer(data, np.uint8) != 0
        values = np.frombuffer(data, self.raw.newbyteorder(order))
        return (values.astype(np.uint32) << 16).view(np.float32) if self.bfloat16 else values.astype(self.raw)


class Storage:
    """A 1-D array that tensors are views of, kept apart from data: a bare storage in a file is refused."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


class Function:
    """What a REDUCE may call: one of this file's own functions."""

    def __init__(self, call: Callable) -> None:
        self.call = call


class Buildable:
    """An object that a BUILD opcode completes: one of this package's own stand-ins."""

    def build(self, state: object) -> None:
        """Takes the state. Raises UserError when it is not the expected one."""
        raise NotImplementedError


def show(text: object, limit: int = 60) -> str:
    """A string from a file (or another value's type) on one line of printable characters, cut at the limit."""
    line = ascii(text if isinstance(text, str) else type(text).__name__)[1:-1]
    return line if len(line) <= limit else line[: limit - 3] + "..."


def fail(got: str) -> UserError:
    return UserError(f"the file's pickle has {got}; expected tensors, numbers, strings and containers only; {REMEDY}")


def expect(condition: bool, got: str) -> None:
    if not condition:
        raise fail(got)


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *rest: object) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a view of a storage (offset and strides in elements), checked to lie inside it.

    Flags and hooks in `rest` are dropped. A view with more elements than its storage (expanded, stride 0) is refused:
    copying it later could take any amount of memory.
    """
    expect(type(storage) is Storage and len(rest) <= 3, "a tensor without a storage")
    expect(type(size) is tuple and type(stride) is tuple and len(size) == len(stride), "a tensor of unclear shape")
    expect(len(size) <= MAX_DIMENSIONS, f"a tensor of {len(size)} dimensions")
    expect(all(map(is_count, (offset, *size, *stride))), "a negative or non-integer size, stride or offset")
    total, values = math.prod(size), storage.values
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if total else 0
    if last >= max(len(values), 1) or total > len(values):
        raise fail(f"a tensor that reaches outside of its storage of {len(values)} elements")
    if not total:
        return np.zeros(size, values.dtype)
    return np.lib.stride_tricks.as_strided(values[offset:], size, [step * values.itemsize for step in stride])


def _parameter(data: np.ndarray, *rest: object) -> np.ndarray:
    """torch._utils._rebuild_parameter: the tensor itself."""
    expect(type(data) is np.ndarray and len(rest) <= 2, "a parameter without a tensor")
    return data


def _ordered_dict(pairs: list = ()) -> dict:
    """collections.OrderedDict: a plain dict, which keeps its order too; Python 2 wrote the pairs as an argument."""
    out: dict = {}
    for pair in pairs if type(pairs) in (list, tuple) else [None]:
        expect(type(pair) in (list, tuple) and len(pair) == 2, "an OrderedDict of something other than pairs")
        out[as_key(pair[0])] = pair[1]
    return out


def as_set(values: list = ()) -> set:
    expect(type(values) in (list, tuple), "a set of something other than a list")
    return {as_key(value) for value in values}


def _size(values: tuple = ()) -> tuple:
    expect(type(values) is tuple, "a torch.Size of something other than a tuple")
    return values


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """_codecs.encode(text, "latin1"), which is how protocol 2 writes bytes."""
    expect(type(text) is str and encoding in ("latin1", "latin-1"), "bytes in an unknown encoding")
    return text.encode("latin1")


def as_key(value: object) -> object:
    """A dict key or set element: a plain scalar, so hashing it runs nothing and never recurses."""
    expect(type(value) in (str, bytes, int, float, bool, type(None)), f"a {show(value)} as a key")
    return value


STORAGE_TYPES = {
    "torch DoubleStorage": StorageType("f8"),
    "torch FloatStorage": StorageType("f4"),
    "torch HalfStorage": StorageType("f2"),
    "torch BFloat16Storage": StorageType("u2", bfloat16=True),
    "torch LongStorage": StorageType("i8"),
    "torch IntStorage": StorageType("i4"),
    "torch ShortStorage": StorageType("i2"),
    "torch CharStorage": StorageType("i1"),
    "torch ByteStorage": StorageType("u1"),
    "torch BoolStorage": StorageType("?"),
}
FUNCTIONS = {
    "torch._utils _rebuild_tensor": Function(_tensor),
    "torch._utils _rebuild_tensor_v2": Function(_tensor),
    "torch._utils _rebuild_parameter": Function(_parameter),
    "torch Size": Function(_size),
    "collections OrderedDict": Function(_ordered_dict),
    "_codecs encode": Function(_bytes),
    **{f"{module} {name}": Function(as_set) for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    **{f"{module} bytes": Function(_bytes) for module in ("builtins", "__builtin__")},
}
