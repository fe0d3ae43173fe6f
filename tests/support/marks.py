"""Marks of tests that need what is not everywhere."""

import os

import pytest

from moco_tf.data.sets.fashion_mnist import DEBIAN_DIR

needs_fashion_mnist = pytest.mark.skipif(
    not os.path.isdir(DEBIAN_DIR), reason=f"no Fashion-MNIST in {DEBIAN_DIR}: apt-get install dataset-fashion-mnist"
)
