"""The pickles inside PyTorch's files, read as data: nothing that a file names is imported or called.

`pickletools.genops` takes a pickle apart without running it. Of its opcodes those that make tensors and plain data are
run here; the others are refused, by name. A name is only looked up, as a whole, in the tables below.
"""

import copy
import math
import mmap
import pickletools
import re
import struct
import warnings
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np

from moco_tf.errors import UserError
from moco_tf.formats.architecture import printable

MAX_OPCODES = 20_000_000
MAX_DEPTH = 100  # containers within containers; a checkpoint of a network has about 6
MAX_INTEGER = 2**128

REMEDY = 'open the file in PyTorch where you trust it and keep only tensors: torch.save({"state_dict": ...}, path)'


class StorageType:
    """An element type: `raw` as it lies in the file, `dtype` as it becomes (bfloat16, raw uint16, is float32 here)."""

    def __init__(self, raw: str, bfloat16: bool = False) -> None:
        self.raw, self.bfloat16 = np.dtype(raw), bfloat16
        self.dtype = np.dtype(np.float32) if bfloat16 else self.raw

    def decode(self, data: bytes, order: Literal["<", ">"] = "<") -> np.ndarray:
        """A storage's bytes (little-endian, or big-endian with order ">") as a 1-D array in native byte order."""
        if self.raw == np.bool_:
            return np.frombuffer(data, np.uint8) != 0
        values = np.frombuffer(data, self.raw.newbyteorder(order))
        return (values.astype(np.uint32) << 16).view(np.float32) if self.bfloat16 else values.astype(self.raw)


class Storage:
    """A 1-D array that tensors are views of, kept apart from data: a bare storage in a file is refused."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


LoadStorage = Callable[[str, StorageType, int], Storage]


def fail(got: str) -> UserError:
    """The error that says what a pickle has."""
    return UserError(f"the file's pickle has {got}; expected tensors, numbers, strings and containers only; {REMEDY}")


def expect(condition: bool, got: str) -> None:
    """Raises `fail` unless the condition holds."""
    if not condition:
        raise fail(got)


def _is_count(value: object) -> bool:
    """Whether a value can be a size, an offset or a stride."""
    return type(value) is int and 0 <= value < 2**62


def _key(value: object) -> object:
    """A dict key or set element: a plain scalar, so hashing it runs nothing and never recurses."""
    expect(type(value) in (str, bytes, int, float, bool, type(None)), f"a {printable(value)} as a key")
    expect(type(value) is not int or abs(value) < MAX_INTEGER, "an absurdly large integer")
    return value


# What a file may call: functions of this module that stand for PyTorch's, and check what they get.


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *rest: object) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2: a view of a storage, offset and strides in elements; `rest` is dropped.

    NumPy checks that it lies inside the storage. One with more elements than its storage (expanded, stride 0) is
    refused: copying it later could take any amount of memory.
    """
    expect(type(storage) is Storage and len(rest) <= 3, "a tensor without a storage")
    expect(type(size) is tuple and type(stride) is tuple and len(size) == len(stride), "a tensor of unclear shape")
    expect(all(map(_is_count, (offset, *size, *stride))), "a negative or non-integer size, stride or offset")
    expect(math.prod(size) <= len(storage.values), "a tensor that reaches outside of its storage")
    step = storage.values.itemsize
    if not math.prod(size):
        return np.zeros(size, storage.values.dtype)
    return np.ndarray(size, storage.values.dtype, storage.values, offset * step, [step * count for count in stride])


def _parameter(data: np.ndarray, *rest: object) -> np.ndarray:
    """torch._utils._rebuild_parameter: the tensor itself."""
    expect(type(data) is np.ndarray and len(rest) <= 2, "a parameter without a tensor")
    return data


def _dict(items: Sequence = ()) -> dict:
    """Of keys and values in turns."""
    expect(len(items) % 2 == 0, "a dict with a key but no value")
    return dict(zip(map(_key, items[::2]), items[1::2]))


def _ordered_dict(pairs: Sequence = ()) -> dict:
    """collections.OrderedDict: a plain dict, which keeps its order too; Python 2 wrote the pairs as an argument."""
    sound = type(pairs) in (list, tuple) and all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs)
    expect(sound, "an OrderedDict of something other than pairs")
    return {_key(name): value for name, value in pairs}


def _set(values: Sequence = ()) -> set:
    expect(type(values) in (list, tuple), "a set of something other than a list")
    return {_key(value) for value in values}


def _size(values: tuple = ()) -> tuple:
    expect(type(values) is tuple, "a torch.Size of something other than a tuple")
    return values


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """_codecs.encode(text, "latin1"), which is how protocol 2 writes bytes."""
    expect(type(text) is str and encoding in ("latin1", "latin-1"), "bytes in an unknown encoding")
    return text.encode("latin1")


_RAW = {
    "Double": "f8",
    "Float": "f4",
    "Half": "f2",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
}
STORAGE_TYPES = {f"torch {name}Storage": StorageType(raw) for name, raw in {**_RAW, "Bool": "?"}.items()}
STORAGE_TYPES["torch BFloat16Storage"] = StorageType("u2", bfloat16=True)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"), _tensor),
    **{"torch._utils _rebuild_parameter": _parameter, "torch Size": _size, "collections OrderedDict": _ordered_dict},
    **{f"{module} {name}": _set for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    **dict.fromkeys(("_codecs encode", "builtins bytes", "__builtin__ bytes"), _bytes),
}
_NAMES: dict[str, Any] = {**STORAGE_TYPES, **FUNCTIONS}


