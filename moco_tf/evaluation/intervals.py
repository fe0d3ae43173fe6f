"""Means with 95 % intervals, and differences that chance does not explain.

R replicates (draws of labelled images, or trainings of other seeds) answer the same Q test images: a table RxQ of 1
where an answer is right and 0 where it is wrong, or of differences of two such tables. Both are samples of a crossed
layout with random rows and columns, of which mean squares estimate the variances (Searle, Casella & McCulloch, 1992):

    MS_E   Q and R with the row's and the column's mean taken out: R - 1 times Q - 1 degrees of freedom
    var(mean) = max(MS_R, MS_E) / RQ + max(MS_Q - MS_E, 0) / RQ

The first part is what other replicates would change, the second what other test images would. The error is taken to be
Student's t with R - 1 degrees of freedom times the root of the first, so that few replicates make intervals wide, plus
Student's t with Q - 1 times the root of the second (Behrens & Fisher). Replicates of two kinds share one t, with the
degrees of freedom of Welch's test (Satterthwaite, 1946) over the independent estimates of scatter that are in it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from moco_tf.config import extras

LEVEL = 0.05  # one minus the coverage of an interval; the chance that a table names any difference that is none
_RESAMPLES, _STEPS = 20_000, 400


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval, and how likely one so far from 0 is where the truth is 0; NaN: that has no sense."""

    mean: float
    low: float
    high: float
    p: float


@dataclasses.dataclass(frozen=True, eq=False)
class Scatter:
    """How replicates differ on the same test images; each object is an estimate of its own.

    Args:
        variance: of the mean over the images, from one replicate to another.
        residual: the part of it that comes of the number of images: MS_E / Q.
        freedom: degrees of freedom of the estimate.
        parts: what it was pooled from, by their freedoms; of none it is itself.
    """

    variance: float
    residual: float
    freedom: float
    parts: tuple["Scatter", ...] = ()


def require(what: str) -> None:
    """Raises UserError where SciPy is missing."""
    extras.need(what, ("scipy",), "probe")


def scatter(table: np.ndarray) -> Scatter:
    """Of the replicates of a table RxQ, R at least 2 and Q at least 2."""
    replicates, images = table.shape
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns + table.mean()
    residual = float(np.square(rest).sum() / (replicates - 1) / (images - 1) / images)
    return Scatter(max(float(rows.var(ddof=1)), residual), residual, replicates - 1)


def pooled(parts: Sequence[Scatter]) -> Scatter | None:
    """One scatter for replicates of several kinds; None of none."""
    if not parts:
        return None
    weights = [part.freedom for part in parts]
    variance, residual = (
        float(np.average([getattr(part, name) for part in parts], weights=weights)) for name in ("variance", "residual")
    )
    return Scatter(variance, residual, sum(weights), tuple(parts))


def mean(table: np.ndarray) -> Estimate:
    """Of a table RxQ; the interval is over replicates and test images. p: of a mean that is 0."""
    return _student(table.mean(axis=0), [(scatter(table), len(table))])


def difference(
    one: np.ndarray, other: np.ndarray, own: tuple[Scatter | None, Scatter | None], seed: int = 0
) -> Estimate:
    """Of the means of two tables, R1xQ and R2xQ, whose replicates have nothing in common but the images.

    Args:
        one, other: the tables.
        own: how the replicates of each scatter; None: not at all, or not known. Of neither, the interval is over test
            images alone, by the bootstrap.
        seed: of the bootstrap.
    """
    known = [(part, len(table)) for part, table in zip(own, (one, other)) if part]
    apart = one.mean(axis=0) - other.mean(axis=0)
    return _student(apart, known) if known else _bootstrap(apart, seed)


def _student(images: np.ndarray, parts: Sequence[tuple[Scatter, int]]) -> Estimate:
    """By Student's t: means over replicates of each image, Q, and the scatter and number of the replicates in them."""
    from scipy import optimize

    replicates: dict[Scatter, float] = {}  # one estimate may be in both: own, and borrowed
    for part, count in parts:
        for one in part.parts or (part,):
            replicates[one] = replicates.get(one, 0.0) + one.variance * one.freedom / part.freedom / count
    residual = sum(part.residual / count for part, count in parts)
    others = max(float(images.var(ddof=1)) / len(images) - residual, 0.0)
    found, total = float(images.mean()), sum(replicates.values())
    if total + others == 0:
        return Estimate(found, found, found, float(found == 0))
    shares = [variance**2 / one.freedom for one, variance in replicates.items()]
    freedom = total**2 / sum(shares) if total else 1.0
    tail = _tail(*sorted([(total**0.5, freedom), (others**0.5, len(images) - 1)]))
    most = 1e4 * (total + others) ** 0.5  # Student's t of one degree of freedom leaves 3e-5 beyond
    half = float(optimize.brentq(lambda x: tail(x) - LEVEL / 2, 0.0, most, xtol=1e-9))
    return Estimate(found, found - half, found + half, min(1.0, 2 * tail(abs(found))))


def _tail(small: tuple[float, float], large: tuple[float, float]) -> Callable[[float], float]:
    """x to the chance that the sum of two Student's t, each with (scale, degrees of freedom), is above x."""
    from scipy import stats

    steps = small[0] * stats.t.ppf((np.arange(_STEPS) + 0.5) / _STEPS, small[1])
    return lambda x: float(stats.t.sf((x - steps) / large[0], large[1]).mean())


def _bootstrap(images: np.ndarray, seed: int) -> Estimate:
    """Over test images, by percentiles: their differences, Q.

    Images of one difference are alike, so that a resample is a draw of how many there are of each. To each of right and
    right, right and wrong, wrong and right, wrong and wrong half an image is added (Agresti & Min, 2005): else a few
    images that all speak for one side would leave no doubt.
    """
    values, counts = np.unique(np.concatenate([images, [-1.0, 0.0, 1.0]]), return_counts=True)
    weights = counts - np.isin(values, (-1.0, 1.0)) * 0.5  # of 0 the one stands for two halves
    draws = np.random.default_rng(seed).multinomial(len(images), weights / weights.sum(), _RESAMPLES)
    means = draws @ values / len(images)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Estimate(float(images.mean()), float(low), float(high), min(1.0, 2 * (side + 1) / (_RESAMPLES + 1)))


def share(right: np.ndarray, own: Scatter | None) -> Estimate:
    """The mean of a table RxQ of rights and wrongs.

    Args:
        right: the table.
        own: how the replicates scatter; None: not at all, or not known: Wilson's interval, over test images alone. It
            is the least otherwise, too: answers that are all right have no variance, and yet leave doubt.
    """
    from scipy import stats

    share, images = float(right.mean()), right.shape[1]
    z2 = float(stats.norm.isf(LEVEL / 2)) ** 2 / images
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    low, high = ((share + z2 / 2 + sign * half) / (1 + z2) for sign in (-1, 1))
    found = _student(right.mean(axis=0), [(own, len(right))]) if own else Estimate(share, 1.0, 0.0, float("nan"))
    return dataclasses.replace(found, low=max(min(found.low, low), 0.0), high=min(max(found.high, high), 1.0))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, 1979): the k-th smallest of m times m + 1 - k, in order, at most 1."""
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(raised, 1.0)
    return found.tolist()
