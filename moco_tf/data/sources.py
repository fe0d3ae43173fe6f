"""Data sets: an ArraySource holds fixed-size images in memory, a RecordSource reads encoded images by index.

Both have: name, num_examples, class_names, num_classes (0 without labels), fixed_size (whether all images have one
size), image_shape ((H, W), None when sizes vary), labels (int32 N, -1 where there is none; None when they are known
only once read), read_span, subset(indices) and image(index). data/sets/find.py loads them by name.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from moco_tf.data.decoding import decode_rgb
from moco_tf.errors import UserError


class ArraySource:
    """Fixed-size images in memory.

    Args:
        name: of the data set, for messages.
        images: uint8 NxHxWx3; NxHxWx1 is shown as RGB without taking more memory.
        labels: int32 N; without them all are -1.
        class_names: of the labels 0, 1, 2 ...

    Raises:
        UserError: the images are no such array.
    """

    fixed_size = True
    read_span: Callable[[np.ndarray], None] | None = None

    def __init__(
        self, name: str, images: np.ndarray, labels: np.ndarray | None = None, class_names: tuple[str, ...] = ()
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"{name}: images of {images.dtype} and shape {images.shape} came, expected uint8 from 0 to 255 of "
                "NxHxWx3 or NxHxWx1; floats from 0 to 1 are np.uint8(np.round(255 * images))"
            )
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

    def labelled(self, labels: np.ndarray, class_names: tuple[str, ...]) -> "ArraySource":
        """The same images with other labels, int32 N."""
        return ArraySource(self.name, self.images, labels, class_names)

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 HxWx3."""
        return np.ascontiguousarray(self.images[index])


@dataclasses.dataclass
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
        white: of images of more than 8 bits a channel, see decoding.decode_rgb; 0: they are not read.
        split: "train" or "test", where that is known: the images of one split are counted by themselves.
        whole: of a part of a split, how many images that has; 0: it is no part.
    """

    name: str
    columns: tuple[np.ndarray, ...]
    read: Callable[..., tuple[tf.Tensor, tf.Tensor]]
    describe: Callable[[int], str]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    read_span: Callable[[np.ndarray], None] | None = None
    white: int = 0
    split: str = ""
    whole: int = 0

    fixed_size = False

    def __post_init__(self) -> None:
        self.class_names = tuple(self.class_names)
        self.num_classes = len(self.class_names)
        self.num_examples = len(self.columns[0])
        self.image_shape: tuple[int, int] | None = None

    def entries(self, indices: np.ndarray | int) -> tuple[np.ndarray, ...]:
        """What `read` takes, for each of the indices, or for one."""
        return tuple(column[indices] for column in self.columns)

    def subset(self, indices: np.ndarray) -> "RecordSource":
        """The source of these examples alone."""
        describe, span = self.describe, self.read_span
        return dataclasses.replace(
            self,
            columns=self.entries(indices),
            describe=lambda index: describe(int(indices[index])),
            labels=None if self.labels is None else self.labels[indices],
            read_span=span and (lambda part: span(indices[part])),
            whole=self.whole or self.num_examples,
        )

    def labelled(self, labels: np.ndarray, class_names: tuple[str, ...]) -> "RecordSource":
        """The same images with other labels, int32 N."""
        read = self.read
        return dataclasses.replace(
            self,
            columns=(labels, *self.columns),
            read=lambda label, *entries: (read(*entries)[0], label),
            labels=labels,
            class_names=class_names,
        )

    def decode(self, data: tf.Tensor) -> tf.Tensor:
        """Encoded bytes -> uint8 HxWx3. Raises tf.errors.OpError when they are unreadable."""
        return decode_rgb(data, self.white)

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 HxWx3. Raises tf.errors.OpError when it is unreadable."""
        with tf.device("/CPU:0"):
            data, _ = self.read(*(tf.constant(entry) for entry in self.entries(index)))
            return self.decode(data).numpy()


Source = ArraySource | RecordSource
