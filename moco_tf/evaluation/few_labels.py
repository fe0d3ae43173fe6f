"""Few labels: draws of labelled images, what is learnt from each, and which of two features are better.

N training images, C classes, M labelled images of a class in a draw, D draws, Q test images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import intervals, logistic

_FOLDS = 5


def check_shots(train: Source, shots: Sequence[int]) -> list[int]:
    """The numbers of labelled images a class that every class has, ascending.

    Raises:
        UserError: the labels are not known before the images are read, or no number is left.
    """
    if train.labels is None:
        raise UserError(
            f"{train.name} has no labels before its images are read, expected some to draw by; pack the set"
        )
    counts = np.bincount(train.labels, minlength=train.num_classes)
    possible = sorted({number for number in shots if number <= counts.min()})
    if not possible:
        raise UserError(
            f"--shots={','.join(map(str, shots))} came, expected at most {counts.min()}, the training images of class "
            f"{train.class_names[counts.argmin()]} in {train.name}; give smaller ones"
        )
    return possible


def shared_images(train: Source, shots: Sequence[int]) -> list[str]:
    """A sentence where draws take more than a quarter of a class, for their intervals are too narrow."""
    assert train.labels is not None
    smallest = int(np.bincount(train.labels, minlength=train.num_classes).min())
    many = [str(number) for number in shots if number > smallest / 4]
    return [
        f"With {', '.join(many)} labels a class the draws share images, as the smallest class has {smallest}: there "
        "the intervals are too narrow, for the luck of which images were collected is left out of them in part, and "
        "whole where a draw takes all."
    ] * bool(many)


def draws(train: Source, most: int, count: int, seed: int) -> list[np.ndarray]:
    """Indices of `most` training images of each class, CxM, `count` times; the first m of M are a smaller draw."""
    assert train.labels is not None
    found = []
    for number in range(count):
        order = np.random.default_rng([seed, 3, number]).permutation(train.num_examples)
        labels = train.labels[order]
        found.append(np.stack([order[labels == label][:most] for label in range(train.num_classes)]))
    return found


def answers(
    features: np.ndarray, labels: np.ndarray, rows: np.ndarray, shots: Sequence[int], test: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """The answers of one draw for each number of labels, SxQ, and the weight decays that were chosen, S.

    Args:
        features, labels: of training images.
        rows: CxM, which of them are drawn; negative: that image could not be read.
        shots: how many of the M to take, S numbers.
        test: features of test images, Q x the features' width.

    Raises:
        UserError: of all classes but one no image could be read.
    """
    found, decays = [], []
    for number in shots:
        own = rows[:, :number]
        folds = np.broadcast_to(np.arange(number) % _FOLDS, own.shape)[own >= 0]
        own = own[own >= 0]
        if len(np.unique(labels[own])) < 2:
            raise UserError(f"of {rows[:, :number].size} labelled images drawn too few can be read; mend the images")
        predictions, decay = logistic.few(features[own], labels[own], folds, test)
        found.append(predictions)
        decays.append(decay)
    return np.stack(found), decays


def estimate(right: np.ndarray) -> dict[str, Any]:
    """The mean of a table DxQ of right answers, its interval, and the accuracy of each draw."""
    found = intervals.share(right, intervals.scatter(right))
    return {"top1": found.mean, "low": found.low, "high": found.high, "draws": right.mean(axis=1).tolist()}


def differences(right: np.ndarray, others: Sequence[np.ndarray]) -> list[list[dict[str, float]]]:
    """How much better the first is than each other one, for each number of labels: tables SxDxQ, on the same draws.

    p is corrected for the number of all of them (Holm).
    """
    pairs = [intervals.mean(one - other) for table in others for one, other in zip(right, table)]
    corrected = intervals.holm([pair.p for pair in pairs])
    found = [{"difference": pair.mean, "low": pair.low, "high": pair.high, "p": p} for pair, p in zip(pairs, corrected)]
    return [found[start : start + len(right)] for start in range(0, len(found), len(right))]
