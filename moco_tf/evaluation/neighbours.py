"""Classification by nearest neighbours in the feature space, exact however the rows are cut into chunks and ranks.

N rows of the bank, Q queries, C feature dimension, k neighbours, L classes, R ranks.

Memory of a rank: its share of the bank 4 N C / R bytes, the queries twice 4 Q C, a chunk of the bank in float32 and
float64 12 chunk C, the products 8 chunk query_chunk, the neighbours 16 Q k. Measured with ImageNet's 1,281,167 rows of
2048, which are 10.5 GB, k = 200 and 256 queries: 12.7 GB at the peak of a process, TensorFlow in it. Its 50,000 queries
would add 1.2 GB (computed): 13.9 GB in one process, 4.7 GB on each of 8 ranks. A bank that is a memory map is read
once, chunk by chunk, and takes no memory of its own.
"""

import numpy as np
import tensorflow as tf

from moco_tf.evaluation import features
from moco_tf.training.collectives import Collectives, SingleProcess

WEIGHTINGS = ("weighted", "majority")
CHUNK, QUERY_CHUNK = 32768, 1024
# Multiples of 2^-26, whose products are multiples of 2^-52: float64 holds every sum of them up to 2 without rounding.
_GRAIN = 2.0**26

Pair = tuple[tf.Tensor, tf.Tensor]  # similarities Qxk and rows Qxk of the best found so far


class Normalised:
    """Rows of length one of an array, which may be a memory map: computed where they are taken.

    Args:
        rows: NxC.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self._rows, self.shape = rows, rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        return features.normalised(np.asarray(self._rows[chosen], np.float32))


def classify(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    num_classes: int,
    k: int,
    temperature: float = 0.1,
    weighting: str = "weighted",
    chunk: int = CHUNK,
    query_chunk: int = QUERY_CHUNK,
    rows: np.ndarray | None = None,
    collectives: Collectives | None = None,
) -> np.ndarray:
    """Ranks the classes of each query by its k nearest bank rows, the likeliest first: QxL int32.

    See `nearest_labels` for the neighbours and `rank_classes` for the scores.

    Args:
        bank, bank_labels, queries, k, chunk, query_chunk, rows, collectives: of `nearest_labels`.
        num_classes, temperature, weighting: of `rank_classes`.
    """
    check_labels(bank_labels, num_classes)
    found = nearest_labels(bank, bank_labels, queries, k, chunk, query_chunk, rows, collectives)
    return rank_classes(*found, num_classes, temperature, weighting)


def nearest_labels(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    k: int,
    chunk: int = CHUNK,
    query_chunk: int = QUERY_CHUNK,
    rows: np.ndarray | None = None,
    collectives: Collectives | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products with the k nearest rows and their labels: Qxk float64, Qxk int32, the same on every rank.

    The nearest comes first, the lower row number among equals. The first columns are the neighbours for any smaller k.

    Args:
        bank: normalised features of this rank, NxC.
        bank_labels: N.
        queries: normalised features, QxC, the same on every rank.
        k: number of neighbours, at most the rows of all ranks together.
        chunk, query_chunk: of `nearest`.
        rows: the rows' numbers in the bank of all ranks, ascending; default: this rank holds the whole bank.
        collectives: each rank searches its own rows; only the best cross ranks.
    """
    collectives = collectives or SingleProcess()
    bank_labels = np.asarray(bank_labels)
    if len(bank_labels) != len(bank):
        raise ValueError(f"{len(bank_labels)} labels for a bank of {len(bank)} rows; expected one for each row")
    total = int(tf.size(collectives.allgather(tf.constant(bank_labels))))
    if not 1 <= k <= total:
        raise ValueError(f"k is {k} with a bank of {total} rows; expected 1 to {total}, lower k")
    similarities, neighbours = nearest(bank, queries, min(k, len(bank)), chunk, query_chunk)
    labels = bank_labels[neighbours].astype(np.int32)
    if collectives.size == 1:
        return similarities, labels
    numbers = np.asarray(rows, np.int64)[neighbours]
    blocks = [slice(start, start + QUERY_CHUNK) for start in range(0, len(queries), QUERY_CHUNK)]
    merged = [_merge_ranks(similarities[block], numbers[block], labels[block], k, collectives) for block in blocks]
    best_similarities, best_labels = (np.concatenate(column) for column in zip(*merged))
    return best_similarities, best_labels


