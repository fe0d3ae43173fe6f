"""Writes images as a data set that TensorFlow Datasets (TFDS) reads.

The pack NAME is the folder NAME/1.0.0 with

    NAME-train.tfrecord-00000-of-00012        records of image (encoded), label (int64, -1: none) and file_name
    NAME-train.tfrecord-00000-of-00012.npy    the label of each example of the shard, int32; SKIPPED: it was unreadable
    pack.json                                 what is packed and how, so that an interrupted pack can be continued
    unreadable.txt                            what was left out, one line of name, tab, reason each
    dataset_info.json, features.json ...      TFDS's own, written when all shards are there

A shard holds a fixed part of the examples and appears when it is whole.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm

from moco_tf.data.decoding import in_python
from moco_tf.data.order import EVERYTHING
from moco_tf.data.records import BadImages, RecordReader, UnreadableImages
from moco_tf.data.sets import find, tfds
from moco_tf.data.sources import ArraySource, RecordSource
from moco_tf.errors import UserError
from moco_tf.training.files import write_whole

VERSION = "1.0.0"
SKIPPED = -2  # in place of a label
SAMPLE = 64  # images that say how large the encoded ones are
_PAUSE = 0.5 if sys.stderr.isatty() else 10.0  # seconds between two redraws of the progress bar
_CHUNK = 32  # images handed over at once by tf.data

Shape = tuple[int | None, int | None, int]  # height, width, channels; None: it varies
ANY_SHAPE: Shape = (None, None, 3)


def original(dataset: str, split: str, data_dir: str | None, short_side: int) -> tuple[RecordSource, Shape]:
    """A split of the data set with its images encoded, and the shape that packed images have.

    Args:
        dataset, split, data_dir: of sets.find.load.
        short_side: in pixels, to which larger images are resized; 0: none are.

    Raises:
        UserError: it cannot be loaded.
    """
    source = find.load(dataset, split, data_dir)
    if isinstance(source, ArraySource):
        return _encoded(source, split), _shape(source, short_side)
    root, read = os.path.join(data_dir or tfds.default_dir(), ""), source.describe
    return dataclasses.replace(source, describe=lambda i: read(i).removeprefix(root), read_span=None), ANY_SHAPE


def _encoded(source: ArraySource, split: str) -> RecordSource:
    """The same images as PNGs."""
    images = _as_stored(source)

    def read(index: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = in_python(lambda i: np.ascontiguousarray(images[i]), [index], tf.uint8)
        return tf.io.encode_png(tf.ensure_shape(image, images.shape[1:])), label

    columns = (np.arange(source.num_examples), source.labels)
    return RecordSource(source.name, columns, read, lambda i: f"{split} {i}", source.labels, source.class_names)


def _as_stored(source: ArraySource) -> np.ndarray:
    """NxHxWxC: grey images, which a source shows as RGB, have one channel."""
    return source.images[..., :1] if source.images.strides[-1] == 0 else source.images


def _shape(source: ArraySource, short_side: int) -> Shape:
    height, width, channels = _as_stored(source).shape[1:]
    return ANY_SHAPE if 0 < short_side < min(height, width) else (height, width, channels)


def survey(source: RecordSource, encode: Callable[[tf.Tensor], tf.Tensor], shard_bytes: float) -> dict[str, int | str]:
    """What pack.json says of a split: its examples, in how many shards, and whether they are the same as before.

    Args:
        source: the images, encoded.
        encode: of reencoding.encoder.
        shard_bytes: of a shard; the size of all images is estimated from a sample.
    """
    digest, sizes = hashlib.sha256(), []
    for index in range(source.num_examples):
        digest.update(os.fsencode(source.describe(index)) + b"\0")
    digest.update(b"" if source.labels is None else source.labels.tobytes())
    for index in np.unique(np.linspace(0, source.num_examples - 1, SAMPLE).astype(int)):
        try:
            with tf.device("/CPU:0"):
                data = source.read(*map(tf.convert_to_tensor, source.entries(int(index))))[0]
                digest.update(hashlib.sha256(data.numpy()).digest())
                sizes.append(len(encode(data).numpy()))
        except (tf.errors.OpError, UnicodeDecodeError):  # the latter when a message quotes a broken record
            continue
    shards = round(float(np.mean(sizes or [0])) * source.num_examples / shard_bytes + 0.5)
    return {
        "examples": source.num_examples,
        "shards": min(max(1, shards), source.num_examples),
        "fingerprint": digest.hexdigest(),
    }


@contextlib.contextmanager
def only_one(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from packing into it. Raises UserError, also for a full disk."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # of file systems without locks
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(f"{folder} is being packed by another process; wait for it") from None
            yield
        finally:
            os.close(handle)
    except (OSError, tf.errors.OpError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise UserError(f"{folder} cannot be written ({reason}); make room or give another folder") from None


def begin(folder: pathlib.Path, about: dict[str, Any]) -> None:
    """Writes pack.json, or compares it with the one that is there. Raises UserError when that is of other images."""
    path = folder / "pack.json"
    if not path.exists():
        if strange := [name for name in os.listdir(folder) if not name.startswith(".")]:
            raise UserError(f"{folder} holds {strange[0]!r} and is no pack, expected an empty folder; give another one")
        write_whole(path, json.dumps(about, indent=1) + "\n")
        return
    try:
        there = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove {folder} to pack the images again") from None
    if other := [name for name in {**about, **there} if there.get(name) != about.get(name)]:
        raise UserError(
            f"{folder} is a pack with other {', '.join(other)}, expected one of the same images and settings (see "
            "pack.json); give another --output, or remove this one"
        )


def pack_split(
    folder: pathlib.Path,
    split: str,
    source: RecordSource,
    encode: Callable[[tf.Tensor], tf.Tensor],
    shards: int,
    max_bad_images: int,
) -> list[pathlib.Path]:
    """Writes those shards of a split that are not there yet; returns the files of all.

    Args:
        folder: NAME/1.0.0.
        split: its name.
        source: of the images.
        encode: of reencoding.encoder.
        shards: in how many the images are packed.
        max_bad_images: unreadable images that are left out; at one more it stops.

    Raises:
        UserError: too many images are unreadable.
    """
    unreadable = UnreadableImages(source, BadImages(max_bad_images, str(folder / "unreadable.txt")), EVERYTHING)
    reader = RecordReader(source, lambda data, _: (encode(data),), unreadable)
    paths = [folder / f"{folder.parent.name}-{split}.tfrecord-{i:05}-of-{shards:05}" for i in range(shards)]
    parts = np.array_split(np.arange(source.num_examples), shards)
    missing = []
    for path, indices in zip(paths, parts):
        if path.exists() and len(labels := labels_of(path)) == len(indices):
            for index in indices[labels == SKIPPED]:
                unreadable.add(int(index), "was unreadable before")
        else:
            missing.append((path, indices))
    wanted = np.concatenate([np.arange(0), *(indices for _, indices in missing)])
    records = _records(source, reader, wanted)
    record = next(records, None)
    with tqdm.tqdm(total=len(wanted), desc=split, unit="image", dynamic_ncols=True, mininterval=_PAUSE) as bar:
        for path, indices in missing:
            with _shard(path, indices) as add:
                while record and record[0] <= indices[-1]:
                    add(*record)
                    record = next(records, None)
            bar.update(len(indices))
    return paths


def labels_of(path: pathlib.Path) -> np.ndarray:
    """The labels beside a shard; none where the file is missing or damaged."""
    try:
        return np.load(f"{path}.npy")
    except (OSError, ValueError, EOFError):
        return np.zeros(0, np.int32)


def _records(source: RecordSource, reader: RecordReader, indices: np.ndarray) -> Iterator[tuple[int, int, bytes]]:
    """(index, label, record) of each readable image, in the order of the indices: one pipeline for all shards."""
    for images, labels, chosen in reader.batches(indices, lambda i: np.zeros((len(i), 0), np.int32), _CHUNK):
        for image, label, index in zip(np.asarray(images), labels, chosen):
            yield int(index), int(label), _example(image, int(label), source.describe(int(index)))


@contextlib.contextmanager
def _shard(path: pathlib.Path, indices: np.ndarray) -> Iterator[Callable[[int, int, bytes], None]]:
    """Gives what adds (index, label, record) of an example to the shard; in the end the shard gets its name."""
    draft, labels = path.with_name(f".{path.name}"), np.full(len(indices), SKIPPED, np.int32)
    with tf.io.TFRecordWriter(str(draft)) as writer:

        def add(index: int, label: int, record: bytes) -> None:
            labels[index - indices[0]] = label
            writer.write(record)

        yield add
    np.save(draft, labels)
    for name in (f"{draft}.npy", str(draft)):
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(name, path.parent / os.path.basename(name)[1:])


def _example(image: bytes, label: int, name: str) -> bytes:
    """A record's data; the same bytes every time."""
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "file_name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[os.fsencode(name)])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def write_metadata(
    folder: pathlib.Path, splits: dict[str, list[pathlib.Path]], sources: dict[str, tuple[RecordSource, Shape]]
) -> None:
    """Writes what TFDS needs beside the shards, from the files of each split and what they were made of."""
    import tensorflow_datasets

    core, features = tensorflow_datasets.core, tensorflow_datasets.features
    (source, shape), *others = sources.values()
    shape = shape if all(other == shape for _, other in others) else ANY_SHAPE
    spec = {"image": features.Image(shape=shape), "file_name": features.Text()}
    if source.class_names:
        spec["label"] = features.ClassLabel(names=list(source.class_names))
    infos = []
    for split, paths in splits.items():
        counts = [int((labels_of(path) != SKIPPED).sum()) for path in paths]
        named = {"dataset_name": folder.parent.name, "split": split, "filetype_suffix": "tfrecord"}
        template = core.ShardedFileTemplate(folder, **named)
        size = sum(path.stat().st_size for path in paths)
        infos.append(core.SplitInfo(name=split, shard_lengths=counts, num_bytes=size, filename_template=template))
    tensorflow_datasets.folder_dataset.write_metadata(
        data_dir=folder,
        features=spec,
        split_infos=infos,
        description=f"Images of {source.name}, packed by moco_tf.pack; pack.json says how.",
        check_data=False,
    )


def verify(folder: pathlib.Path) -> dict[str, int]:
    """Reads all records, each of which has a checksum, and counts them by split. Raises UserError."""
    import tensorflow_datasets

    path = folder
    try:
        splits = tensorflow_datasets.builder_from_directory(folder).info.splits
        for info in splits.values():
            for path, expected in zip(info.filepaths, info.shard_lengths):
                found = sum(1 for _ in tf.data.TFRecordDataset(str(path)))
                if found != expected:
                    raise ValueError(f"{found} records came, expected {expected}")
    except (OSError, tf.errors.OpError, ValueError) as error:
        reason = " ".join(str(error).split("}} ")[-1].split(" [Op:")[0].split())[:300]
        raise UserError(f"{path} is no whole pack or shard ({reason}); remove it and pack again, or copy it") from None
    return {split: info.num_examples for split, info in splits.items()}
