"""SyncBN: batch normalisation with the mean and the variance of all ranks' batches."""

import tensorflow as tf

from moco_tf.training.collectives import Collectives


def normalise_over_ranks(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    shift: tf.Tensor,
    epsilon: float,
    collectives: Collectives,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Algorithm 1 of Ioffe and Szegedy (2015) over the global batch of n ranks with as many images each.

    Forward, the ranks average (E[x - s], E[(x - s)^2]); backward, of the gradient g in y and of x^ = (x - mean) / std

        dx = gamma / std (g - E[g] - x^ E[g x^]),   d gamma = sum g x^,   d beta = sum g

    the two expectations: one exchange of 2C numbers each way. d gamma and d beta are of this rank's images alone, as
    those of all parameters: they are averaged with them. Without the shift s the variance would be a difference of two
    large numbers where the mean is larger than the deviation.

    Args:
        x: BxHxWxC of this rank, any floating dtype.
        gamma, beta: C, float32 (or x's float64), in which all is computed.
        shift: s, C, near the mean and the same on all ranks; the running mean is both.
        epsilon: added to the variance.
        collectives: what crosses ranks.

    Returns:
        y, BxHxWxC in x's dtype; mean and unbiased variance of the global batch, C, through which no gradient flows.
    """
    wide = gamma.dtype

    @tf.custom_gradient
    def normalise(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple:
        shifted = tf.cast(x, wide) - shift
        mean, square = _over_ranks(shifted, tf.square(shifted), collectives)
        variance = tf.maximum(square - tf.square(mean), 0.0)
        inverse = tf.math.rsqrt(variance + epsilon)
        normal = (shifted - mean) * inverse

        def gradient(of_y: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            g = tf.cast(of_y, wide)
            mean_g, mean_gx = _over_ranks(g, g * normal, collectives)
            of_x = gamma * inverse * (g - mean_g - normal * mean_gx)
            return tf.cast(of_x, x.dtype), tf.reduce_sum(g * normal, [0, 1, 2]), tf.reduce_sum(g, [0, 1, 2])

        count = tf.cast(tf.size(x) // x.shape[-1] * collectives.size, wide)
        return (tf.cast(normal * gamma + beta, x.dtype), mean + shift, variance * count / (count - 1.0)), gradient

    y, mean, variance = normalise(x, gamma, beta)
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _over_ranks(x: tf.Tensor, other: tf.Tensor, collectives: Collectives) -> list[tf.Tensor]:
    """Each channel's mean of two BxHxWxC over the images of all ranks: C, C."""
    local = tf.stack([tf.reduce_mean(x, [0, 1, 2]), tf.reduce_mean(other, [0, 1, 2])])
    return tf.unstack(collectives.mean([local])[0])
