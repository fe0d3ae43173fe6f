"""Weights that other programs wrote, by content: the encoders in a file, the queue, and what else is there.

Read are PyTorch's files, .safetensors and moco.tensorflow's .npz files. An encoder is whatever has the names
of a ResNet or ViT behind a common prefix, however deep: MoCo's `encoder_q.`, MoCo v3's `base_encoder.`, a library's
`backbone.`, DistributedDataParallel's `module.`, a checkpoint's `state_dict`. Names follow torchvision and timm, arrays
PyTorch's layout: kernels OIHW, matrices (out, in).
"""

import functools
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moco_tf.errors import UserError
from moco_tf.formats import pth, tensorpack
from moco_tf.formats.architecture import (
    VIT_HEADS,
    VIT_MARK,
    check_against,
    configuration,
    fixed_image_size,
    listed,
    printable,
    without_unknown_head,
)
from moco_tf.formats.torch_pickle import STORAGE_TYPES

MAX_BYTES = 16 * 2**30  # ResNet-50 four times as wide, with its key encoder and optimizer, has 5 GB
MAX_ENCODERS = 100  # each costs a look at all names
MAX_HEADER_BYTES = 100 * 2**20  # of a .safetensors
_PARTS = {  # what an encoder is found by: what of the names behind its prefix are its own
    "layer1.0.conv1.weight": re.compile(r"((conv|bn|layer)\d+|fc)\."),
    VIT_MARK: re.compile(r"(cls_token|pos_embed)$|(patch_embed|blocks|norm|head)\."),
}
_PROGRAMS = {"encoder_q.": "moco", "base_encoder.": "moco-v3"}  # by the end of the prefix
_NUMBERED = re.compile(r"(?P<prefix>.*\.|)(?P<number>\d+)\.0\.conv1\.weight")
_FOLLOWS = re.compile(r"(^|[._])(k|key|momentum|teacher|target|ema)[._]")  # a moving average of the query encoder
_QUEUE = re.compile(r"(^|\.)queue(_ptr)?$")
_COUNTED = ("num_batches_tracked", "total_ops", "total_params")  # batches, and what thop counts
_TYPES = {"F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "I32": "Int"}
_TYPES |= {"I16": "Short", "I8": "Char", "U8": "Byte", "BOOL": "Bool"}


@dataclass(frozen=True)
class Foreign:
    """What a file, or a checkpoint of ours, holds.

    Attributes:
        encoder: {torchvision name: float32 array} of the query encoder, or of the whole network.
        source: what it is, in words, such as "moco .pth.tar" or "torchvision .pth".
        key_encoder: the same for the key encoder, None if there is none.
        queue: KxC float32, None if there is none.
        queue_pointer: the row that is replaced next, None if it is not known.
        epoch, arch: as the file says.
        image_size: side in pixels of the images that a ViT's position embedding is for; 0: not known.
        optimizer: whether an optimizer's state is there, too.
        notes: lines about what was chosen and what left out.
    """

    encoder: dict[str, np.ndarray]
    source: str
    key_encoder: dict[str, np.ndarray] | None = None
    queue: np.ndarray | None = None
    queue_pointer: int | None = None
    epoch: int | None = None
    arch: str | None = None
    image_size: int = 0
    optimizer: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses two encoders of different shapes and a pointer outside of the queue."""
        if self.key_encoder is not None:
            check_against(self.key_encoder, {name: value.shape for name, value in self.encoder.items()})
        if self.queue is not None and not 0 <= (self.queue_pointer or 0) < max(len(self.queue), 1):
            raise UserError(f"queue_ptr is {self.queue_pointer} in a queue of {len(self.queue)}; use an undamaged file")


def read_state(path: str | os.PathLike) -> Foreign:
    """Reads a file of another program, told apart by its content.

    Raises:
        UserError: the file is unreadable, holds more than plain data and tensors, or no encoder.
    """
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    if size > MAX_BYTES:
        raise UserError(
            f"{path} has {size / 1e9:,.1f} GB, expected at most {MAX_BYTES / 1e9:.1f}: no encoder is so large; give "
            "another file"
        )
    entries = _zip_entries(path)
    if "model.weights.h5" in entries:
        raise UserError(
            f"{path}: a .keras file, which is written here but not read; give the run folder or the .pth of the same "
            "encoder"
        )
    npz = any(name.endswith(".npy") for name in entries)
    tensors = {} if npz else _read_safetensors(path, size)
    data: Any = tensorpack.read(path) if npz else tensors or pth.read(path)
    try:
        return _from_tensorpack(data) if npz else _from_torch(data, ".safetensors" if tensors else ".pth")
    except UserError as e:
        raise UserError(f"{path}: {e}") from e.__cause__


def _zip_entries(path: str | os.PathLike) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return []  # the reader of PyTorch's files says what it is


def _read_safetensors(path: str | os.PathLike, size: int) -> dict[str, Any]:
    """The tensors of a .safetensors: 8 bytes of length, a JSON header, the data; nothing if it is no such file."""
    if size < 10:
        return {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file.read(1) != b"{":
            return {}
        try:
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(b"{" + file.read(length - 1))
            header.pop("__metadata__", None)
            data = file.read()
            if sum(abs(entry["data_offsets"][1] - entry["data_offsets"][0]) for entry in header.values()) > len(data):
                raise ValueError(f"tensors of more than the {len(data)} bytes that there are")
            return {name: _tensor(data, **entry) for name, entry in header.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(
                f"{path}: a .safetensors that is damaged, cut short or of an unknown type of numbers "
                f"({printable(str(e))}); download or copy it again"
            ) from e


def _tensor(data: bytes, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    """A tensor of a .safetensors. Raises ValueError if it does not lie in the data."""
    kind, (start, end) = STORAGE_TYPES[f"torch {_TYPES[dtype]}Storage"], data_offsets
    if not 0 <= start <= end <= len(data) or end - start != math.prod(shape) * kind.raw.itemsize:
        raise ValueError(f"{shape} of {dtype} at {start} to {end} of {len(data)} bytes")
    return kind.decode(data[start:end]).reshape(shape)


def _from_tensorpack(arrays: dict[str, np.ndarray]) -> Foreign:
    query, key = tensorpack.encoder_prefixes(arrays)
    encoder = tensorpack.to_torchvision(arrays, query)
    key_encoder = None if key is None else _like(encoder, functools.partial(tensorpack.to_torchvision, arrays, key))
    queue, pointer, used = _queue(arrays, by_columns=False)
    left = [name for name in arrays if _QUEUE.search(name) and name not in used]
    left += [printable(key.rstrip("/"))] if key and key_encoder is None else []
    return Foreign(
        encoder=encoder,
        key_encoder=key_encoder,
        queue=queue,
        queue_pointer=pointer,
        source="moco.tensorflow .npz",
        optimizer=any(tensorpack.is_slot(name) for name in arrays),
        notes=(_left_out(left),) if left else (),
    )


def _from_torch(data: Any, suffix: str = ".pth") -> Foreign:
    """Of nested dicts, as torch.save or a .safetensors holds them."""
    expected = "expected a ResNet's or ViT's state_dict, or a checkpoint with one"
    if not isinstance(data, dict):
        raise UserError(f"the file holds a {printable(data)}; {expected}")
    flat = _torchvision_names(dict(_flat(data, "", set())))
    marks = [(name, mark) for name in flat for mark in _PARTS if f".{name}".endswith(f".{mark}")]
    roots = [name.removesuffix(mark) for name, mark in marks]
    if len(roots) > MAX_ENCODERS:
        raise UserError(f"the file holds {len(roots)} networks, expected a few; give one with fewer")
    if not roots:
        raise UserError(f"no encoder (conv1.weight, {', '.join(_PARTS)}) among {listed(flat)}; {expected}")
    query = next((root for root in roots if not _FOLLOWS.search(root)), roots[0])
    encoder = _encoder(flat, query)
    key, key_encoder = _key_encoder(flat, encoder, [r for r in roots if r != query and _FOLLOWS.search(r)])
    queue, pointer, used = _queue(flat, by_columns=True)
    used |= {query + name for name in encoder} | {f"{key}{name}" for name in key_encoder or ()}
    size, assumed = _of_vit(encoder, key_encoder)
    return Foreign(
        encoder=encoder,
        key_encoder=key_encoder,
        queue=queue,
        queue_pointer=pointer,
        epoch=data["epoch"] if type(data.get("epoch")) is int else None,
        arch=data["arch"] if isinstance(data.get("arch"), str) else None,
        source=_source(query, "timm" if VIT_MARK in encoder else "torchvision", suffix),
        image_size=size,
        optimizer=isinstance(data.get("optimizer"), dict),
        notes=(*_notes(flat, roots, query, key, used), *assumed),
    )


def _of_vit(encoder: dict[str, np.ndarray], key_encoder: dict[str, np.ndarray] | None) -> tuple[int, list[str]]:
    """The image size of a ViT's position embedding, which is taken out, and what is assumed of the network."""
    positions = [weights.pop("pos_embed", None) for weights in (encoder, key_encoder or {})][0]
    if VIT_MARK not in encoder:
        return 0, []
    size = 0 if positions is None else fixed_image_size(positions, configuration(encoder)["patch"])
    return size, [f"{VIT_HEADS} attention heads are assumed: a file does not say how many"]


def _source(prefix: str, names: str, suffix: str) -> str:
    """What a file is, in words, by its encoder's prefix, or by whose names it has."""
    known = [f"{program} {suffix}.tar" for end, program in _PROGRAMS.items() if prefix.endswith(end)]
    return known[0] if known else f"{names} {suffix}"


def _flat(data: Mapping[Any, Any], prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """(names joined by dots, value) of all that nested dicts hold by names, each dict once."""
    seen.add(id(data))
    for name, value in data.items():
        if isinstance(name, str) and isinstance(value, dict):
            if id(value) not in seen:
                yield from _flat(value, f"{prefix}{name}.", seen)
        elif isinstance(name, str):
            yield prefix + name, value


def _torchvision_names(flat: dict[str, Any]) -> dict[str, Any]:
    """The same where a ResNet's layers have numbers, as in nn.Sequential, or its shortcuts another name."""
    found: dict[str, set[str]] = {}
    for match in filter(None, map(_NUMBERED.fullmatch, flat)):
        found.setdefault(match["prefix"], set()).add(match["number"])
    renamed: dict[str, str] = {}
    for prefix, numbers in list(found.items())[: MAX_ENCODERS + 1]:  # more are refused
        there = {name[len(prefix) :].partition(".")[0] for name in flat if name.startswith(prefix)}
        heads = [number for number in there - numbers - {"0", "1"} if number.isdigit()]
        names = {"0": "conv1", "1": "bn1"} | {number: "fc" if len(heads) == 1 else f"fc.{number}" for number in heads}
        names |= {number: f"layer{i}" for i, number in enumerate(sorted(numbers, key=int), start=1)}
        renamed |= {f"{prefix}{number}.": f"{prefix}{name}." for number, name in names.items()}
    for old, new in renamed.items():
        flat = {new + name[len(old) :] if name.startswith(old) else name: value for name, value in flat.items()}
    return {re.sub(r"(layer\d+\.\d+\.)shortcut\.", r"\1downsample.", name): value for name, value in flat.items()}


def _encoder(flat: Mapping[str, Any], root: str) -> dict[str, np.ndarray]:
    """The encoder behind a prefix as float32, with its head if that is known."""
    inner = {name[len(root) :]: value for name, value in flat.items() if name.startswith(root)}
    part = next(part for mark, part in _PARTS.items() if mark in inner)
    inner = {name: value for name, value in inner.items() if part.match(name) and not name.endswith(_COUNTED)}
    inner = without_unknown_head(inner)
    wrong = [name for name, value in inner.items() if not isinstance(value, np.ndarray) or value.dtype.kind != "f"]
    if wrong:
        raise UserError(
            f"{listed(wrong)}: no floating-point tensors; expected a network's weights: torch.save its state_dict"
        )
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in inner.items()}


def _key_encoder(
    flat: Mapping[str, Any], encoder: Mapping[str, np.ndarray], roots: list[str]
) -> tuple[str | None, dict[str, np.ndarray] | None]:
    """The first of some encoders that is like the query encoder, and its prefix."""
    for root in roots:
        if found := _like(encoder, functools.partial(_encoder, flat, root)):
            return root, found
    return None, None


def _like(encoder: Mapping[str, np.ndarray], read: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray] | None:
    """What `read` gives; None if that is no encoder of the same names and shapes: it stands in nobody's way."""
    try:
        found = read()
        check_against(found, {name: value.shape for name, value in encoder.items()})
        return found
    except UserError:
        return None


def _notes(flat: Mapping[str, Any], roots: list[str], query: str, key: str | None, used: set[str]) -> Iterator[str]:
    """What to say: which of several encoders was taken, and what was left out.

    Args:
        flat: all values by name.
        roots: the prefixes of encoders.
        query, key: those that were taken.
        used: names of the weights that were taken.
    """
    named = {root: printable(root.rstrip(".")) or "the file's own" for root in roots}
    others = [root for root in roots if root not in (query, key)]
    if len(roots) > 1:
        follows = "" if key is None else f", {named[key]} as its key encoder"
        yield f"of {len(roots)} encoders {named[query]} is taken{follows}"
    left = [n for n, v in flat.items() if isinstance(v, np.ndarray) and n not in used]
    queues = [n for n in left if _QUEUE.search(n)]
    left = [n for n in left if n not in queues and flat[n].ndim and not n.endswith(_COUNTED)]
    left = [n.rpartition(".")[0] or n for n in left if not n.startswith((*others,))]
    if left := [named[root] for root in others] + queues + left:
        yield _left_out(left)


def _left_out(names: Collection[str]) -> str:
    return (
        f"left out: {listed(set(names))}; read are a ResNet or ViT, a linear or MLP head, a key encoder like it and a "
        "queue of two dimensions"
    )


def _queue(values: Mapping[str, Any], by_columns: bool) -> tuple[np.ndarray | None, int | None, set[str]]:
    """The first matrix called queue as KxC float32, its pointer, and their names. What does not fit is passed over.

    Args:
        values: of the file.
        by_columns: whether the file's is CxK.
    """
    for name, value in values.items():
        called, is_array = name.rpartition(".")[2] == "queue", isinstance(value, np.ndarray)
        if called and is_array and value.ndim == 2 and value.dtype.kind == "f":
            queue = np.ascontiguousarray(value.T if by_columns else value, dtype=np.float32)
            pointer = _pointer(values.get(f"{name}_ptr"), len(queue))
            return queue, pointer, {name} if pointer is None else {name, f"{name}_ptr"}
    return None, None, set()


def _pointer(value: Any, rows: int) -> int | None:
    """The row that is replaced next; None if the value is no integer of the queue's rows."""
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "iu":
        return None
    row = int(value.reshape(-1)[0])
    return row if 0 <= row < max(rows, 1) else None
