"""Intervals and tests: SciPy where a case is a textbook's, loops and counts by hand, and planted truths many times."""

import numpy as np
import pytest
from scipy import stats

from moco_tf.evaluation import intervals

Q = 10_000


def planted(rng, accuracies, seeds, spread, images=Q):
    """Tables RxQ of recipes: the same images are hard for all; the accuracy of runs has the deviation `spread`."""
    hard = rng.normal(size=images)
    tables = []
    for accuracy, count in zip(accuracies, seeds):
        own = accuracy + spread * rng.normal(size=(count, 1))
        score = hard + 0.6 * rng.normal(size=(count, images))
        tables.append((score < np.sqrt(1.36) * stats.norm.ppf(own)).astype(float))
    return tables


def test_replicates_alone_are_students_t():
    """Where images do not matter: SciPy's t interval, and Welch's test."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.8, 0.1, (5, 1)) + np.zeros(7), rng.normal(0.7, 0.2, (3, 1)) + np.zeros(7)
    found = intervals.mean(one)
    expected = stats.ttest_1samp(one[:, 0], 0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
    expected = stats.ttest_ind(one[:, 0], other[:, 0], equal_var=False)
    found = intervals.difference(one, other, (intervals.scatter(one), intervals.scatter(other)))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)


def test_borrowed_scatter_keeps_its_freedom():
    """Two single runs beside one recipe of three seeds, images alike: Student's t of 2, not of Welch's 4."""
    own = intervals.scatter(np.random.default_rng(0).normal(0.8, 0.1, (3, 1)) + np.zeros(7))
    lent = intervals.pooled([own])
    low, high = np.full((1, 7), 0.6), np.full((1, 7), 0.9)
    found = intervals.difference(high, low, (lent, lent))
    assert found.p == pytest.approx(2 * stats.t.sf(0.3 / (2 * own.variance) ** 0.5, 2), rel=1e-9)
    found = intervals.difference(np.full((3, 7), 0.9), low, (own, lent))
    assert found.p == pytest.approx(2 * stats.t.sf(0.3 / (own.variance * 4 / 3) ** 0.5, 2), rel=1e-9)
    # Of two that lend, half of the weight is the own one's: (1/3 + 2/6) s1 + 4/6 s2 of 2 and 4 degrees.
    other = intervals.scatter(np.random.default_rng(1).normal(0.8, 0.1, (5, 1)) + np.zeros(7))
    one, two = own.variance * 2 / 3, other.variance * 2 / 3
    found = intervals.difference(np.full((3, 7), 0.9), low, (own, intervals.pooled([own, other])))
    freedom = (one + two) ** 2 / (one**2 / 2 + two**2 / 4)
    assert found.p == pytest.approx(2 * stats.t.sf(0.3 / (one + two) ** 0.5, freedom), rel=1e-9)


def test_images_alone_are_students_t():
    """Where replicates do not differ: SciPy's t interval over images."""
    images = np.random.default_rng(1).normal(0.3, 1, 50)
    expected = stats.ttest_1samp(images, 0)
    found = intervals.mean(np.tile(images, (4, 1)))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)


def test_mean_squares_by_loops():
    """And the sum of two Student's t by a million draws of it."""
    rng = np.random.default_rng(2)
    table = (rng.random((4, 30)) < rng.random(30)).astype(np.float64)
    mean, rest = table.mean(), 0.0
    for r in range(4):
        for i in range(30):
            rest += (table[r, i] - table[r].mean() - table[:, i].mean() + mean) ** 2
    rest /= 3 * 29
    rows = 30 * sum((table[r].mean() - mean) ** 2 for r in range(4)) / 3
    columns = 4 * sum((table[:, i].mean() - mean) ** 2 for i in range(30)) / 29
    parts = max(rows, rest) / 120, (columns - rest) / 120
    assert parts[1] > parts[0] / 3
    errors = parts[0] ** 0.5 * rng.standard_t(3, 10**6) + parts[1] ** 0.5 * rng.standard_t(29, 10**6)
    found = intervals.mean(table)
    assert (found.low, found.high) == pytest.approx(tuple(mean + np.quantile(errors, [0.025, 0.975])), rel=0.01)
    third = intervals.mean(table - mean + np.quantile(errors, 0.85))
    assert third.p == pytest.approx(0.3, rel=0.01)


