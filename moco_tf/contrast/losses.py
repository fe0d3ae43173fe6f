"""InfoNCE against a queue of keys, or against the keys of the global batch.

B per-rank batch, G global batch, C feature dimension, K queue size.
"""

import tensorflow as tf


def info_nce_logits(q: tf.Tensor, k: tf.Tensor, queue: tf.Tensor, temperature: float) -> tf.Tensor:
    """Similarities of each query with its key and with the queue, over the temperature: Bx(1+K) float32.

    Args:
        q: normalised queries, BxC.
        k: normalised keys of the same images, BxC; no gradient flows into them.
        queue: normalised negative keys, KxC.
        temperature: tau.
    """
    l_pos = tf.einsum("bc,bc->b", q, tf.stop_gradient(k))[:, None]  # Bx1
    l_neg = tf.einsum("bc,kc->bk", q, tf.stop_gradient(queue))  # BxK
    return tf.concat([l_pos, l_neg], axis=1) / temperature


def info_nce(logits: tf.Tensor) -> tf.Tensor:
    """Mean over the batch of -log softmax(logits)[0], the InfoNCE loss (MoCo, section 3.1, equation 1): scalar."""
    # -log softmax = softplus(log-sum-exp of the negatives - the positive): keeps the digits of a loss near 0 and of its
    # gradient, which 1 + small and 1 - softmax would round off.
    return tf.reduce_mean(tf.nn.softplus(tf.reduce_logsumexp(logits[:, 1:], axis=1) - logits[:, 0]))


def info_nce_of_batch(
    q: tf.Tensor, keys: tf.Tensor, first_key: int, temperature: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The InfoNCE loss against the keys of the global batch, times 2 tau (MoCo v3, algorithm 1), and its accuracy.

    Args:
        q: normalised queries of this rank, BxC.
        keys: normalised keys of all ranks, GxC; no gradient flows into them.
        first_key: where the keys of this rank's images begin; query i's is row first_key + i.
        temperature: tau.

    Returns:
        The loss, the share of queries whose own key is the nearest, and among the five nearest: scalars.
    """
    logits = tf.einsum("bc,gc->bg", q, tf.stop_gradient(keys)) / temperature  # BxG
    own = tf.range(q.shape[0]) + first_key
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(own, logits))
    return 2.0 * temperature * loss, *nearest_is_positive(logits, tf.range(keys.shape[0])[None, :] == own[:, None])


def contrast_accuracy(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Share of queries whose own key is the nearest candidate, and among the five nearest: two scalars in [0, 1]."""
    return nearest_is_positive(logits, tf.range(logits.shape[1])[None, :] == 0)


def nearest_is_positive(similarities: tf.Tensor, positive: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Share of anchors whose nearest candidate is a positive, and with one among the five nearest: two scalars.

    A candidate that is as near as the nearest positive, or not a number, stands before it: an encoder that gives all
    images the same features is right nowhere.

    Args:
        similarities: BxA.
        positive: whether a candidate is an anchor's positive, of a shape that broadcasts to BxA bool.
    """
    best = tf.reduce_max(tf.where(positive, similarities, similarities.dtype.min), axis=1, keepdims=True)
    nearer = tf.reduce_sum(tf.cast(~((similarities < best) | positive), tf.int32), axis=1)
    return tuple(tf.reduce_mean(tf.cast(nearer < n, tf.float32)) for n in (1, 5))
