"""What goes into a pack: the examples of a data set, their images encoded in parallel and in order, in shards."""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from moco_tf.data import packed
from moco_tf.data.packed import Shard
from moco_tf.data.records import UnreadableImages
from moco_tf.data.sets import tfds as tfds_source
from moco_tf.data.sets.find import load
from moco_tf.data.sources import RecordSource, decode_rgb
from moco_tf.data.views.geometry import resize_one

QUALITY = 90  # of JPEGs that are made smaller, where --quality does not say
SAMPLE = 64  # images whose bytes are part of a fingerprint
_STANDARD_SUM = 3688  # of the luminance quantisation table in the JPEG standard, annex K.1: quality 50
_FRAME = 16  # bytes of a record besides its data: length 8, checksum 4; checksum 4 after the data
_CHUNK = 32  # images handed over at once by tf.data


def original(dataset: str, split: str, data_dir: str | None) -> RecordSource:
    """A split of the data set, its images encoded and its names without the folder it lies in. Raises UserError."""
    source = load(dataset, split, data_dir)
    if isinstance(source, RecordSource):
        root = os.path.join(data_dir or tfds_source.default_dir(), "")
        everything = source.entries(np.arange(source.num_examples))

        def describe(index: int) -> str:
            return source.describe(index).removeprefix(root)

        return RecordSource(source.name, everything, source.read, describe, source.labels, source.class_names)

    images = source.images[..., :1] if source.images.strides[-1] == 0 else source.images  # grey ones shown as RGB

    def read(index: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.numpy_function(lambda i: np.ascontiguousarray(images[i]), [index], tf.uint8, stateful=False)
        return tf.io.encode_png(tf.ensure_shape(image, images.shape[1:])), label

    columns = (np.arange(source.num_examples), source.labels)
    return RecordSource(source.name, columns, read, lambda i: f"{split} {i}", source.labels, source.class_names)


def fingerprint(source: RecordSource) -> str:
    """SHA-256 of all names and labels, and of some images: whether an unfinished pack is of these images."""
    digest = hashlib.sha256()
    for index in range(source.num_examples):
        digest.update(os.fsencode(source.describe(index)) + b"\0")
    digest.update(b"" if source.labels is None else source.labels.tobytes())
    for index in np.unique(np.linspace(0, source.num_examples - 1, SAMPLE).astype(int)):
        try:
            with tf.device("/CPU:0"):
                data = source.read(*map(tf.convert_to_tensor, source.entries(index)))[0].numpy()
        except (tf.errors.OpError, UnicodeDecodeError):  # the latter when a message quotes a broken record
            data = b""
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def encoder(short_side: int, quality: int | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """A graph function from an image's bytes to those that are packed, both scalar strings; fails on unreadable ones.

    Args:
        short_side: in pixels; images with a larger one are resized to it. 0: every image is kept as it is.
        quality: 1 to 100 of the JPEGs encoded; JPEGs of a higher one are encoded again, too. None: QUALITY, and only
            what is resized is encoded.
    """

    def encode(data: tf.Tensor) -> tf.Tensor:
        image = decode_rgb(data)
        shape = tf.shape(image)[:2]
        short = tf.reduce_min(shape)
        size = short_side * shape // tf.maximum(short, 1)

        def again() -> tf.Tensor:
            smaller = tf.cond(short > short_side, lambda: resize_one(image, size[0], size[1]), lambda: image)
            return tf.cond(
                lossy(data),
                lambda: tf.io.encode_jpeg(smaller, quality=quality or QUALITY, optimize_size=True),
                lambda: tf.io.encode_png(smaller),
            )

        wanted = short > short_side if short_side else tf.constant(False)
        if quality:
            found = tf.numpy_function(_quality_of, [data], tf.int64, stateful=False)
            wanted |= tf.ensure_shape(found, []) > quality
        with tf.control_dependencies([short]):  # what is kept as it is must be readable, too
            return tf.cond(wanted, again, lambda: tf.identity(data))

    return encode


def lossy(data: tf.Tensor) -> tf.Tensor:
    """Whether the bytes are a JPEG or WebP: encoded again, they become a JPEG, and all others a PNG."""
    return tf.io.is_jpeg(data) | (tf.strings.substr(data, 0, 4) == b"RIFF")


def _quality_of(data: bytes | np.ndarray) -> int:
    return jpeg_quality(data if isinstance(data, bytes) else data.item())  # eagerly called, TensorFlow gives an array


def jpeg_quality(data: bytes) -> int:
    """The quality of a JPEG, 1 to 100, by the scale of its luminance quantisation table; 0 when it has none.

    Good to 1 from 25 on; below, where many entries stand at their largest value, it comes out higher.
    """
    at = 2
    while len(data) > at + 4 and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDB and data[at + 4] & 15 == 0:  # a quantisation table, number 0 the first of its segment
            wide = data[at + 4] >> 4  # 16 bits an entry, or 8
            table = np.frombuffer(data[at + 5 : at + 5 + (64 << wide)], ">u2" if wide else "u1")
            scale = 100 * float(table.sum()) / _STANDARD_SUM
            return int(np.clip(round(100 - scale / 2 if scale <= 100 else 5000 / scale), 1, 100))
        at += 2 + length
    return 0


def encoded(
    source: RecordSource,
    start: int,
    encode: Callable[[tf.Tensor], tf.Tensor],
    unreadable: UnreadableImages,
    workers: int,
) -> Iterator[tuple[int, bytes | None, int, str]]:
    """(index, encoded image, label, "") of each example from `start` on, in order.

    Of an unreadable one it is (index, None, -1, reason). Raises UserError when these are too many.
    """

    def one(index: tf.Tensor, *entries: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        data, label = source.read(*entries)
        return index, encode(data), label

    def again(index: int) -> tuple[int, bytes | None, int, str]:
        """For the reason: or was it a passing fault?"""
        try:
            with tf.device("/CPU:0"):
                _, data, label = one(index, *map(tf.convert_to_tensor, source.entries(index)))
            return index, data.numpy(), int(label), ""
        except (tf.errors.OpError, UnicodeDecodeError) as error:  # the latter when a message quotes the image's bytes
            message = error.message if isinstance(error, tf.errors.OpError) else "not an image"
            reason = " ".join(message.split("}} ")[-1].split(" [Op:")[0].split())[:200]
            unreadable.add(index, reason)
            return index, None, -1, reason

    indices = np.arange(start, source.num_examples)
    threads = tf.data.Options()
    threads.threading.private_threadpool_size = workers  # the process's own pool may have two threads
    threads.threading.max_intra_op_parallelism = 1
    with tf.device("/CPU:0"):
        dataset = tf.data.Dataset.from_tensor_slices((indices, *source.entries(indices)))
        dataset = dataset.map(one, num_parallel_calls=workers, deterministic=True).ignore_errors(log_warning=False)
        dataset = dataset.batch(_CHUNK).prefetch(1).with_options(threads)
    following = start
    for chunk in dataset.as_numpy_iterator():
        for index, data, label in zip(*chunk):
            yield from map(again, range(following, index))
            yield int(index), data, int(label), ""
            following = int(index) + 1
    yield from map(again, range(following, source.num_examples))


class ShardWriter:
    """Writes one shard under a hidden name; `close` gives it its own.

    Args:
        folder: of the pack.
        name: of the shard's files, without the extension.
        first: the source's index of the first example.

    Raises:
        UserError: in every method, when the folder cannot be written to.
    """

    def __init__(self, folder: pathlib.Path, name: str, first: int) -> None:
        self.size = 0
        self._folder, self._name, self._first = folder, name, first
        self._places: list[tuple[int, int, int]] = []
        self._skipped: list[tuple[int, str]] = []
        self._draft = folder / f".{name}.tfrecord"
        try:
            self._writer = tf.io.TFRecordWriter(str(self._draft))
        except (OSError, tf.errors.OpError) as error:
            raise packed.unwritable(folder, error) from None

    def fits(self, record: bytes, limit: float) -> bool:
        """Whether the shard stays within `limit` bytes with this record; an empty one takes any."""
        return not self._places or self.size + len(record) + _FRAME <= limit

    def add(self, record: bytes, label: int) -> None:
        """Appends what `example` made."""
        self._places.append((self.size + 12, len(record), label))
        self.size += len(record) + _FRAME
        try:
            self._writer.write(record)
        except (OSError, tf.errors.OpError) as error:
            raise packed.unwritable(self._folder, error) from None

    def skip(self, index: int, reason: str) -> None:
        """Notes an unreadable example."""
        self._skipped.append((index, reason))

    def close(self, stop: int) -> Shard:
        """Finishes the files; stop is the source's index after the last example, written or skipped."""
        draft = self._folder / f".{self._name}.npy"
        try:
            self._writer.close()
            np.save(draft, np.array(self._places, np.int64).reshape(-1, 3))
            paths = [self._folder / path.name[1:] for path in (self._draft, draft)]
            sums = [packed.checksum(path, to_disk=True) for path in (self._draft, draft)]
            sizes = [path.stat().st_size for path in (self._draft, draft)]
            os.replace(draft, paths[1])
            os.replace(self._draft, paths[0])
        except (OSError, tf.errors.OpError) as error:
            raise packed.unwritable(self._folder, error) from None
        count = len(self._places)
        return Shard(self._name, self._first, stop, count, sizes[0], sums[0], sizes[1], sums[1], self._skipped)


def example(image: bytes, label: int, name: str) -> bytes:
    """A record's data; the same bytes every time."""
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[os.fsencode(name)])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)
