"""Data sets: an ArraySource holds fixed-size images in memory, a RecordSource reads encoded images by index.

Both have: name, num_examples, class_names, num_classes (0 without labels), fixed_size (whether all images have one
size), image_shape ((H, W), None when sizes vary), labels (int32 N, -1 where there is none; None when they are known
only once read), read_span, subset(indices) and image(index). data/sets/find.py loads them by name.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from moco_tf.data.image_bounds import within_bounds


class ArraySource:
    """Fixed-size images in memory.

    Args:
        name: of the data set, for messages.
        images: uint8 NxHxWx3; NxHxWx1 is shown as RGB without taking more memory.
        labels: int32 N; without them all are -1.
        class_names: of the labels 0, 1, 2 ...
    """

    fixed_size = True
    read_span: Callable[[np.ndarray], None] | None = None

    def __init__(
        self, name: str, images: np.ndarray, labels: np.ndarray | None = None, class_names: tuple[str, ...] = ()
    ) -> None:
        if images.shape[-1] == 1:
            images = np.broadcast_to(images, (*images.shape[:-1], 3))
        self.name = name
        self.images = images
        self.labels = np.full(len(images), -1, np.int32) if labels is None else np.asarray(labels, np.int32)
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.num_examples = len(images)
        self.image_shape: tuple[int, int] | None = images.shape[1:3]

    def subset(self, indices: np.ndarray) -> "ArraySource":
        """The source of these examples alone."""
        return ArraySource(self.name, self.images[indices], self.labels[indices], self.class_names)

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 HxWx3."""
        return np.ascontiguousarray(self.images[index])


class RecordSource:
    """Encoded images of any size, read one by one and in any order.

    Args:
        name: of the data set, for messages.
        columns: arrays of one entry for each example; `read` gets one entry of each.
        read: graph function (*entries) -> (encoded bytes string, label int32), both scalars.
        describe: index -> path or other name of the example, for messages.
        labels: int32 N, -1 where there is none; None when they are known only once read.
        class_names: of the labels 0, 1, 2 ...
        read_span: see order.ReadAhead; None where neighbours are not stored one after another.
    """

    fixed_size = False

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

    def entries(self, indices: np.ndarray | int) -> tuple[np.ndarray, ...]:
        """What `read` takes, for each of the indices, or for one."""
        return tuple(column[indices] for column in self._columns)

    def subset(self, indices: np.ndarray) -> "RecordSource":
        """The source of these examples alone."""
        labels, span = None if self.labels is None else self.labels[indices], self.read_span
        return RecordSource(
            self.name,
            self.entries(indices),
            self.read,
            lambda index: self.describe(int(indices[index])),
            labels,
            self.class_names,
            span and (lambda part: span(indices[part])),
        )

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 HxWx3. Raises tf.errors.OpError when it is unreadable."""
        with tf.device("/CPU:0"):
            data, _ = self.read(*(tf.constant(entry) for entry in self.entries(index)))
            return decode_rgb(data).numpy()


Source = ArraySource | RecordSource


def decode_rgb(data: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, GIF (first frame), BMP or WebP bytes -> uint8 HxWx3. Fails on others and on too many pixels."""
    image = tf.io.decode_image(within_bounds(data), channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])
