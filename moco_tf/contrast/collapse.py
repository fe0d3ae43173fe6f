"""Is the encoder collapsing? Numbers to watch beside the loss, which alone does not tell."""

import math

import tensorflow as tf

# Below this share of 1/sqrt(C) nearly all images have the same feature.
COLLAPSED = 0.05


def feature_std(features: tf.Tensor) -> tf.Tensor:
    """Standard deviation over the batch of normalised features BxC, averaged over the C dimensions: scalar.

    1/sqrt(C) when the features spread evenly over the sphere, 0 when they have collapsed to one point (Chen and He,
    2021, "Exploring Simple Siamese Representation Learning", section 4.1).
    """
    return tf.reduce_mean(tf.math.reduce_std(features, axis=0))


def has_collapsed(std: float, feature_dim: int) -> bool:
    """Whether a feature_std, of C = feature_dim, says so."""
    return std * math.sqrt(feature_dim) < COLLAPSED


def still_random(steps_done: tf.Tensor, rows_a_step: int, size: int) -> tf.Tensor:
    """Share of a queue's (or bank's) rows that no image has filled yet, after this many steps: scalar in [0, 1]."""
    return tf.maximum(0.0, 1.0 - tf.cast(steps_done * rows_a_step, tf.float32) / size)