def nearest(
    bank: np.ndarray | Normalised, queries: np.ndarray, k: int, chunk: int = CHUNK, query_chunk: int = QUERY_CHUNK
) -> tuple[np.ndarray, np.ndarray]:
    """The k bank rows of largest inner product with each query, the nearest first; the lower row first among equals.

    Features are rounded to multiples of 2^-26 = 1.5e-8 and multiplied in float64. For rows no longer than one the inner
    products are then exact (partial sums stay below 1 by Cauchy-Schwarz), so that neither the order of summation, which
    a matrix product changes with its shape, nor the device moves a neighbour; equal rows are equally near.

    The bank passes once, chunk by chunk: it may be larger than the device's memory, which holds the queries. Long
    chunks are faster, as top_k costs most at the start of each.

    Args:
        bank: normalised features, NxC; a memory map will do.
        queries: normalised features, QxC.
        k: number of neighbours.
        chunk, query_chunk: rows of the bank and queries that are compared at a time; bound the memory, leave the
            result alone.

    Returns:
        Inner products, Qxk float64, and row numbers, Qxk int64.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k} with a bank of {len(bank)} rows; expected 1 to {len(bank)}, lower k")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank rows have {bank.shape[1]} dimensions, queries {queries.shape[1]}; expected the same")
    if min(chunk, query_chunk) < 1:
        raise ValueError(f"chunks are {chunk} and {query_chunk}; expected 1 or more")
    blocks = [tf.constant(queries[i : i + query_chunk], tf.float32) for i in range(0, len(queries), query_chunk)]
    best = [(tf.zeros([len(block), 0], tf.float64), tf.zeros([len(block), 0], tf.int64)) for block in blocks]
    for start in range(0, len(bank), chunk):
        best = _merge_chunk(bank[start : start + chunk], blocks, best, start, k)
    similarities, rows = (np.concatenate([part.numpy() for part in parts]) for parts in zip(*best))
    return similarities, rows


def rank_classes(
    similarities: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    temperature: float = 0.1,
    weighting: str = "weighted",
) -> np.ndarray:
    """Ranks the classes of each query by its neighbours, the likeliest first: QxL int32.

        score of a class = sum over the neighbours with that label of  exp(s / temperature)   "weighted"
                                                                       1                      "majority"

    with s the inner product. "weighted" is Wu et al., 2018, section 3.4, the monitor of the CIFAR-10 demo; "majority"
    is moco.tensorflow's. Classes of equal score keep the order of their labels; those without a vote come last.

    Args:
        similarities: of the neighbours, Qxk, the nearest first.
        labels: of the neighbours, Qxk, in [0, L).
        num_classes: L.
        temperature: of the weights, above 0.
        weighting: "weighted" or "majority".
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; expected 'weighted' or 'majority'")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    ranked = np.empty((len(similarities), num_classes), np.int32)
    for start in range(0, len(similarities), QUERY_CHUNK):
        block = slice(start, start + QUERY_CHUNK)
        # Against the nearest: the same ranking as exp(s / temperature), and no temperature overflows.
        relative = similarities[block].astype(np.float64) - similarities[block, :1]
        weights = np.exp(relative / temperature) if weighting == "weighted" else np.ones_like(relative)
        weights = np.maximum(weights, np.finfo(np.float64).tiny)  # a vote remains one
        scores = _class_scores(labels[block], weights, num_classes)
        ranked[block] = np.argsort(-scores, axis=1, kind="stable")
    return ranked


def voted(labels: np.ndarray) -> np.ndarray:
    """How many classes have a vote: labels of the neighbours, Qxk, to Q."""
    return 1 + (np.diff(np.sort(labels, axis=1)) != 0).sum(axis=1)


def accuracy(ranked: np.ndarray, labels: np.ndarray, voted: np.ndarray | None = None) -> tuple[float, float]:
    """Share of queries whose label ranks first, and among the first five: two floats in [0, 1].

    Args:
        ranked: classes, the likeliest first, QxL.
        labels: Q.
        voted: how many of the classes count as an answer, Q, see `voted`; None for all, as in the CIFAR-10 demo, where
            classes that no neighbour has fill the first five in the order of their labels.
    """
    hits = ranked[:, :5] == np.asarray(labels)[:, None]
    if voted is not None:
        hits &= np.arange(hits.shape[1]) < voted[:, None]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean())


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raises ValueError where labels do not lie in [0, L)."""
    labels = np.asarray(labels)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"bank labels lie in {labels.min()}..{labels.max()}; expected 0..{num_classes - 1}, "
            "drop unlabelled rows or raise num_classes"
        )


@tf.function(reduce_retracing=True)  # as a graph it works in place: one chunk in float64, not two
def _exact(features: tf.Tensor) -> tf.Tensor:
    return tf.round(tf.cast(features, tf.float64) * _GRAIN) / _GRAIN


def _merge_chunk(chunk: np.ndarray, blocks: list[tf.Tensor], best: list[Pair], first_row: int, k: int) -> list[Pair]:
    """The k best of those found so far and of a chunk, for each block of queries; a chunk is gone before the next."""
    rows = _exact(tf.constant(chunk, tf.float32))
    return [_merge(found, _exact(block), rows, first_row, k) for found, block in zip(best, blocks)]


def _merge(found: Pair, queries: tf.Tensor, rows: tf.Tensor, first_row: int, k: int) -> Pair:
    """The k best of those found so far and of a chunk of the bank."""
    similarities, neighbours = found
    products = tf.matmul(queries, rows, transpose_b=True)
    # top_k puts the lower position first among equals; those found before stand before, in order: ties stay exact.
    new, position = tf.math.top_k(products, min(k, rows.shape[0]))
    similarities = tf.concat([similarities, new], axis=1)
    neighbours = tf.concat([neighbours, tf.cast(position, tf.int64) + first_row], axis=1)
    similarities, position = tf.math.top_k(similarities, min(k, similarities.shape[1]))
    return similarities, tf.gather(neighbours, position, batch_dims=1)


def _merge_ranks(
    similarities: np.ndarray, rows: np.ndarray, labels: np.ndarray, k: int, collectives: Collectives
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of all ranks' neighbours, and their labels: the lower row number first among equals."""
    similarities, rows, labels = (  # of any number of neighbours on each rank, so they are gathered as rows
        collectives.allgather(tf.constant(np.ascontiguousarray(column.T))).numpy().T
        for column in (similarities, rows, labels)
    )
    order = np.lexsort((rows, -similarities), axis=-1)[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(labels, order, 1)


def _class_scores(labels: np.ndarray, weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Sums the weights of each class: Qxk, Qxk to QxL."""
    cells = np.arange(len(labels))[:, None] * num_classes + labels
    scores = np.bincount(cells.ravel(), weights.ravel(), minlength=len(labels) * num_classes)
    return scores.reshape(len(labels), num_classes)
