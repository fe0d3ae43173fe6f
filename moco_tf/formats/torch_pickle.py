"""The pickles inside PyTorch's files, read as data: nothing that a file names is imported or called.

This is the standard library's unpickler in Python, `pickle._Unpickler`, with an allow-list of opcodes, of names and of
what a change may be made to. A name is only looked up, as a whole, in the tables below: it is never split at dots,
imported or resolved. The unpickler in C will not do: nobody can take an opcode away from it, and it makes room for
whatever memo index a file names.
"""

import math
import pickle
import pickletools
import re
import struct
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from moco_tf.errors import UserError
from moco_tf.formats.architecture import printable

MAX_OPCODES = 20_000_000
MAX_DEPTH = 100  # containers within containers; a checkpoint of a network has about 6
MAX_DIMENSIONS = 32
MAX_INTEGER = 2**128

REMEDY = 'open the file in PyTorch where you trust it and keep only tensors: torch.save({"state_dict": ...}, path)'


class StorageType:
    """An element type: how it lies in the file and what it becomes (bfloat16, kept as uint16, becomes float32)."""

    def __init__(self, raw: str, bfloat16: bool = False) -> None:
        self.raw = np.dtype(raw)
        self.bfloat16 = bfloat16
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


class Stream(Protocol):
    """What a pickle is read from: BytesIO or mmap, which are bounded (a length in the pickle may be absurd)."""

    def read(self, n: int = ..., /) -> bytes:
        """At most n bytes."""

    def readline(self) -> bytes:
        """The bytes of one line."""


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
    """torch._utils._rebuild_tensor_v2: a view of a storage (offset and strides in elements), checked to lie inside it.

    Flags and hooks in `rest` are dropped. A view with more elements than its storage (expanded, stride 0) is refused:
    copying it later could take any amount of memory.
    """
    expect(type(storage) is Storage and len(rest) <= 3, "a tensor without a storage")
    expect(type(size) is tuple and type(stride) is tuple and len(size) == len(stride), "a tensor of unclear shape")
    expect(len(size) <= MAX_DIMENSIONS, f"a tensor of {len(size)} dimensions")
    expect(all(map(_is_count, (offset, *size, *stride))), "a negative or non-integer size, stride or offset")
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


def _ordered_dict(pairs: Sequence = ()) -> dict:
    """collections.OrderedDict: a plain dict, which keeps its order too; Python 2 wrote the pairs as an argument."""
    out: dict = {}
    expect(type(pairs) in (list, tuple), "an OrderedDict of something other than pairs")
    for pair in pairs:
        expect(type(pair) in (list, tuple) and len(pair) == 2, "an OrderedDict of something other than pairs")
        out[_key(pair[0])] = pair[1]
    return out


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
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch Size": _size,
    "collections OrderedDict": _ordered_dict,
    "_codecs encode": _bytes,
    **{f"{module} {name}": _set for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    **{f"{module} bytes": _bytes for module in ("builtins", "__builtin__")},
}
_NAMES: dict[str, Any] = {**STORAGE_TYPES, **FUNCTIONS}


