"""50,000 random images of 32x32 in memory, as CIFAR-10 has: --dataset=benchmarks.random_images."""

import numpy as np

from moco_tf.data.sources import ArraySource


def load(split: str, data_dir: str | None) -> ArraySource:
    """The images of a split, which are the same in every process."""
    count = {"train": 50_000, "test": 1_000}[split]
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return ArraySource("random images", images, rng.integers(0, 10, count), tuple(map(str, range(10))))
