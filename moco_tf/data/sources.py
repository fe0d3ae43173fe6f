"""Data sets: an ArraySource holds fixed-size images in memory, a RecordSource reads encoded images by index.

Both have: name, num_examples, class_names, num_classes (0 without labels), image_shape ((H, W), None when sizes vary),
labels (int32 N, -1 where there is none; None when they are known only once read) and image(index).
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from moco_tf.data.image_bounds import within_bounds
from moco_tf.errors import UserError

SPLITS = ("train", "test")


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
        from moco_tf.data.sets import fashion_mnist

        return fashion_mnist.load(split, data_dir)
    if dataset == "imagenet100":
        from moco_tf.data.sets import imagenet100

        return imagenet100.load(split, data_dir)
    if dataset == "folder":
        from moco_tf.data.sets import folder

        return folder.load(split, data_dir)
    if dataset == "packed":
        from moco_tf.data import packed

        return packed.load(split, data_dir)
    from moco_tf.data.sets import tfds as tfds_source

    return tfds_source.load(dataset, split, data_dir)


def decode_rgb(data: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, GIF (first frame), BMP or WebP bytes -> uint8 HxWx3. Fails on others and on too many pixels."""
    image = tf.io.decode_image(within_bounds(data), channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])