class _Unpickler(pickle._Unpickler):
    """Its methods are those opcodes that look up, call or change something; `_ALLOWED` are the others."""

    # Of the standard library's class, which has no types for them.
    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, stream: Stream, load_storage: LoadStorage) -> None:
        super().__init__(stream, encoding="latin-1")
        self.load_storage = load_storage
        self.opcodes = self.dispatch = _Opcodes(_HANDLERS)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        known = _NAMES.get(f"{module} {name}")
        expect(known is not None, f"the name {printable(f'{module}.{name}')}")
        return known

    def persistent_load(self, pid: Any) -> Storage:
        """("storage", type, key, device, elements) and, in the legacy format, None (no view of another storage)."""
        expect(type(pid) is tuple and len(pid) in (5, 6), "an unknown persistent object")
        tag, kind, key, _, count, *view = pid
        expect(type(tag) is str and tag == "storage" and type(kind) is StorageType, "a persistent object, no storage")
        expect(type(key) is str and re.fullmatch(r"[0-9]{1,20}", key) is not None, "a storage without a number")
        expect(_is_count(count) and view in ([], [None]), "a storage of an absurd size, or a view of another storage")
        return self.load_storage(key, kind, count)

    def _target(self, kind: type) -> Any:
        target = self.stack[-1]
        expect(type(target) is kind, f"a change to a {printable(target)} as if it were a {kind.__name__}")
        return target

    def _set_items(self, items: list) -> None:
        target = self._target(dict)
        expect(len(items) % 2 == 0, "a dict with a key but no value")
        for key, value in zip(items[::2], items[1::2]):
            target[_key(key)] = value

    def load_frame(self) -> None:
        """Passed over: a frame would be copied as a whole."""
        self.read(8)

    def load_append(self) -> None:
        value = self.stack.pop()
        self._target(list).append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._target(list).extend(items)

    def load_setitem(self) -> None:
        items = [self.stack.pop(), self.stack.pop()]
        self._set_items(items[::-1])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        self._target(set).update(map(_key, items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # it replaces the stack, so it comes first
        self.append(_set(items))

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        known = any(function is allowed for allowed in FUNCTIONS.values())
        expect(known and type(args) is tuple, f"a call of a {printable(function)}")
        self.opcodes.spend(sum(len(arg) for arg in args if type(arg) in (list, tuple, str)))  # it may copy them
        try:
            self.append(function(*args))
        except (TypeError, UnicodeEncodeError) as e:  # too few or many arguments, text beyond latin-1
            raise fail("a call with unexpected arguments") from e

    def load_build(self) -> None:
        """State of a state_dict's OrderedDict (its `_metadata`: versions of modules) is dropped, any other refused."""
        self.stack.pop()
        self._target(dict)


class _Opcodes(dict):
    """Handlers by opcode. Refuses others, and too many."""

    left = MAX_OPCODES

    def spend(self, count: int) -> None:
        self.left -= count
        expect(self.left >= 0, f"more than {MAX_OPCODES} opcodes")

    def __getitem__(self, code: int) -> Callable[[_Unpickler], None]:
        self.spend(1)
        return super().__getitem__(code)

    def __missing__(self, code: int) -> None:
        known = [opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)]
        raise fail(f"the opcode {known[0] if known else code}")


# These make plain values, and keep them in the memo.
_ALLOWED = "PROTO STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING"
_ALLOWED += " BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES"
_ALLOWED += (
    " BINBYTES8 EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET TUPLE TUPLE1 TUPLE2 TUPLE3 LIST PUT BINPUT LONG_BINPUT"
)
_ALLOWED += " MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID"
_CHECKED = "FRAME APPEND APPENDS SETITEM SETITEMS DICT ADDITEMS FROZENSET REDUCE BUILD"
_HANDLERS = {getattr(pickle, name)[0]: getattr(_Unpickler, f"load_{name.lower()}") for name in _CHECKED.split()}
_HANDLERS |= {code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, n)[0] for n in _ALLOWED.split())}
_DAMAGED = (pickle.UnpicklingError, EOFError, struct.error, ValueError, LookupError, OverflowError, MemoryError)


def load(stream: Stream, load_storage: LoadStorage) -> Any:
    """Reads one pickle from a stream and leaves the stream behind it.

    Args:
        stream: what to read from.
        load_storage: (key, type, number of elements) -> Storage.

    Raises:
        UserError: anything but tensors and plain data, or a damaged pickle. Nothing of the file is ever executed.
    """
    unpickler = _Unpickler(stream, load_storage)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes in damaged strings
            value = unpickler.load()
    except _DAMAGED as e:
        raise UserError(
            f"the file's pickle is damaged or cut short ({printable(str(e))}); expected what torch.save wrote; "
            "download or copy the file again"
        ) from e
    expect(not unpickler.stack and not unpickler.metastack, "an unfinished container, or a second value")
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
