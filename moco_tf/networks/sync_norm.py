"""SyncBN: batch normalisation with the mean and the variance of all ranks' batches.

Algorithm 1 of Ioffe and Szegedy (2015) over the global batch of n ranks with as many images each. Forward, the ranks
average their own mean m and variance v: 3C numbers, with a shift s that is near all means,

    mean = s + E[m - s],   variance = E[v] + E[(m - s)^2] - E[m - s]^2

Backward, of the gradient g in y and of x^ = (x - mean) / std, they average two expectations, 2C numbers:

    dx = gamma / std (g - E[g] - x^ E[g x^]),   d gamma = sum g x^,   d beta = sum g

d gamma and d beta are of a rank's images alone, as all parameters' gradients, with which they are averaged.
E[x^2] - E[x]^2 would be shorter, but loses digits where the mean is larger than the deviation: five times the error of
the fused kernel in a ResNet's first gradients, as measured.
"""

import tensorflow as tf

from moco_tf.training.collectives import Collectives

_PIXELS = [0, 1, 2]  # of all images: all axes but the channels


def normalise_over_ranks(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    shift: tf.Tensor,
    epsilon: float,
    collectives: Collectives,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises with the statistics of all ranks' batches, see above.

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
        own = tf.reduce_mean(shifted, _PIXELS)
        own_variance = tf.reduce_mean(tf.square(shifted - own), _PIXELS)
        mean, square, within = _over_ranks([own, tf.square(own), own_variance], collectives)
        variance = within + tf.maximum(square - tf.square(mean), 0.0)
        inverse = tf.math.rsqrt(variance + epsilon)
        normal = (shifted - mean) * inverse

        def gradient(of_y: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            g = tf.cast(of_y, wide)
            of_beta, of_gamma = tf.reduce_sum(g, _PIXELS), tf.reduce_sum(g * normal, _PIXELS)
            mean_g, mean_gx = _over_ranks([of_beta / here, of_gamma / here], collectives)
            of_x = gamma * inverse * (g - mean_g - normal * mean_gx)
            return tf.cast(of_x, x.dtype), of_gamma, of_beta

        here = tf.cast(tf.size(x) // x.shape[-1], wide)
        count = here * collectives.size
        return (tf.cast(normal * gamma + beta, x.dtype), mean + shift, variance * count / (count - 1.0)), gradient

    y, mean, variance = normalise(x, gamma, beta)
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _over_ranks(values: list[tf.Tensor], collectives: Collectives) -> list[tf.Tensor]:
    """The means over ranks of some vectors of C, in one exchange."""
    return tf.unstack(collectives.mean([tf.stack(values)])[0])
