"""kNN accuracy of an encoder: features of both sets, the neighbours once, and what every setting makes of them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from moco_tf.data.records import NO_BAD_IMAGES, BadImages
from moco_tf.data.sources import Source
from moco_tf.evaluation import duplicates, features, neighbours
from moco_tf.evaluation.robustness import Alter
from moco_tf.training.collectives import Collectives


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one setting gives: accuracies in [0, 1], and the likeliest class of each query, Q int32.

    A class without a vote counts for nothing: with one neighbour top-5 is top-1.
    """

    k: int
    temperature: float
    top1: float
    top5: float
    predictions: np.ndarray

    def summary(self) -> dict[str, float]:
        """The numbers for a result."""
        return {name: getattr(self, name) for name in ("k", "temperature", "top1", "top5")}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What comes of an evaluation, the same on every rank.

    Args:
        outcomes: of every k with every temperature.
        labels: of the queries, Q int32.
        bank: how many images vote.
        queries: their normalised features, QxC.
        altered: top-1 of the first setting on altered queries, by the name of what was done to them.
        copies: how many queries have a near-duplicate in the bank; None where that was not counted.
    """

    outcomes: list[Outcome]
    labels: np.ndarray
    bank: int
    queries: np.ndarray
    altered: dict[str, float]
    copies: int | None = None


def measure(
    embed: Callable[[tf.Tensor], tf.Tensor],
    bank: Source,
    queries: Source,
    geometries: tuple[tuple[int, int], tuple[int, int]],
    ks: Sequence[int],
    temperatures: Sequence[float],
    weighting: str,
    rank_batch: int,
    collectives: Collectives,
    bad_images: BadImages = NO_BAD_IMAGES,
    require_finite: bool = True,
    alterations: Mapping[str, Alter] | None = None,
    copies: bool = False,
) -> Measured:
    """Every k with every temperature.

    The neighbours are searched once, for the largest k, each rank in its share of the bank.

    Args:
        embed: float32 images in [0, 1], BxSxSx3, to features.
        bank, queries: labelled images, and those to classify; where fewer than k of the bank can be read, all vote.
        geometries: of the bank's and the queries' images, see `features.test_geometry`.
        ks, temperatures: at least one of each; majority votes know no temperature, and take the first alone.
        weighting: "weighted" or "majority".
        rank_batch, collectives, bad_images: of `features.extract`.
        require_finite: refuse features that are not finite; otherwise they make accuracies meaningless.
        alterations: what the queries are tested with besides, by name.
        copies: whether near-duplicates are counted.

    Raises:
        UserError: features are not finite.
    """
    normalised = _normalised(embed)
    run = rank_batch, collectives, bad_images
    compute: Callable = duplicates.beside(normalised) if copies else normalised
    rows, *thumbnails, labels, indices = features.extract_share(compute, bank, geometries[0], *run)
    wanted, *others, truth = features.extract(compute, queries, geometries[1], *run)
    for found in (rows, wanted) if require_finite else ():
        features.check_finite(found, collectives)
    neighbours.check_labels(labels, queries.num_classes)
    total = int(tf.size(collectives.allgather(tf.constant(labels))))
    ks = [min(k, total) for k in ks]

    def nearest(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return neighbours.nearest_labels(rows, labels, queries, k, rows=indices, collectives=collectives)

    near = nearest(wanted, max(ks))
    temperatures = temperatures if weighting == "weighted" else temperatures[:1]
    settings = [(k, temperature) for k in ks for temperature in temperatures]
    classes, first = queries.num_classes, settings[0]
    outcomes = [_outcome(near, truth, classes, *setting, weighting) for setting in settings]

    def top1(alter: Alter) -> float:
        x, own = features.extract(normalised, queries, geometries[1], *run, alter)
        return _outcome(nearest(x, ks[0]), own, classes, *first, weighting).top1

    altered = {name: top1(alter) for name, alter in (alterations or {}).items()}
    pictures = (thumbnails[0], others[0], queries, geometries[1], collectives) if copies else None
    count = duplicates.count_in_train(*pictures) if pictures else None
    return Measured(outcomes, truth, total, wanted, altered, count)


@functools.lru_cache(maxsize=2)  # the same function for the same encoder: it is traced once
def _normalised(embed: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda images: tf.math.l2_normalize(embed(images), axis=1, epsilon=1e-24)


def _outcome(
    near: tuple[np.ndarray, np.ndarray], truth: np.ndarray, num_classes: int, k: int, temperature: float, weighting: str
) -> Outcome:
    """What one setting makes of similarities and labels of at least k neighbours: QxK, QxK, Q."""
    similarities, labels = (column[:, :k] for column in near)
    ranked = neighbours.rank_classes(similarities, labels, num_classes, temperature, weighting)
    accuracies = neighbours.accuracy(ranked, truth, neighbours.voted(labels))
    return Outcome(k, temperature, *accuracies, ranked[:, 0].copy())
