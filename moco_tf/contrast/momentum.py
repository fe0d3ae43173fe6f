"""The key encoder follows the query encoder as a moving average."""

from itertools import zip_longest

import tensorflow as tf

from moco_tf.networks.encoder import Encoder
from moco_tf.training import device


def momentum_update(query_encoder: Encoder, key_encoder: Encoder, momentum: tf.Tensor | float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q (MoCo, section 3.2, equation 2).

    Parameters only: the running statistics of the key encoder's batch norms are its own and are never used for keys,
    which are computed with batch statistics.
    """
    momentum = tf.cast(momentum, tf.float64)  # 1 - m keeps its digits
    move = _move if device.has_gpu() else _move_in_place
    for q, k in zip(query_encoder.parameters(), key_encoder.parameters(), strict=True):
        move(k.value, q.value, momentum)


def _move(k: tf.Variable, q: tf.Variable, momentum: tf.Tensor) -> None:
    k.assign(k * tf.cast(momentum, k.dtype) + q * tf.cast(1.0 - momentum, k.dtype))


def _move_in_place(k: tf.Variable, q: tf.Variable, momentum: tf.Tensor) -> None:
    """The same in one pass over memory, which is all of its time on a CPU, instead of two products and a sum.

    The op, which a GPU lacks, computes (k - alpha q) / (1 + alpha l2): alpha = -(1 - m)/m and l2 = -1 make that m k +
    (1 - m) q, rounded as little. An m of 0 becomes the least one that still has a reciprocal: k is then q to rounding.
    """
    momentum = tf.maximum(momentum, 1e-30)
    zero = tf.zeros([], k.dtype)
    alpha = tf.cast((momentum - 1.0) / momentum, k.dtype)
    tf.raw_ops.ResourceApplyProximalGradientDescent(var=k.handle, alpha=alpha, l1=zero, l2=zero - 1, delta=q)


def start_as_copy(key_encoder: Encoder, query_encoder: Encoder) -> Encoder:
    """The key encoder, frozen, with the values of all variables of the query encoder; both have the same structure.

    Raises:
        ValueError: they differ; variables are paired in order and compared by shape.
    """
    sources, targets = query_encoder.named_variables(), key_encoder.named_variables()
    pairs = zip_longest(sources.items(), targets.items(), fillvalue=("nothing", None))
    for (source, value), (target, variable) in pairs:
        if value is None or variable is None or value.shape != variable.shape:
            raise ValueError(f"the key encoder has {target} where the query encoder has {source}; build both alike")
    for source, target in zip(sources.values(), targets.values(), strict=True):
        target.assign(source.value)
    key_encoder.trainable = False
    return key_encoder
