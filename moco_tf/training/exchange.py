"""The exchange of a step: gradients, metrics and a rank's wish to stop, averaged over ranks."""

import tensorflow as tf

from moco_tf.training.collectives import Collectives, compressed_mean
from moco_tf.training.stop import StopRequest


def averaged(
    collectives: Collectives,
    stop: StopRequest,
    gradients: list[tf.Tensor],
    metrics: dict[str, tf.Tensor],
    compression: str = "none",
) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
    """Means over ranks of gradients and of scalar metrics; every rank learns whether one was asked to stop.

    Args:
        collectives: what crosses ranks.
        stop: this rank's request goes along; what all agreed on is set.
        gradients: of this rank.
        metrics: of this rank.
        compression: "float16" sends gradients in half the bytes; "none" as they are.
    """
    numbers = [*metrics.values(), *tf.unstack(stop.asked)]
    values = tf.stack([tf.cast(x, gradients[0].dtype) for x in numbers])
    if compression == "none":
        *gradients, values = collectives.mean([*gradients, values])  # one exchange
    else:
        gradients = compressed_mean(collectives, gradients, compression)
        (values,) = collectives.mean([values])  # few bytes, as they are
    *values, requeue, interrupt = tf.unstack(values)
    stop.agreed.assign(tf.cast([requeue, interrupt], tf.float32))
    return gradients, dict(zip(metrics, values, strict=True))