def test_bootstrap_over_images():
    """As one that draws 10,000 images at a time; the same answers have no difference; few images leave doubt."""
    rng = np.random.default_rng(3)
    one, other = planted(rng, (0.85, 0.84), (1, 1), 0)
    apart, drawn = (one - other)[0], np.random.default_rng(4)
    means = [apart[drawn.integers(0, Q, Q)].mean() for _ in range(2000)]
    found = intervals.difference(one, other, (None, None))
    assert found.mean == apart.mean()
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=4e-4)
    assert intervals.difference(one, one, (None, None)).p == 1.0
    right = np.ones((1, 24))
    wrong = right.copy()
    wrong[0, :4] = 0  # four images speak for one side: a fair coin does that in 1 of 8 (McNemar's exact test)
    assert 0.03 < intervals.difference(right, wrong, (None, None)).p < 0.125
    wrong[0, :12] = 0
    assert intervals.difference(right, wrong, (None, None)).p < 0.01


def test_share_of_one_run_is_wilsons():
    found = intervals.share(np.array([[1.0] * 9 + [0.0]]), None)
    z, share, n = 1.959963985, 0.9, 10
    middle, half = share + z * z / 2 / n, z * np.sqrt(share * (1 - share) / n + z * z / 4 / n / n)
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert (found.mean, found.low, found.high) == pytest.approx((0.9, low, high), rel=1e-6)


def test_all_right_leaves_doubt():
    """Wilson's z^2 / (n + z^2) on the other side, with and without seeds; where seeds say more, they stay."""
    z2, right = 1.959963985**2, np.ones((3, 40))
    found = intervals.share(right, intervals.scatter(right))
    assert (found.mean, found.low, found.high) == pytest.approx((1, 40 / (40 + z2), 1), rel=1e-6)
    found = intervals.share(1 - right, intervals.scatter(1 - right))
    assert (found.mean, found.low, found.high) == pytest.approx((0, 0, z2 / (40 + z2)), rel=1e-6, abs=1e-12)
    right = planted(np.random.default_rng(0), (0.8,), (3,), 0.05)[0]
    found, whole = intervals.share(right, intervals.scatter(right)), intervals.mean(right)
    assert (found.low, found.high) == (whole.low, min(whole.high, 1))


def test_holm_by_hand():
    """0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 is no smaller than the one before."""
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.6, 0.7]) == [1.0, 1.0] and intervals.holm([]) == []


@pytest.mark.parametrize("seeds, spread, images", [((3, 3), 0.003, Q), ((2, 2), 0.02, 500), ((5, 5), 0.02, 500)])
def test_recipes_that_differ_by_their_seeds_alone(seeds, spread, images):
    """No difference in 9 of 10 planted cases at least, as the level says in 19 of 20."""
    rng = np.random.default_rng(5)
    p = []
    for _ in range(100):
        one, other = planted(rng, (0.82, 0.82), seeds, spread, images)
        p.append(intervals.difference(one, other, (intervals.scatter(one), intervals.scatter(other))).p)
    assert np.mean(np.array(p) < 0.05) <= 0.1


def test_encoders_of_one_accuracy():
    """One run each, whose answers differ, but not how many are right."""
    rng = np.random.default_rng(6)
    tables = (planted(rng, (0.82, 0.82), (1, 1), 0) for _ in range(100))
    assert np.mean([intervals.difference(*pair, (None, None)).p < 0.05 for pair in tables]) <= 0.1


@pytest.mark.parametrize("seeds, least", [((3, 3), 1), ((1, 3), 0.8), ((1, 9), 1), ((1, 1), 1)])
def test_three_points_are_found(seeds, least):
    """In each of 30 cases; in most where two degrees of freedom are all that a single run can borrow."""
    rng, found = np.random.default_rng(7), []
    for _ in range(30):
        one, other = planted(rng, (0.85, 0.82), seeds, 0.003)
        own = [intervals.scatter(table) if len(table) > 1 else None for table in (one, other)]
        seen = intervals.pooled([part for part in own if part])
        found.append(intervals.difference(one, other, (own[0] or seen, own[1] or seen)))
    assert all(0.015 < estimate.mean < 0.045 for estimate in found)
    assert np.mean([estimate.p < 0.05 for estimate in found]) >= least


@pytest.mark.parametrize("draws, spread, images", [(5, 0.03, 10_000), (5, 0.03, 200), (2, 0.03, 1000)])
def test_interval_of_a_mean_covers_the_truth(draws, spread, images):
    """Of other labelled images and of other test images: in 19 of 20 planted cases, or more."""
    rng, covered = np.random.default_rng(8), []
    truth = 0.7
    for _ in range(100):
        found = intervals.mean(planted(rng, (truth,), (draws,), spread, images)[0])
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) >= 0.95 - 0.04  # two standard errors
