"""PyTorch's files (.pth, .pth.tar), read and written without PyTorch; exports have torchvision's names.

Zip format (PyTorch 1.6 on): an archive of stored entries, <root>/data.pkl (the object, tensors by reference),
<root>/data/<key> (raw storages), <root>/byteorder, <root>/version.

Legacy format: four pickles (a magic number, the protocol 1001, facts about the machine, the object), a fifth with the
list of storage keys, then for each key an int64 number of elements and the raw elements.

Source: the notes on serialization semantics in PyTorch's manual, and what torch/serialization.py documents.
"""

import io
import mmap
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from moco_tf.errors import UserError
from moco_tf.formats import base, torch_pickle
from moco_tf.formats.architecture import VIT_HEADS, printable
from moco_tf.formats.base import Loaded
from moco_tf.formats.torch_pickle import REMEDY, STORAGE_TYPES, Storage, StorageType
from moco_tf.formats.torchvision import get_weights
from moco_tf.training.files import replacing

SUFFIX, ANY_SIZE = ".pth", False
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAX_PICKLE_BYTES = 256 * 2**20

_USE = """\
{here}
    state = torch.load("{name}", weights_only=True)  # {names}
"""
_HERE = """\
    python -m moco_tf.knn --load={name} --dataset=... --image_size={size} --normalise={normalisation}
"""
_NOT_HERE = """\
A .pth does not hold the normalisation, and --normalise has no name for this one: give moco_tf the run folder instead.
"""
_NO_RESNET = """\
moco_tf reads ResNets and ViTs from a .pth, no other networks: give it the run folder instead.
"""
_OTHER_HEADS = """\
A .pth does not hold the number of attention heads, {heads} here; moco_tf takes it for 12: give moco_tf the run folder.
"""
_TORCHVISION = """\
    network = torchvision.models.{arch}()
    network.fc = torch.nn.Identity()  # Bx{D} comes out
    network.load_state_dict({{name: value for name, value in state.items() if not name.startswith("fc.")}})
"""
_TIMM = """\
    shape = {{"img_size": {size}, "patch_size": {patch}, "embed_dim": {D}, "depth": {depth}, "num_heads": {heads}}}
    network = timm.models.VisionTransformer(**shape, mlp_ratio={mlp_ratio}, num_classes=0)  # Bx{D} comes out
    network.load_state_dict({{name: value for name, value in state.items() if not name.startswith("head.")}})
"""
_ARCHIVE = "a {0} archive{1}; unpack it first: {2} FILE"
_OTHER_FORMATS = {  # by how they begin, in lower case
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file; fetch that: git lfs pull",
    b"<!doctype": "an HTML page in place of the file; download it again, by the link of the file itself",
    b"<html": "an HTML page in place of the file; download it again, by the link of the file itself",
    b"\xfd7zxz\x00": _ARCHIVE.format("xz", "", "xz -d"),
    b"\x1f\x8b": _ARCHIVE.format("gzip", "", "gzip -d"),
    b"bzh": _ARCHIVE.format("bzip2", "", "bzip2 -d"),
    b"\x89hdf": "an HDF5 file (Keras weights?); give a file written by torch.save",
    b"\x08": "neither a zip archive nor a pickle, but perhaps ONNX; give the run folder or .pth of the same encoder",
    b"": "neither a zip archive nor a pickle; give a file written by torch.save",
}
_NO_MAGIC = (
    "a pickle without PyTorch's magic number: damaged, or neither PyTorch's nor meant for --load (a Detectron2 .pkl is "
    "written here, but not read); give the run folder or the .pth of the same encoder"
)
DAMAGED: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError)
DAMAGED += (ValueError, LookupError, RuntimeError, OverflowError, MemoryError)  # zipfile raises them on nonsense


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the file, which torch.load(path, weights_only=True) reads; a ViT's has its position embedding, too."""
    weights = get_weights(subject.encoder)
    if base.is_vit(subject.encoder):
        weights["pos_embed"] = base.fixed_positions(subject)[None]
    _write_archive(path, weights)


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of an encoder with the file's weights."""
    weights = {name: value for name, value in read(path).items() if name != "pos_embed"}  # which is computed here
    return {"the file": base.evaluate_weights(weights, subject, images)}


