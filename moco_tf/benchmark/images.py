"""Random images: batches on the device, and stand-ins for data sets that are not there."""

import dataclasses
import re

import numpy as np
import tensorflow as tf

from moco_tf.data.sources import ArraySource, Source
from moco_tf.methods.base import Method

# Data sets of small images, which are cropped in the step: (side in pixels, classes, training images).
_SMALL = {
    "mnist": (28, 10, 60_000),
    "fashion_mnist": (28, 10, 60_000),
    "cifar10": (32, 10, 50_000),
    "cifar100": (32, 100, 50_000),
    "svhn_cropped": (32, 10, 73_257),
    "stl10": (96, 10, 5_000),
}


@dataclasses.dataclass(frozen=True)
class Photos:
    """A stand-in for a set of photographs of many sizes, which reach the step cropped: of ImageNet's dimensions."""

    name: str = "random photographs"
    num_examples: int = 1_281_167
    num_classes: int = 1000
    image_shape: tuple[int, int] | None = None
    fixed_size: bool = False


def stand_in(dataset: str) -> ArraySource | Photos:
    """What a data set's name promises of its images, without its images."""
    base = re.split("[/:]", dataset)[0]  # without TFDS's configuration and version
    if base not in _SMALL:
        return Photos()
    side, classes, count = _SMALL[base]
    black = np.broadcast_to(np.uint8(0), (count, side, side, 3))  # takes no memory, and is only looked at for its shape
    return ArraySource(f"random {side}x{side} images", black, class_names=tuple(map(str, range(classes))))


def as_stored(method: Method, source: Source | Photos, image_size: int, batch: int) -> tuple:
    """A batch as the pipeline hands it to train_step, of random uint8 images on the device: (images, labels, indices).

    Images are whole where the step crops them (an ArraySource), or one crop, or two, of image_size.
    """
    rng = np.random.default_rng(0)
    side = source.image_shape if source.fixed_size else (image_size, image_size)
    number = 1 if source.fixed_size else method.num_views
    images = [tf.constant(rng.integers(0, 256, (batch, *side, 3), np.uint8)) for _ in range(number)]
    return (tuple(images) if number > 1 else images[0], *_labels_and_indices(rng, source, batch))


def prepared(source: Source | Photos, image_size: int, batch: int) -> tuple:
    """A batch whose views are taken: ((first, second) BxSxSx3 float32, labels, indices), on the device."""
    rng = np.random.default_rng(0)
    shape = (batch, image_size, image_size, 3)
    images = tuple(tf.constant(rng.standard_normal(shape, np.float32)) for _ in range(2))
    return (images, *_labels_and_indices(rng, source, batch))


def _labels_and_indices(rng: np.random.Generator, source: Source | Photos, batch: int) -> tuple[tf.Tensor, tf.Tensor]:
    labels = rng.integers(0, max(1, source.num_classes), batch, np.int32)
    return tf.constant(labels), tf.constant(np.arange(batch, dtype=np.int64) % source.num_examples)
