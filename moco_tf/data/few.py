"""A few images of a data set, to compare on."""

import itertools
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from moco_tf.data.sets import tfds as tfds_source
from moco_tf.data.sources import Source, load

# Sets of TensorFlow Datasets that are others here.
_PREPARED_AS = {"imagenet100": "imagenet2012"}


def images(dataset: str, data_dir: str | None, count: int) -> list[np.ndarray]:
    """The first readable images, uint8 HxWx3 each, as `sources.load` finds them. Raises UserError."""
    source = load(dataset, "train" if dataset in ("folder", "packed") else "test", data_dir)
    return list(itertools.islice(_readable(source), count))


def _readable(source: Source) -> Iterator[np.ndarray]:
    for index in range(source.num_examples):
        try:
            yield source.image(index)
        except (tf.errors.OpError, UnicodeDecodeError):  # the latter when a message quotes the image's bytes
            continue


def is_here(dataset: str, data_dir: str | None) -> bool:
    """Whether a data set seems to be on this machine, so that nothing would be downloaded."""
    if dataset in ("folder", "packed"):
        return bool(data_dir) and os.path.isdir(data_dir)
    name = re.split("[/:]", dataset)[0]
    folder = os.path.join(data_dir or tfds_source.default_dir(), _PREPARED_AS.get(name, name))
    if dataset == "fashion_mnist":
        from moco_tf.data.sets import fashion_mnist

        return os.path.isdir(folder) or os.path.isdir(data_dir or fashion_mnist.DEBIAN_DIR)
    return os.path.isdir(folder)