def use(subject: Loaded, name: str) -> str:
    """How to load it here and in PyTorch."""
    config, named = subject.encoder.config, base.normalisation_name(subject)
    resnet, vit = base.is_resnet(subject.encoder), base.is_vit(subject.encoder)
    readable = resnet or (vit and config["heads"] == VIT_HEADS)
    here = (_OTHER_HEADS if vit else _NO_RESNET) if not readable else _HERE if named else _NOT_HERE
    known = (config.get("stem"), config.get("width")) == ("imagenet", 64) and config["arch"] != "resnet10"
    there = _TORCHVISION if known and resnet else _TIMM if vit and config["stem"] == "patch" else ""
    template = _USE.replace("{here}", here) + there
    names = "timm's names; the head's begin with head" if vit else "torchvision's names; the head's begin with fc"
    values = {
        "names": names,
        **config,
        **base.sizes(subject),
        "depth": len(getattr(subject.encoder.backbone, "blocks", ())),
    }
    return template.format(name=name, normalisation=named, **values)


def read(path: str | os.PathLike) -> Any:
    """What torch.save wrote, zip or legacy format: nested dicts, lists, tuples, sets and scalars, tensors as arrays.

    Arrays of one storage share memory, as the tensors did; bfloat16 becomes float32, an OrderedDict a dict.

    Raises:
        UserError: no such file, damaged, or holding anything else than tensors and plain data. Nothing is executed.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if head[:2] == b"PK":
                return _read_zip(path, path.stat().st_size)
            if head[:1] == b"\x80" and MAGIC.to_bytes(10, "little") not in head[:64]:
                raise UserError(_NO_MAGIC)
            if head[:1] == b"\x80":
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    return _read_legacy(data)
            raise UserError(f"not a PyTorch file: {_describe_other(head)}")
    except UserError as e:
        raise UserError(f"{printable(str(path), 300)}: {e}") from e.__cause__
    except OSError as e:
        raise UserError(
            f"{printable(str(path), 300)}: cannot be read ({e.strerror or e}); give a file of torch.save"
        ) from e


def _describe_other(head: bytes) -> str:
    if not head:
        return "an empty file; download or copy it again"
    if head[4:8] == b"TFL3":
        return "a model of TensorFlow Lite; give the run folder or .pth of the same encoder"
    if head[257:262] == b"ustar":
        return _ARCHIVE.format("tar", " (.pth.tar only sounds like one)", "tar -xf")
    return next(text for start, text in _OTHER_FORMATS.items() if head.lstrip().lower().startswith(start))


class _Storages:
    """Storages by key, allocated when first referred to; all of them together may not exceed the file's size."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.found: dict[str, tuple[StorageType, Storage]] = {}

    def get(self, key: str, kind: StorageType, count: int) -> Storage:
        """The storage of a key, zeros until `fill` is called."""
        if key not in self.found:
            self.budget -= count * kind.raw.itemsize
            if self.budget < 0:
                raise UserError(f"storage {key} claims {count} elements, more than the file holds; copy the file again")
            self.found[key] = kind, Storage(np.zeros(count, kind.dtype))
        known, storage = self.found[key]
        if known is not kind or len(storage.values) != count:
            raise UserError(f"storage {key} is referred to by two types or sizes; expected one; {REMEDY}")
        return storage

    def fill(self, key: str, data: bytes, order: Literal["<", ">"] = "<") -> None:
        kind, storage = self.found[key]
        size = len(storage.values) * kind.raw.itemsize
        if len(data) != size:
            raise UserError(f"storage {key} has {len(data)} bytes; expected {size}; download or copy the file again")
        storage.values[:] = kind.decode(data, order)


def _read_zip(path: pathlib.Path, file_size: int) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            root = _zip_root(entries)
            order = _zip_entry(archive, entries, root + "byteorder", 16) if root + "byteorder" in entries else b"little"
            if order not in (b"little", b"big"):
                raise UserError(f"byte order {printable(repr(order))}; expected little or big; copy the file again")
            storages = _Storages(file_size)
            data = _zip_entry(archive, entries, root + "data.pkl", min(file_size, MAX_PICKLE_BYTES))
            value = torch_pickle.load(io.BytesIO(data), storages.get)
            for key in storages.found:
                raw = _zip_entry(archive, entries, f"{root}data/{key}", file_size)
                storages.fill(key, raw, ">" if order == b"big" else "<")
            return value
    except DAMAGED as e:
        raise UserError(f"damaged or cut short ({printable(str(e))}); download or copy the file again") from e


def _zip_root(entries: Mapping[str, zipfile.ZipInfo]) -> str:
    roots = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise UserError("a zip archive without data.pkl, so not written by torch.save; give a .pth or .pth.tar file")
    if roots[0] + "constants.pkl" in entries:
        raise UserError(f"a TorchScript program; expected tensors; {REMEDY}")
    return roots[0]


