"""A few images of a data set, to compare on."""

import itertools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from moco_tf.data.sets import find, tfds
from moco_tf.data.sources import RecordSource, Source
from moco_tf.errors import UserError


def images(dataset: str, data_dir: str | None, count: int) -> list[np.ndarray]:
    """The first readable test images (training images where there are none), uint8 HxWx3 each. Raises UserError."""
    try:
        source = find.load(dataset, "test", data_dir)
    except UserError:
        source = find.load(dataset, "train", data_dir)
    return list(itertools.islice(_readable(source), count))


def _readable(source: Source) -> Iterator[np.ndarray]:
    for index in range(source.num_examples):
        try:
            yield source.image(index)
        except (tf.errors.OpError, UnicodeDecodeError):  # the latter when a message quotes the image's bytes
            name = source.describe(index) if isinstance(source, RecordSource) else index
            print(f"passed over, for it cannot be read: {name}", flush=True)


def is_here(dataset: str, data_dir: str | None) -> bool:
    """Whether a data set seems to be on this machine, so that nothing would be downloaded."""
    try:
        own = find.module(dataset)
    except UserError:
        return False
    return getattr(own, "is_here", lambda data_dir: False)(data_dir) if own else tfds.is_here(dataset, data_dir)
