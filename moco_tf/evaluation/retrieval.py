"""Retrieval among test images: each one asks for the others of its class, ranked by cosine.

Q images, C dimensions, L classes.
"""

import numpy as np
import tensorflow as tf

from moco_tf.errors import UserError
from moco_tf.training.collectives import Collectives, SingleProcess

RECALLS = (1, 10)
_QUERIES = 256  # ranked at a time: 40 Q bytes each
_GRAIN = 2.0**26  # of features, as in `neighbours`: products add up without rounding, whatever the ranks and chunks


def measure(features: np.ndarray, labels: np.ndarray, collectives: Collectives | None = None) -> dict[str, float | int]:
    """Mean average precision and recall at 1 and 10, every image left out of its own ranking.

        precision(i) = images of the own class among the first i / i
        average precision = mean of precision(i) over the places i of the own class's images
        recall at k = share of images with one of the own class among the first k

    Equal similarities keep the order of the images. An image that is alone in its class asks for nothing and is left
    out, but stands in the other rankings.

    Args:
        features: rows of length one, QxC, the same on every rank.
        labels: Q.
        collectives: ranks share the queries out.

    Returns:
        mean_average_precision, recall_at_1, recall_at_10, queries and queries_alone_in_their_class.

    Raises:
        UserError: no class has two images.
    """
    ranks = collectives or SingleProcess()
    asking = np.flatnonzero(np.bincount(labels)[labels] > 1)
    if not len(asking):
        raise UserError(
            "--measures=retrieval came, but no class has two test images, expected some to be found; leave it out"
        )
    exact = np.round(features.astype(np.float64) * _GRAIN) / _GRAIN
    own = asking[ranks.rank :: ranks.size]
    found = np.concatenate(
        [np.zeros((0, 1 + len(RECALLS)))]
        + [_of_queries(exact, labels, own[i : i + _QUERIES]) for i in range(0, len(own), _QUERIES)]
    )
    order = np.argsort(ranks.allgather(tf.constant(own)).numpy())
    precision, *recalls = ranks.allgather(tf.constant(found)).numpy()[order].mean(axis=0)
    figures = {f"recall_at_{k}": float(recall) for k, recall in zip(RECALLS, recalls)}
    counts = {"queries": len(asking), "queries_alone_in_their_class": len(labels) - len(asking)}
    return {"mean_average_precision": float(precision), **figures, **counts}


def _of_queries(x: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(average precision, whether found among the first k for each of RECALLS) of some images: rows to R x 3."""
    similarities = x[rows] @ x.T
    similarities[np.arange(len(rows)), rows] = -np.inf  # the image itself comes last
    ranked = np.argsort(-similarities, axis=1, kind="stable")[:, :-1]
    same = labels[ranked] == labels[rows][:, None]
    precision = np.cumsum(same, axis=1) / np.arange(1, same.shape[1] + 1)
    average = (precision * same).sum(axis=1) / same.sum(axis=1)
    return np.stack([average, *(same[:, :k].any(axis=1) for k in RECALLS)], axis=1)
