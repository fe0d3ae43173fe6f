"""The original form of ShuffleBN, to compare with: every rank gathers all images and keeps its shuffled part."""

import tensorflow as tf

from moco_tf.contrast.shuffle_bn import shuffled_rows
from moco_tf.training.collectives import Collectives


def shuffle(images: tf.Tensor, permutation: tf.Tensor, collectives: Collectives) -> tf.Tensor:
    """What `shuffle_bn.shuffle` returns: BxHxWxC in and out. But G - B images reach a rank, not at most B."""
    every = collectives.allgather(images)  # GxHxWxC
    return tf.gather(every, shuffled_rows(permutation, images.shape[0], collectives))