class _Machine:
    """What a pickle's opcodes work on: a stack of values, the stacks below its marks, and a memo."""

    def __init__(self, load_storage: LoadStorage) -> None:
        self.load_storage, self.left = load_storage, MAX_OPCODES
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO | mmap.mmap) -> Any:
        """The value of a pickle."""
        for opcode, arg, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # a mmap will do
            self.spend(1)
            if opcode.name in _VALUES or opcode.name in _EMPTY:
                self.push(copy.copy(_EMPTY.get(opcode.name, arg)))
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                expect(opcode.name in _ACTIONS, f"the opcode {opcode.name}")
                _ACTIONS[opcode.name](self, arg)
        expect(len(self.stack) == 1 and not self.below, "an unfinished container, or a second value")
        return self.stack.pop()

    def spend(self, count: int) -> None:
        """Refuses too much work."""
        self.left -= count
        expect(self.left >= 0, f"more than {MAX_OPCODES} opcodes")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        """The last values, in their order."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def add(self, kind: type, items: Any) -> None:
        """Adds items to the container on top, which must be of this very type."""
        target = self.stack[-1]
        expect(type(target) is kind, f"a change to a {printable(target)} as if it were a {kind.__name__}")
        target.extend(items) if kind is list else target.update(items)

    def call(self, function: Any, args: Any) -> Any:
        known = any(function is allowed for allowed in FUNCTIONS.values())
        expect(known and type(args) is tuple, f"a call of a {printable(function)}")
        self.spend(sum(len(arg) for arg in args if type(arg) in (list, tuple, str)))  # it may copy them
        try:
            return function(*args)
        except (TypeError, UnicodeEncodeError) as e:  # too few or many arguments, text beyond latin-1
            raise fail("a call with unexpected arguments") from e

    def storage(self, pid: Any) -> Storage:
        """Of ("storage", type, key, device, elements) and, in the legacy format, None (no view of another storage)."""
        expect(type(pid) is tuple and len(pid) in (5, 6), "an unknown persistent object")
        tag, kind, key, _, count, *view = pid
        expect(type(tag) is str and tag == "storage" and type(kind) is StorageType, "a persistent object, no storage")
        expect(type(key) is str and re.fullmatch(r"[0-9]{1,20}", key) is not None, "a storage without a number")
        expect(_is_count(count) and view in ([], [None]), "a storage of an absurd size, or a view of another storage")
        return self.load_storage(key, kind, count)


def _named(*parts: Any) -> Any:
    """The stand-in for a module's name and a name in it."""
    expect(all(type(part) is str for part in parts), "a name that is no text")
    known = _NAMES.get(" ".join(parts))
    expect(known is not None, f"the name {printable('.'.join(parts).replace(' ', '.'))}")
    return known


_PLAIN = {"int", "int_or_bool", "float", "bytes", "bytes_or_str", "str"}
_VALUES = {op.name for op in pickletools.opcodes if op.arg and {kind.name for kind in op.stack_after} & _PLAIN}
_EMPTY: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY |= {"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_SET": set()}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.mark(),
    "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
    "TUPLE": lambda m, _: m.push(tuple(m.above_mark())),
    "LIST": lambda m, _: m.push(m.above_mark()),
    "FROZENSET": lambda m, _: m.push(_set(m.above_mark())),
    "DICT": lambda m, _: m.push(_dict(m.above_mark())),
    "APPEND": lambda m, _: m.add(list, m.take(1)),
    "APPENDS": lambda m, _: m.add(list, m.above_mark()),
    "SETITEM": lambda m, _: m.add(dict, _dict(m.take(2))),
    "SETITEMS": lambda m, _: m.add(dict, _dict(m.above_mark())),
    "ADDITEMS": lambda m, _: m.add(set, _set(m.above_mark())),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index])),
    "GLOBAL": lambda m, name: m.push(_named(name)),
    "STACK_GLOBAL": lambda m, _: m.push(_named(*m.take(2))),
    "BINPERSID": lambda m, _: m.push(m.storage(*m.take(1))),
    "REDUCE": lambda m, _: m.push(m.call(*m.take(2))),
    # State of a state_dict's OrderedDict (its `_metadata`: versions of modules) is dropped, any other refused.
    "BUILD": lambda m, _: m.add(dict, m.take(1)[:0]),
}
_DAMAGED = (struct.error, ValueError, LookupError, OverflowError, MemoryError)


def load(stream: BinaryIO | mmap.mmap, load_storage: LoadStorage) -> Any:
    """Reads one pickle from a stream, which must be bounded (BytesIO or mmap), and leaves the stream behind it.

    Raises:
        UserError: anything but tensors and plain data, or a damaged pickle. Nothing of the file is ever executed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes in damaged strings
            value = _Machine(load_storage).run(stream)
    except _DAMAGED as e:
        raise UserError(
            f"the file's pickle is damaged or cut short ({printable(str(e))}); expected what torch.save wrote; "
            "download or copy the file again"
        ) from e
    _check(value)
    return value


def _check(root: Any) -> None:
    """Refuses all but data, and containers that are nested absurdly deep or contain themselves."""
    level = {id(root): root}
    for _ in range(MAX_DEPTH):
        below: dict[int, Any] = {}
        for value in level.values():
            kind = type(value)
            if kind in (list, tuple, dict):
                inner = value.values() if kind is dict else value
                below.update((id(v), v) for v in inner)
            elif kind is int:
                expect(abs(value) < MAX_INTEGER, "an absurdly large integer")
            else:
                expect(kind in (str, bytes, float, bool, type(None), set, np.ndarray), f"a bare {printable(value)}")
        level = below
        if not level:
            return
    raise fail(f"containers nested more than {MAX_DEPTH} deep")
