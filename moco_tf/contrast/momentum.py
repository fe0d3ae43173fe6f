"""The key encoder follows the query encoder as a moving average."""

import tensorflow as tf

from moco_tf.networks.encoder import Encoder


def momentum_update(query_encoder: Encoder, key_encoder: Encoder, momentum: tf.Tensor | float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q (MoCo, section 3.2, equation 2).

    Parameters only: the running statistics of the key encoder's batch norms are its own and are never used for keys,
    which are computed with batch statistics.
    """
    for q, k in zip(query_encoder.parameters(), key_encoder.parameters(), strict=True):
        k.assign(k.value * momentum + q.value * (1.0 - momentum))


def copy_encoder(source: Encoder, target: Encoder) -> None:
    """Sets every variable of target, running statistics too, to source's; both must have the same structure."""
    sources, targets = source.named_variables(), target.named_variables()
    if sources.keys() != targets.keys():
        raise ValueError(f"encoders differ in {sorted(sources.keys() ^ targets.keys())[:4]}; build both alike")
    for name, variable in targets.items():
        variable.assign(sources[name].value)
