"""What the ranks of test_collectives.py are given: numbers, images, an encoder that looks at its whole batch."""

import numpy as np
import tensorflow as tf

from moco_tf.contrast import shuffle_bn

BATCH = 6
STEPS = {"float64": 2, "float32": 1}


def gradients(rank):
    """Two tensors, 15 numbers (no multiple of the ranks) of sizes that half precision holds to a few digits."""
    rng = np.random.default_rng([11, rank])
    return [rng.normal(0, 1e-3, (3, 4)).astype(np.float32), rng.normal(0, 5, 3).astype(np.float32)]


def images(rank):
    return np.random.default_rng([13, rank]).integers(0, 256, (BATCH, 4, 4, 3), np.uint8)


def keys(shuffle, own, permutation, collectives):
    """(keys of the own images, of all) by a form of the shuffle: each depends on all images encoded with it."""
    shuffled = tf.cast(shuffle(own, permutation, collectives), tf.float32)
    encoded = tf.reshape(shuffled - tf.reduce_mean(shuffled, axis=0), [BATCH, -1])
    return shuffle_bn.unshuffle(encoded, permutation, collectives)
