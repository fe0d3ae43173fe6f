"""Data sets: an ArraySource holds fixed-size images in memory, a RecordSource reads encoded images by index.

Both have: name, num_examples, class_names, num_classes (0 without labels), image_shape ((H, W), None when sizes vary),
labels (int32 N, -1 where there is none; None when they are known only once read) and image(index).
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from moco_tf.errors import UserError

SPLITS = ("train", "test")
MAX_PIXELS = 178_956_970  # 512 MiB of RGB; PIL draws the line against decompression bombs at the same place


class ArraySource:
    """Fixed-size images in memory: images uint8 NxHxWx3, labels int32 N.

    NxHxWx1 is accepted and shown as RGB without taking more memory. Without labels all of them are -1.
    """

    def __init__(
        self, name: str, images: np.ndarray, labels: np.ndarray | None = None, class_names: tuple[str, ...] = ()
    ) -> None:
        if images.shape[-1] == 1:
            images = np.broadcast_to(images, (*images.shape[:-1], 3))
        self.name = name
        self.images = images
        self.labels: np.ndarray | None = np.full(len(images), -1, np.int32)
        if labels is not None:
            self.labels = np.asarray(labels, np.int32)
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.num_examples = len(images)
        self.image_shape: tuple[int, int] | None = tuple(images.shape[1:3])

    def subset(self, indices: np.ndarray) -> "ArraySource":
        """The source of these examples alone."""
        return ArraySource(self.name, self.images[indices], self.labels[indices], self.class_names)

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 HxWx3."""
        return np.ascontiguousarray(self.images[index])


class RecordSource:
    """Encoded images of any size, read one by one and in any order.

    columns: arrays of one entry for each example; `read` gets one entry of each.
    read: graph function (*entries) -> (encoded bytes string, label int32), both scalars.
    describe: index -> path or other name of the example, for messages.
    read_span: see order.ReadAhead; None where neighbours are not stored one after another.
    """

    def __init__(
        self,
        name: str,
        columns: tuple[np.ndarray, ...],
        read: Callable[..., tuple[tf.Tensor, tf.Tensor]],
        describe: Callable[[int], str],
        labels: np.ndarray | None = None,
        class_names: tuple[str, ...] = (),
        read_span: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        self.name = name
        self.read = read
        self.read_span = read_span
        self.describe = describe
        self.labels = labels
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.num_examples = len(columns[0])
        self.image_shape: tuple[int, int] | None = None
        self._columns = columns

    def entries(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """What `read` takes, for each of the indices."""
        return tuple(column[indices] for column in self._columns)

    def subset(self, indices: np.ndarray) -> "RecordSource":
        """The source of these examples alone."""
        return RecordSource(
            self.name,
            self.entries(indices),
            self.read,
            lambda index: self.describe(int(indices[index])),
            None if self.labels is None else self.labels[indices],
            self.class_names,
            self.read_span and (lambda part: self.read_span(indices[part])),
        )

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 HxWx3. Raises tf.errors.OpError when it is unreadable."""
        with tf.device("/CPU:0"):
            data, _ = self.read(*(tf.constant(entry) for entry in self.entries(index)))
            return decode_rgb(data).numpy()


Source = ArraySource | RecordSource


def load(dataset: str, split: str, data_dir: str | None = None) -> Source:
    """The "train" or "test" split of "fashion_mnist", "imagenet100", "folder", "packed" or a TensorFlow Datasets name.

    "test" is the test split, or the validation split where there is no other. Raises UserError.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} came, expected one of {', '.join(SPLITS)}")
    # Imported here because they build on this file, and because TFDS is slow to import.
    if dataset == "fashion_mnist":
        from moco_tf.data import fashion_mnist

        return fashion_mnist.load(split, data_dir)
    if dataset == "imagenet100":
        from moco_tf.data import imagenet100

        return imagenet100.load(split, data_dir)
    if dataset == "folder":
        from moco_tf.data import folder

        return folder.load(split, data_dir)
    if dataset == "packed":
        from moco_tf.data import packed

        return packed.load(split, data_dir)
    from moco_tf.data import tfds_source

    return tfds_source.load(dataset, split, data_dir)


def decode_rgb(data: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, GIF (first frame), BMP or WebP bytes -> uint8 HxWx3. Fails on others and on more than MAX_PIXELS."""
    # The header is looked at first: a few kilobytes can promise gigabytes of pixels.
    fits = tf.debugging.assert_less_equal(_num_pixels(data), tf.constant(MAX_PIXELS, tf.int64), "too many pixels")
    with tf.control_dependencies([fits] if fits is not None else []):  # eager assertions return None
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _num_pixels(data: tf.Tensor) -> tf.Tensor:
    """Height times width in the header of a JPEG or PNG; 0 for the other formats, whose decoders set limits."""

    def of_jpeg() -> tf.Tensor:
        return tf.reduce_prod(tf.cast(tf.io.extract_jpeg_shape(data)[:2], tf.int64))

    def of_png() -> tf.Tensor:  # width and height are big-endian, at bytes 16 and 20
        digits = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.uint8), tf.int64)  # 8
        return tf.reduce_prod(
            tf.linalg.matvec(tf.reshape(digits, [2, 4]), tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64))
        )

    def of_other() -> tf.Tensor:
        return tf.constant(0, tf.int64)

    is_png = tf.logical_and(tf.strings.length(data) >= 24, tf.strings.substr(data, 0, 4) == b"\x89PNG")
    return tf.cond(tf.io.is_jpeg(data), of_jpeg, lambda: tf.cond(is_png, of_png, of_other))