def _zip_entry(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], name: str, limit: int) -> bytes:
    """An entry's bytes, if stored uncompressed, as torch.save does (no decompression bombs), and within the limit."""
    info = entries.get(name)
    if info is None:
        raise UserError(f"the entry {printable(name)} is missing; download or copy the file again")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise UserError(
            f"the entry {printable(name)} is compressed or encrypted; torch.save stores them plainly: {REMEDY}"
        )
    if info.file_size != info.compress_size or info.file_size > limit:
        raise UserError(
            f"the entry {printable(name)} claims {info.file_size} bytes, more than the file allows; copy it again"
        )
    return archive.read(info)


def _read_legacy(data: mmap.mmap) -> Any:
    storages = _Storages(len(data))
    if torch_pickle.load(data, _no_storage) != MAGIC:
        raise UserError(_NO_MAGIC)
    protocol, machine = torch_pickle.load(data, _no_storage), torch_pickle.load(data, _no_storage)
    if protocol != PROTOCOL or type(machine) is not dict or machine.get("little_endian") is not True:
        raise UserError(f"the legacy format's protocol is not {PROTOCOL} in little-endian order; {REMEDY}")
    value = torch_pickle.load(data, storages.get)
    keys = torch_pickle.load(data, _no_storage)
    if type(keys) is not list or len(keys) != len(storages.found) or any(key not in storages.found for key in keys):
        raise UserError("the list of storages does not fit the tensors; download or copy the file again")
    for key in keys:
        kind, storage = storages.found[key]
        count = data.read(8)
        if count != struct.pack("<q", len(storage.values)):
            raise UserError(f"storage {key} is cut short or of another length; download or copy the file again")
        storages.fill(key, data.read(len(storage.values) * kind.raw.itemsize))
    return value


def _no_storage(key: str, kind: StorageType, count: int) -> Storage:
    raise UserError("a tensor in the file's preamble; expected numbers; download or copy the file again")


def write_tensors(path: str | os.PathLike, state: Mapping[str, np.ndarray]) -> None:
    """Writes {name: array} as torch.save writes an OrderedDict of contiguous CPU tensors (zip format).

    torch.load(path, weights_only=True) reads it. The file appears under its name only when it is complete.

    Raises:
        UserError: a name that is no string, a dtype without a PyTorch storage, or a folder that cannot be written.
    """
    with replacing(pathlib.Path(path)) as draft:
        _write_archive(draft, state)


def _write_archive(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    arrays = {name: np.asarray(value) for name, value in state.items()}
    entries = {"data.pkl": _pickle(arrays), "byteorder": b"little", "version": b"3\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
        for key, value in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", value.astype(value.dtype.newbyteorder("<")).tobytes())


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The protocol 2 pickle of an OrderedDict of tensors; the n-th tensor lies in storage n."""
    ordered_dict = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    out = [pickle.PROTO, b"\x02", ordered_dict, pickle.MARK]
    for key, (name, value) in enumerate(arrays.items()):
        steps = np.cumprod((1, *value.shape[:0:-1]))[::-1].tolist() if value.ndim else ()  # elements, row-major
        out += [_plain(_checked(name)), pickle.GLOBAL, b"torch._utils\n_rebuild_tensor_v2\n", pickle.MARK]
        out += [pickle.MARK, _plain("storage"), pickle.GLOBAL, _storage_name(name, value), _plain(str(key))]
        out += [_plain("cpu"), _plain(value.size), pickle.TUPLE, pickle.BINPERSID, _plain(0), _plain(value.shape)]
        out += [_plain(tuple(steps)), pickle.NEWFALSE, ordered_dict, pickle.TUPLE, pickle.REDUCE]
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])


def _plain(value: object) -> bytes:
    """A string, a number or a tuple of numbers, without the opcodes around a pickle."""
    return pickle.dumps(value, 2)[2:-1]


def _checked(name: object) -> str:
    if not isinstance(name, str):
        raise UserError(f"a tensor's name is a {type(name).__name__}; expected a string")
    return name


def _storage_name(name: str, value: np.ndarray) -> bytes:
    for storage, kind in STORAGE_TYPES.items():
        if kind.raw == value.dtype.newbyteorder("=") and not kind.bfloat16:
            return storage.replace(" ", "\n").encode() + b"\n"
    raise UserError(
        f"{printable(name)} has dtype {value.dtype}, which PyTorch's files lack; convert it to float32 or int64"
    )
