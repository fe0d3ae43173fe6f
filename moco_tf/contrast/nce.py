"""Noise-contrastive estimation against a memory bank: NPID (Wu et al., 2018, section 3.2 and 3.3).

B per-rank batch, M noise rows per image, C feature dimension, n number of images and of bank rows.
"""

import tensorflow as tf


def nce_loss(similarities: tf.Tensor, temperature: float, z: tf.Tensor | float, num_examples: int) -> tf.Tensor:
    """Tells each image's own bank row from M uniform ones (NPID, equation 7): scalar, the mean over the batch of

        -log( P_0 / (P_0 + M/n) ) - sum_j log( (M/n) / (P_j + M/n) ),   P_j = exp(s_j / temperature) / Z

    with j = 0 the own row.

    Args:
        similarities: s, inner products of normalised features with the own row, then with M rows drawn uniformly from
            the bank, Bx(1+M).
        temperature: tau.
        z: Z, of normalisation_constant.
        num_examples: n.
    """
    noise = similarities.shape[1] - 1
    # log(n P / M): the two terms are then a logistic regression, which keeps its digits where P is large or tiny.
    log_odds = similarities / temperature - tf.math.log(z) - tf.math.log(noise / num_examples)
    own, others = tf.nn.softplus(-log_odds[:, 0]), tf.nn.softplus(log_odds[:, 1:])
    return tf.reduce_mean(own + tf.reduce_sum(others, axis=1))


def normalisation_constant(similarities: tf.Tensor, temperature: float, num_examples: int) -> tf.Tensor:
    """Z = n times the mean of exp(s / temperature): a Monte Carlo estimate on the first batch, kept ever after; scalar.

    NPID, equation 8. As in the public code, own rows take part in the mean; arguments as of nce_loss.
    """
    return num_examples * tf.reduce_mean(tf.exp(similarities / temperature))


def update_rows(old: tf.Tensor, new: tf.Tensor, momentum: float) -> tf.Tensor:
    """normalise(momentum new + (1 - momentum) old), BxC: what the bank holds of these images from now on.

    The momentum weighs the new features, as in leftthomas/MoCo; the paper's authors weigh the old ones by it. The
    recipe's 0.5 is the same in both.
    """
    return tf.math.l2_normalize(momentum * new + (1.0 - momentum) * old, axis=1)
