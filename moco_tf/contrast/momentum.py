"""The key encoder follows the query encoder as a moving average."""

import tensorflow as tf

from moco_tf.networks.encoder import Encoder


def momentum_update(query_encoder: Encoder, key_encoder: Encoder, momentum: tf.Tensor | float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q (MoCo, section 3.2, equation 2).

    Parameters only: the running statistics of the key encoder's batch norms are its own and are never used for keys,
    which are computed with batch statistics.
    """
    momentum = tf.cast(momentum, tf.float64)  # 1 - m keeps its digits
    for q, k in zip(query_encoder.parameters(), key_encoder.parameters(), strict=True):
        k.assign(k.value * tf.cast(momentum, k.dtype) + q.value * tf.cast(1.0 - momentum, k.dtype))


def start_as_copy(key_encoder: Encoder, query_encoder: Encoder) -> Encoder:
    """The key encoder, frozen, with all variables of the query encoder's; both must have the same structure."""
    sources, targets = query_encoder.named_variables(), key_encoder.named_variables()
    if sources.keys() != targets.keys():
        raise ValueError(f"encoders differ in {sorted(sources.keys() ^ targets.keys())[:4]}; build both alike")
    for name, variable in targets.items():
        variable.assign(sources[name].value)
    key_encoder.trainable = False
    return key_encoder
