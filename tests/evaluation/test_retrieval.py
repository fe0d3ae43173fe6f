"""Retrieval among test images against scikit-learn and by hand, and calibration of confidences."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score

from moco_tf.errors import UserError
from moco_tf.evaluation import retrieval, scores
from moco_tf.evaluation.features import normalised


def images(n=60, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labels[7] = classes  # alone in its class
    return normalised(rng.standard_normal((n, 16)).astype(np.float32) + labels[:, None] % 3), labels


def test_against_scikit_learn():
    x, labels = images()
    precisions, recalls = [], {1: [], 10: []}
    for query in range(len(x)):
        rest = np.delete(np.arange(len(x)), query)
        same = labels[rest] == labels[query]
        if same.any():
            similarity = x[rest].astype(np.float64) @ x[query]
            precisions.append(average_precision_score(same, similarity))
            for k, found in recalls.items():
                found.append(any(same[np.argsort(-similarity)[:k]]))
    assert len(precisions) == 59
    found = retrieval.measure(x, labels)
    assert found["mean_average_precision"] == pytest.approx(np.mean(precisions), abs=1e-7)
    assert found["recall_at_1"] == pytest.approx(np.mean(recalls[1]))
    assert found["recall_at_10"] == pytest.approx(np.mean(recalls[10]))
    assert (found["queries"], found["queries_alone_in_their_class"]) == (59, 1)


def test_by_hand():
    """On a circle at 0, 10, 30 and 40 degrees, of classes a b a b; the fifth lies far off, of class b.

    Rankings: a(0): b a b b - found second: 1/2. b(10): a a b b - third and fourth: (1/3 + 2/4) / 2. a(30): 40, 10, 0,
    far - third: 1/3. b(40): 30, 10, 0, far - second and fourth: (1/2 + 2/4) / 2. far(170): b a
    b a - first and third: (1 + 2/3) / 2.
    """
    angles = np.deg2rad([0, 10, 30, 40, 170])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = retrieval.measure(x, np.array([0, 1, 0, 1, 1]))
    each = [1 / 2, (1 / 3 + 2 / 4) / 2, 1 / 3, (1 / 2 + 2 / 4) / 2, (1 + 2 / 3) / 2]
    assert found["mean_average_precision"] == pytest.approx(np.mean(each))
    assert found["recall_at_1"] == pytest.approx(1 / 5) and found["recall_at_10"] == 1


class Rank:
    """One of two ranks, which knows what the other found."""

    size = 2

    def __init__(self, rank, others):
        self.rank, self._others = rank, others

    def allgather(self, rows):
        self._others[self.rank].append(rows)
        both = [column[len(self._others[self.rank]) - 1] for column in self._others if column]
        return tf.concat(both, axis=0)


def test_ranks_share_the_queries_and_agree_to_the_last_bit():
    x, labels = images(seed=3)
    seen = [[], []]
    retrieval.measure(x, labels, Rank(0, seen))
    assert retrieval.measure(x, labels, Rank(1, seen)) == retrieval.measure(x, labels)


def test_classes_of_one_image_are_refused():
    with pytest.raises(UserError, match="^--measures=retrieval came, but no class has two test images, .*; leave it"):
        retrieval.measure(np.eye(3, dtype=np.float32), np.arange(3))


def test_calibration_error_by_hand():
    """Ten answers at 0.75 of which 6 are right, and ten at 0.95 of which 10 are: (0.15 + 0.05) / 2."""
    sure, right = np.repeat([0.75, 0.95], 10), np.repeat([True, False, True], [6, 4, 10])
    assert scores.calibration_error(sure, right) == pytest.approx(0.1)
    assert scores.calibration_error(np.full(8, 0.5), np.arange(8) % 2 == 0) == 0
    assert scores.calibration_error(np.ones(4), np.zeros(4, bool)) == 1


def test_calibration_error_bin_by_bin():
    rng = np.random.default_rng(0)
    sure, right = rng.uniform(0, 1, 1000), rng.uniform(0, 1, 1000) < 0.6
    edges, expected = np.linspace(0, 1, 16), 0.0
    for low, high in zip(edges, edges[1:]):
        inside = (sure > low) & (sure <= high)
        expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert scores.calibration_error(sure, right) == pytest.approx(expected)
