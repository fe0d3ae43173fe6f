"""The project's own packed images: few large TFRecord files with an index, read in any order as folders are.

A pack is a folder. moco_tf/pack.py writes it, and what stands in it under these names is whole:

    index.json            format, source, settings, class names, and each shard's size and SHA-256
    train-00000.tfrecord  tf.train.Example records: image (encoded bytes), label (int64, -1: none), name (bytes)
    train-00000.npy       int64 Nx3, for each of its records: offset and length of the data in bytes, label
    README.md             the data card; unreadable.txt beside it lists what was left out
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from moco_tf.data.order import span_reader
from moco_tf.data.sets.find import SPLITS
from moco_tf.data.sources import RecordSource
from moco_tf.errors import UserError

INDEX, CARD, UNREADABLE = "index.json", "README.md", "unreadable.txt"
FORMAT, VERSION = "moco_tf packed images", 1
_OWN = re.compile(rf"index\.json|README\.md|unreadable\.txt|({'|'.join(SPLITS)})-\d{{5,}}\.(tfrecord|npy)|\..*")
_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}")
_AGAIN = "remove it and run the command in README.md again, or copy the pack again"
_THREADS = 16  # hundreds of files on a disk with some latency


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard: the readable ones of the source's examples first..stop-1, in their order."""

    name: str  # of its files, without the extension
    first: int
    stop: int
    records: int
    bytes: int  # of the .tfrecord
    sha256: str
    places_bytes: int  # of the .npy
    places_sha256: str
    skipped: list  # (index, reason) of each unreadable example

    def files(self, folder: pathlib.Path) -> tuple[tuple[pathlib.Path, int, str], ...]:
        """(path, size in bytes, SHA-256) of its two files."""
        records, places = (folder / f"{self.name}.{extension}" for extension in ("tfrecord", "npy"))
        return (records, self.bytes, self.sha256), (places, self.places_bytes, self.places_sha256)


@dataclasses.dataclass
class Index:
    """What index.json holds besides the format.

    source: the data set's name, and for each split how many examples it has and a fingerprint of them.
    settings: how the images were treated.
    """

    source: dict
    settings: dict
    class_names: list[str]
    splits: dict[str, list[Shard]]
    finished: bool = False

    def shards(self) -> list[Shard]:
        """Those of all splits."""
        return [shard for shards in self.splits.values() for shard in shards]


def checksum(path: pathlib.Path, to_disk: bool = False) -> str:
    """SHA-256 of a file in hexadecimal; to_disk waits until the disk has it."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        if to_disk:
            os.fsync(file.fileno())
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def unwritable(folder: pathlib.Path, error: Exception) -> UserError:
    """The error of a pack that the system refuses to write."""
    reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
    return UserError(f"--output={folder} cannot be written ({reason}); make room or give another folder")


def write_index(folder: pathlib.Path, index: Index) -> None:
    """Writes index.json at once; the index before it stays if this is interrupted."""
    about = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(index)}
    write_text(folder / INDEX, json.dumps(about, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file at once. Raises UserError."""
    draft = path.with_name(f".{path.name}")
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(draft, path)
    except OSError as error:
        raise unwritable(path.parent, error) from None


def read_index(folder: pathlib.Path) -> Index:
    """What index.json says. Raises UserError when it is missing, damaged or something else."""
    path = folder / INDEX
    expected = "expected a folder that moco_tf.pack wrote"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {INDEX}, {expected}; give one, or pack images into it") from None
    except (OSError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} cannot be read ({reason}), {expected}; copy the pack again") from None
    if not isinstance(about, dict) or about.pop("format", None) != FORMAT:
        raise UserError(f"{path} is no index of a pack, {expected}; give another folder")
    if (version := about.pop("version", None)) != VERSION:
        raise UserError(f"{path} is of version {version}, expected {VERSION}; pack the images again, or update moco_tf")
    try:
        about["splits"] = {split: [Shard(**shard) for shard in shards] for split, shards in about["splits"].items()}
        index = Index(**about)
        whole = all(_NAME.fullmatch(s.name) and s.records >= 0 <= s.first < s.stop for s in index.shards())
        whole = whole and (not index.finished or all(index.splits.values()))
        whole = whole and {*index.source} == {"dataset", *index.splits} and isinstance(index.settings, dict)
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: entries are missing or wrong, {expected}; copy the pack again")
    return index


def foreign(folder: pathlib.Path) -> list[str]:
    """Names in the folder that are no part of a pack; hidden ones are passed over."""
    return sorted(name for name in os.listdir(folder) if not _OWN.fullmatch(name))


