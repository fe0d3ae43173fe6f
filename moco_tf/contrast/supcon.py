"""Supervised contrastive losses: three against a queue of keys, and those within a batch.

B per-rank batch, G global batch, V views of an image, C feature dimension, K queue size, A candidates of an anchor, P
its positives. All features are normalised float32; s is the inner product of anchor and candidate over the temperature.
A label of -1 is none: such a candidate is no one's positive, and stays in the denominator; such an anchor has its own
key (or its own other views) as positive alone.

SupCon is Khosla et al., 2020, "Supervised Contrastive Learning", numbered as there.
"""

import tensorflow as tf

from moco_tf.contrast.losses import nearest_is_positive

_NOT_A_CANDIDATE = -1e30  # exp of it is 0; infinite, it would make gradients NaN where a row holds nothing else


def against_keys(
    q: tf.Tensor,
    k: tf.Tensor,
    queue: tf.Tensor,
    labels: tf.Tensor,
    key_labels: tf.Tensor,
    queue_labels: tf.Tensor,
    temperature: float,
    first_key: tf.Tensor | int = 0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """s and which candidates are positives, where those are the keys of the global batch and the queue.

    Args:
        q: queries, BxC; the gradient flows into them alone.
        k: keys of the global batch, GxC.
        queue: as before this step's enqueue, KxC.
        labels: of the queries, B.
        key_labels: G.
        queue_labels: K; -1 for rows that no batch has filled yet.
        temperature: tau.
        first_key: the row of k that is the first query's own key: rank times B. The others follow in order.

    Returns:
        Two of Bx(G+K): s in q's dtype, and bool.
    """
    candidates = tf.stop_gradient(tf.concat([k, queue], axis=0))  # (G+K)xC
    s = tf.einsum("bc,ac->ba", q, candidates) / temperature
    own_key = _diagonal(tf.shape(q)[0], tf.shape(candidates)[0], first_key)
    return s, _same_label(labels, tf.concat([key_labels, queue_labels], axis=0)) | own_key


def supcon_in(s: tf.Tensor, positive: tf.Tensor) -> tf.Tensor:
    """Mean of -log( 1/|P| sum_P exp s / sum_A exp s ): SupCon equation 3, the sum inside the logarithm; scalar.

    Arguments as against_keys returns them; each anchor has a positive.
    """
    # sum_P / sum_A = sigmoid(LSE_P - LSE_rest): keeps the digits of a loss near 0, which LSE_A - LSE_P would round off.
    margin = _log_sum_exp(s, positive) - _log_sum_exp(s, ~positive)
    return tf.reduce_mean(tf.nn.softplus(-margin) + tf.math.log(_count(positive)))


def supcon_out(s: tf.Tensor, positive: tf.Tensor) -> tf.Tensor:
    """Mean of -1/(|P| + 1e-5) sum_P log( exp s / sum_A exp s ): SupCon equation 2, the sum outside; scalar.

    Arguments as of supcon_in. The 1e-5 is MoCo v2 + SupContrast's, not the paper's.
    """
    return tf.reduce_mean(-_sum_positive(tf.nn.log_softmax(s), positive) / (_count(positive) + 1e-5))


def supcon_suploss(
    q: tf.Tensor,
    k: tf.Tensor,
    queue: tf.Tensor,
    labels: tf.Tensor,
    queue_labels: tf.Tensor,
    temperature: float,
) -> tf.Tensor:
    """Mean of -1/|P| sum_P log( exp s / sum_A exp s ), SupCon equation 2 with both views and a queue; scalar.

    Candidates are the other queries, the keys of the same images, the own one among them, and the queue. The gradient
    flows into q as anchor and as candidate.

    Public code gives unfilled queue rows a label that some image may have; here -1 keeps them from being positives.

    Args:
        q: queries of this rank, BxC.
        k: keys of the same images, BxC.
        queue: KxC.
        labels: of the images, B.
        queue_labels: K; -1 for rows that no batch has filled yet.
        temperature: tau.
    """
    others = tf.stop_gradient(tf.concat([k, queue], axis=0))
    candidates = tf.concat([q, others], axis=0)  # (2B+K)xC
    s = tf.einsum("bc,ac->ba", q, candidates) / temperature  # Bx(2B+K)
    batch, count = tf.shape(q)[0], tf.shape(candidates)[0]
    own, own_key = _diagonal(batch, count, 0), _diagonal(batch, count, batch)
    positive = _same_label(labels, tf.concat([labels, labels, queue_labels], axis=0)) & ~own | own_key
    log_p = tf.nn.log_softmax(tf.where(own, _NOT_A_CANDIDATE, s))
    return tf.reduce_mean(-_sum_positive(log_p, positive) / _count(positive))


def supcon_batch(
    features: tf.Tensor,
    labels: tf.Tensor | None = None,
    temperature: float = 0.07,
    contrast_mode: str = "all",
    base_temperature: float | None = None,
) -> tf.Tensor:
    """Mean over anchors of -1/|P| sum_P log( exp s / sum_A exp s ) within a batch: SupCon equation 2; scalar.

    Candidates are all views of all images but the anchor itself. Without labels, positives are the other views of the
    anchor's image: SimCLR's NT-Xent (Chen et al., 2020, equation 1) with two views. The gradient flows into all
    features. An anchor without any positive, possible with one view, counts as 0.

    Args:
        features: BxVxC.
        labels: B, or None.
        temperature: tau.
        contrast_mode: anchors are "all" views, or "one", the first of each image.
        base_temperature: multiplies the loss by temperature / base_temperature, as the authors' code (0.07 there);
            None for the paper's loss as it stands.
    """
    if contrast_mode not in ("all", "one"):
        raise ValueError(f"contrast_mode is {contrast_mode!r}; expected 'all' or 'one'")
    if features.shape.rank != 3:
        raise ValueError(f"features have shape {features.shape}; expected batch x views x dimensions")
    batch, views = tf.shape(features)[0], features.shape[1]
    candidates = tf.reshape(tf.transpose(features, [1, 0, 2]), [views * batch, -1])  # VBxC, the first views first
    anchors = candidates if contrast_mode == "all" else features[:, 0]
    s = tf.einsum("nc,ac->na", anchors, candidates) / temperature  # VBxVB or BxVB
    count = tf.shape(anchors)[0]
    own = _diagonal(count, views * batch, 0)
    images = tf.tile(tf.range(batch), [views])
    positive = images[:count, None] == images[None, :]
    if labels is not None:
        labels = tf.tile(labels, [views])
        positive |= _same_label(labels[:count], labels)
    positive &= ~own
    log_p = tf.nn.log_softmax(tf.where(own, tf.cast(_NOT_A_CANDIDATE, s.dtype), s))
    loss = tf.reduce_mean(-_sum_positive(log_p, positive) / tf.cast(tf.maximum(_count(positive), 1.0), s.dtype))
    return loss if base_temperature is None else loss * (temperature / base_temperature)


def batch_accuracy(features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Share of first views to which the same image's second is the nearest of all, and among the five nearest.

    Features BxVxC to two scalars.
    """
    batch, views = features.shape[0], features.shape[1]
    candidates = tf.reshape(tf.transpose(features, [1, 0, 2]), [views * batch, -1])
    own = _diagonal(batch, views * batch, 0)
    s = tf.einsum("nc,ac->na", features[:, 0], candidates)
    s = tf.where(own, tf.cast(_NOT_A_CANDIDATE, s.dtype), s)
    return nearest_is_positive(s, _diagonal(batch, views * batch, batch))


def _same_label(labels: tf.Tensor, candidate_labels: tf.Tensor) -> tf.Tensor:
    """Whether anchor and candidate have the same label, -1 never: bool, anchors x candidates."""
    return (labels[:, None] == candidate_labels[None, :]) & (labels[:, None] >= 0)


def _diagonal(rows: tf.Tensor | int, columns: tf.Tensor | int, first: tf.Tensor | int) -> tf.Tensor:
    """True in row i at column first + i: bool, rows x columns."""
    return tf.range(columns)[None, :] == tf.range(rows)[:, None] + first


def _log_sum_exp(s: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """log of the sum of exp s where the mask holds, of each row; about -1e30 where it never does."""
    return tf.reduce_logsumexp(tf.where(mask, s, _NOT_A_CANDIDATE), axis=1)


def _sum_positive(log_p: tf.Tensor, positive: tf.Tensor) -> tf.Tensor:
    # where, not a product: a masked log-probability is -1e30.
    return tf.reduce_sum(tf.where(positive, log_p, tf.zeros_like(log_p)), axis=1)


def _count(positive: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(positive, tf.float32), axis=1)
