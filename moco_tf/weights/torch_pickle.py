"""The pickles inside PyTorch's files, read as data: an opcode interpreter that imports and calls nothing from the file.

Opcodes come from `pickletools.genops`; every opcode, global name and call that tensors do not need is refused. A name
is only ever looked up, whole, in the tables of torch_objects: never split at dots, imported or resolved.
"""

import pickletools
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from moco_tf.errors import UserError
from moco_tf.weights.torch_objects import (
    FUNCTIONS,
    STORAGE_TYPES,
    Buildable,
    Function,
    Storage,
    StorageType,
    as_key,
    as_set,
    expect,
    fail,
    is_count,
    show,
)

MAX_OPCODES = 20_000_000
MAX_DEPTH = 100  # containers within containers; a checkpoint of a network has about 6

_SCALARS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_SCALARS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_SCALARS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_FIXED: dict[str, Callable[[], object]] = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
_FIXED |= {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}


class _Machine:
    """The pickle virtual machine's stack and memo; one method for each family of opcodes."""

    def __init__(
        self, load_storage: Callable[[str, StorageType, int], Storage], functions: Mapping[str, Function]
    ) -> None:
        self.load_storage = load_storage
        self.names: Mapping[str, StorageType | Function] = {**STORAGE_TYPES, **functions}
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each open MARK
        self.memo: dict[int, Any] = {}

    def step(self, name: str, arg: Any) -> None:
        """Runs one opcode; whatever has no case here is refused."""
        if name in _SCALARS:
            expect(type(arg) is not int or abs(arg) < 2**128, "an absurdly large integer")
            self._push(arg)
        elif name in _FIXED:
            self._push(_FIXED[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[arg] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._push(self.memo[arg])
        elif name == "MARK":
            self.marked.append(self.stack)
            self.stack = []
        elif name not in ("PROTO", "FRAME"):
            handler = getattr(self, f"_op_{name.lower()}", None)  # genops' own opcode names, not the file's text
            expect(handler is not None, f"the opcode {name}{f' ({show(arg)})' if isinstance(arg, str) else ''}")
            handler(arg)

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _target(self, kind: type) -> Any:
        expect(type(self.stack[-1]) is kind, f"a change to a {show(self.stack[-1])} as if it were a {kind.__name__}")
        return self.stack[-1]

    def _op_tuple(self, arg: None) -> None:
        self._push(tuple(self._pop_mark()))

    def _op_list(self, arg: None) -> None:
        self._push(self._pop_mark())

    def _op_dict(self, arg: None) -> None:
        items = self._pop_mark()
        self._push({})
        self._set_items(items)

    def _op_frozenset(self, arg: None) -> None:
        self._push(as_set(self._pop_mark()))

    def _take(self, count: int) -> list[Any]:
        expect(len(self.stack) >= count, "an operation on an empty stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _op_tuple1(self, arg: None) -> None:
        self._push(tuple(self._take(1)))

    def _op_tuple2(self, arg: None) -> None:
        self._push(tuple(self._take(2)))

    def _op_tuple3(self, arg: None) -> None:
        self._push(tuple(self._take(3)))

    def _op_append(self, arg: None) -> None:
        (value,) = self._take(1)
        self._target(list).append(value)

    def _op_appends(self, arg: None) -> None:
        items = self._pop_mark()
        self._target(list).extend(items)

    def _op_additems(self, arg: None) -> None:
        items = self._pop_mark()
        self._target(set).update(map(as_key, items))

    def _set_items(self, items: list[Any]) -> None:
        target = self._target(dict)
        expect(len(items) % 2 == 0, "a dict with a key but no value")
        for key, value in zip(items[::2], items[1::2]):
            target[as_key(key)] = value

    def _op_setitem(self, arg: None) -> None:
        self._set_items(self._take(2))

    def _op_setitems(self, arg: None) -> None:
        self._set_items(self._pop_mark())

    def _push_name(self, name: str) -> None:
        known = self.names.get(name)
        expect(known is not None, f"the name {show(name.replace(' ', '.'))}")
        self._push(known)

    def _op_global(self, arg: str) -> None:
        self._push_name(arg)

    def _op_stack_global(self, arg: None) -> None:
        module, name = self._take(2)
        expect(type(module) is str and type(name) is str, "a name that is no string")
        self._push_name(f"{module} {name}")

    def _op_reduce(self, arg: None) -> None:
        function, args = self._take(2)
        expect(type(function) is Function and type(args) is tuple, f"a call of a {show(function)}")
        try:
            self._push(function.call(*args))
        except (TypeError, UnicodeEncodeError) as e:  # too few or many arguments, text beyond latin-1
            raise fail("a call with unexpected arguments") from e

    def _op_build(self, arg: None) -> None:
        """State of a state_dict's OrderedDict (its `_metadata`: versions of modules) is dropped, any other refused."""
        (state,) = self._take(1)
        if self.stack and isinstance(self.stack[-1], Buildable):
            self.stack[-1].build(state)
        else:
            self._target(dict)

    def _op_binpersid(self, arg: None) -> None:
        """("storage", type, key, device, elements) and, in the legacy format, None (no view of another storage)."""
        (reference,) = self._take(1)
        expect(type(reference) is tuple and len(reference) in (5, 6), "an unknown persistent object")
        tag, kind, key, _, count, *view = reference
        expect(
            type(tag) is str and tag == "storage" and type(kind) is StorageType,
            "a persistent object that is no storage",
        )
        expect(type(key) is str and re.fullmatch(r"[0-9]{1,20}", key) is not None, "a storage without a number")
        expect(is_count(count) and view in ([], [None]), "a storage of an absurd size, or a view of another storage")
        self._push(self.load_storage(key, kind, count))


def load(
    stream: BinaryIO,
    load_storage: Callable[[str, StorageType, int], Storage],
    functions: Mapping[str, Function] = FUNCTIONS,
) -> Any:
    """Reads one pickle from a stream (with read, readline and tell) and leaves the stream behind it.

    Args:
        stream: bounded in memory (BytesIO or mmap): a length in the pickle may be absurd.
        load_storage: (key, type, number of elements) -> Storage.
        functions: what may be called, by name.

    Raises:
        UserError: anything but tensors and plain data, or a damaged pickle. Nothing of the file is ever executed.
    """
    machine = _Machine(load_storage, functions)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes in damaged strings
            for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
                expect(count < MAX_OPCODES, f"more than {MAX_OPCODES} opcodes")
                if opcode.name != "STOP":
                    machine.step(opcode.name, arg)
        (value,) = machine.stack
    except (ValueError, LookupError, OverflowError, MemoryError) as e:  # what genops and an empty stack raise
        raise UserError(
            f"the file's pickle is damaged or cut short ({show(str(e))}); expected what torch.save wrote; "
            "download or copy the file again"
        ) from e
    expect(not machine.marked, "an unfinished container")
    _check(value)
    return value


def _check(root: Any) -> None:
    """Refuses stand-ins left in the data, and containers that are nested absurdly deep or contain themselves."""
    level = {id(root): root}
    for _ in range(MAX_DEPTH):
        below: dict[int, Any] = {}
        for value in level.values():
            kind = type(value)
            expect(kind not in (Storage, StorageType, Function), "a bare storage, type or function as a value")
            if kind in (list, tuple, dict):
                inner = value.values() if kind is dict else value
                below.update((id(v), v) for v in inner)
        level = below
        if not level:
            return
    raise fail(f"containers nested more than {MAX_DEPTH} deep")