def wrong_size(folder: pathlib.Path, shard: Shard) -> str | None:
    """What is wrong with the sizes of a shard's files; None when nothing is."""
    for path, expected, _ in shard.files(folder):
        try:
            size = path.stat().st_size
        except OSError as error:
            return f"{path} cannot be read ({error.strerror}), expected {expected} bytes by {INDEX}"
        if size != expected:
            return f"{path}: {size} bytes came, expected {expected} by {INDEX}"
    return None


def damage(folder: pathlib.Path, shard: Shard) -> str | None:
    """What is wrong with a shard's files, by sizes and checksums; None when nothing is."""
    if found := wrong_size(folder, shard):
        return found
    for path, _, expected in shard.files(folder):
        try:
            digest = checksum(path)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        if digest != expected:
            return f"{path}: the SHA-256 {digest[:12]}... came, expected {expected[:12]}... by {INDEX}"
    return None


def verify(folder: pathlib.Path, threads: int) -> Index:
    """Reads everything and compares it with the index. Raises UserError."""
    index = read_finished(folder)
    if strange := foreign(folder):
        raise UserError(f"{folder} holds {strange[0]!r} ({len(strange)} such), which is no part of the pack; remove it")
    with ThreadPoolExecutor(threads) as pool:
        found = list(filter(None, pool.map(lambda shard: damage(folder, shard), index.shards())))
    if found:
        more = f" ({len(found)} such shards of {len(index.shards())})" if len(found) > 1 else ""
        raise UserError(f"{found[0]}{more}; {_AGAIN}")
    return index


def read_finished(folder: pathlib.Path) -> Index:
    """The index of a finished pack. Raises UserError."""
    index = read_index(folder)
    if not index.finished:
        raise UserError(f"{folder} is an unfinished pack; run the command again that began it, which goes on with it")
    return index


def places(folder: pathlib.Path, shard: Shard) -> np.ndarray:
    """Offset and length in bytes, and label, of a shard's records, int64 Nx3. Raises UserError."""
    if found := wrong_size(folder, shard):
        raise UserError(f"{found}; {_AGAIN}")
    path, _, expected = shard.files(folder)[1]
    try:
        data = path.read_bytes()  # at most a thousandth of the shard: its checksum costs nothing
        found = np.load(io.BytesIO(data)) if hashlib.sha256(data).hexdigest() == expected else np.zeros(0)
    except (OSError, ValueError):
        found = np.zeros(0)
    whole = found.shape == (shard.records, 3) and found.dtype == np.int64
    # A place outside of the shard would have memory of any size asked for.
    if not whole or (found[:, :2] < 0).any() or (found[:, 0] > shard.bytes - found[:, 1]).any():
        raise UserError(f"{path} is damaged, expected the places of {shard.records} records by {INDEX}; {_AGAIN}")
    return found


def is_here(data_dir: str | None) -> bool:
    """Whether the folder is there."""
    return bool(data_dir) and os.path.isdir(data_dir or "")


def load(split: str, data_dir: str | None) -> RecordSource:
    """The "train" or "test" split of a pack, in the order of what was packed. Checks all sizes. Raises UserError."""
    if not data_dir:
        raise UserError("--dataset=packed came without --data_dir; give the folder that moco_tf.pack wrote")
    folder = pathlib.Path(data_dir)
    index = read_finished(folder)
    if split not in index.splits:
        raise UserError(f"{folder} has the splits {', '.join(index.splits)}, expected {split}; pack it, too")
    shards = index.splits[split]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda shard: places(folder, shard), shards))
    paths = [str(shard.files(folder)[0][0]) for shard in shards]
    file = np.repeat(np.arange(len(paths)), [shard.records for shard in shards])
    offset, length, labels = np.concatenate(found).T
    labels = labels.astype(np.int32)

    def read_bytes(file: np.ndarray, offset: np.ndarray, length: np.ndarray) -> bytes:
        with open(paths[file], "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), int(length), int(offset))

    def read(file: tf.Tensor, offset: tf.Tensor, length: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        record = tf.numpy_function(read_bytes, [file, offset, length], tf.string, stateful=False)
        features = {"image": tf.io.FixedLenFeature([], tf.string)}
        return tf.io.parse_single_example(tf.ensure_shape(record, []), features)["image"], label

    def describe(index: int) -> str:
        try:
            record = tf.train.Example.FromString(read_bytes(file[index], offset[index], length[index]))
            return os.fsdecode(record.features.feature["name"].bytes_list.value[0])
        except (OSError, DecodeError, IndexError):
            return f"{paths[file[index]]} record at byte {offset[index]}"

    columns, span = (file, offset, length, labels), span_reader(paths, file, offset, length)
    return RecordSource("packed", columns, read, describe, labels, tuple(index.class_names), span)
