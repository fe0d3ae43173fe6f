"""Classification by nearest neighbours in the feature space.

N rows of the bank, Q queries, C feature dimension, k neighbours, L classes.
"""

import numpy as np
import tensorflow as tf

WEIGHTINGS = ("weighted", "majority")


def classify(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    num_classes: int,
    k: int,
    temperature: float = 0.1,
    weighting: str = "weighted",
    chunk: int = 65536,
    query_chunk: int = 1024,
) -> np.ndarray:
    """Ranks the classes of each query by its k nearest bank rows, the likeliest first: QxL int32.

        score of a class = sum over the neighbours with that label of  exp(s / temperature)   "weighted"
                                                                       1                      "majority"

    with s the inner product. "weighted" is Wu et al., 2018, section 3.4, the monitor of the CIFAR-10 demo; "majority"
    is moco.tensorflow's. Classes of equal score keep the order of their labels.

    Args:
        bank: normalised features, NxC; a memory map will do.
        bank_labels: in [0, L), N.
        queries: normalised features, QxC.
        num_classes: L.
        k: number of neighbours.
        temperature: of the weights.
        weighting: "weighted" or "majority".
        chunk, query_chunk: rows of the bank and queries that are compared at a time; bound the memory, leave the
            result alone.
    """
    bank_labels = np.asarray(bank_labels)
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; expected 'weighted' or 'majority'")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    if len(bank_labels) != len(bank):
        raise ValueError(f"{len(bank_labels)} labels for a bank of {len(bank)} rows; expected one for each row")
    if bank_labels.min() < 0 or bank_labels.max() >= num_classes:
        raise ValueError(
            f"bank labels lie in {bank_labels.min()}..{bank_labels.max()}; expected 0..{num_classes - 1}, "
            "drop unlabelled rows or raise num_classes"
        )
    similarities, neighbours = nearest(bank, queries, k, chunk, query_chunk)  # both Qxk
    ranked = np.empty((len(queries), num_classes), np.int32)
    for start in range(0, len(queries), query_chunk):
        rows = slice(start, start + query_chunk)
        # Against the nearest: the same ranking as exp(s / temperature), and no temperature overflows.
        relative = similarities[rows].astype(np.float64) - similarities[rows, :1]
        weights = np.exp(relative / temperature) if weighting == "weighted" else np.ones_like(relative)
        scores = _class_scores(bank_labels[neighbours[rows]], weights, num_classes)
        ranked[rows] = np.argsort(-scores, axis=1, kind="stable")
    return ranked


def nearest(
    bank: np.ndarray, queries: np.ndarray, k: int, chunk: int = 65536, query_chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k bank rows of largest inner product with each query, the nearest first; the lower row first among equals.

    The bank passes once, chunk by chunk: it may be larger than the device's memory, which holds the queries. Long
    chunks are faster, as top_k costs most at the start of each.

    Returns:
        Inner products, Qxk float32, and row numbers, Qxk int64.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k} with a bank of {len(bank)} rows; expected 1 to {len(bank)}, lower k")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank rows have {bank.shape[1]} dimensions, queries {queries.shape[1]}; expected the same")
    if min(chunk, query_chunk) < 1:
        raise ValueError(f"chunks are {chunk} and {query_chunk}; expected 1 or more")
    blocks = [tf.constant(queries[i : i + query_chunk], tf.float32) for i in range(0, len(queries), query_chunk)]
    best = [(tf.zeros([len(block), 0]), tf.zeros([len(block), 0], tf.int64)) for block in blocks]
    for start in range(0, len(bank), chunk):
        rows = tf.constant(bank[start : start + chunk], tf.float32)
        best = [_merge(*found, block, rows, start, k) for found, block in zip(best, blocks)]
    return tuple(np.concatenate([part.numpy() for part in parts]) for parts in zip(*best))


def accuracy(ranked: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Share of queries whose label ranks first, and among the first five: two floats in [0, 1]."""
    hits = ranked[:, :5] == np.asarray(labels)[:, None]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean())


def _merge(
    similarities: tf.Tensor, neighbours: tf.Tensor, queries: tf.Tensor, rows: tf.Tensor, first_row: int, k: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best of those found so far and of a chunk of the bank."""
    products = tf.matmul(queries, rows, transpose_b=True)
    # top_k puts the lower position first among equals; those found before stand before, in order: ties stay exact.
    new, position = tf.math.top_k(products, min(k, rows.shape[0]))
    similarities = tf.concat([similarities, new], axis=1)
    neighbours = tf.concat([neighbours, tf.cast(position, tf.int64) + first_row], axis=1)
    similarities, position = tf.math.top_k(similarities, min(k, similarities.shape[1]))
    return similarities, tf.gather(neighbours, position, batch_dims=1)


def _class_scores(labels: np.ndarray, weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Sums the weights of each class: Qxk, Qxk to QxL."""
    cells = np.arange(len(labels))[:, None] * num_classes + labels
    scores = np.bincount(cells.ravel(), weights.ravel(), minlength=len(labels) * num_classes)
    return scores.reshape(len(labels), num_classes)
