"""RankMe, alpha-ReQ and LiDAR against other ways to compute them, and on features whose figures are known."""

import math

import numpy as np
import pytest
import scipy.linalg

from moco_tf.evaluation.label_free import alpha_req, effective_rank, lidar, rankme


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(seed, n, d):
    """n x d with orthonormal columns."""
    return np.linalg.qr(normal(seed, n, d))[0]


def entropy_rank(values):
    """One value after the other."""
    p = [value / sum(values) for value in values]
    return math.exp(-sum(x * math.log(x) for x in p if x > 0))


@pytest.mark.parametrize("n, d", [(50, 8), (8, 50), (300, 128)])
def test_rankme_is_that_of_the_singular_values(n, d):
    x = normal(0, n, d) * np.linspace(0.1, 2, d) + 0.3
    assert rankme(x) == pytest.approx(entropy_rank(np.linalg.svd(x, compute_uv=False).tolist()), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 7, 64])
def test_rankme_of_a_planted_rank(rank):
    """Equal singular values in `rank` directions of 64 give just that; of three and one, exp(H(3/4, 1/4))."""
    x = orthogonal(1, 500, rank) @ orthogonal(2, 64, rank).T
    assert rankme(x) == pytest.approx(rank, rel=1e-6)
    assert rankme(x.astype(np.float32)) == pytest.approx(rank, rel=1e-3)
    two = orthogonal(3, 40, 2) * [3, 1] @ orthogonal(4, 16, 2).T
    assert rankme(two) == pytest.approx(4 / 3**0.75, rel=1e-6)
    assert (
        rankme(np.zeros((9, 4))) == 0
        and math.isnan(rankme(x * np.nan))
        and effective_rank(np.ones(5)) == pytest.approx(5)
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("n, d", [(2000, 256), (90, 512)])
def test_alpha_of_a_planted_spectrum(alpha, n, d):
    """Features whose covariance has the eigenvalues j^-alpha to the last digit, whatever their mean."""
    count = min(n - 1, d)
    centred = orthogonal(0, n, count + 1)
    centred = np.linalg.qr(centred - centred.mean(axis=0))[0][:, :count]  # orthonormal columns of mean 0
    x = centred * np.arange(1, count + 1) ** (-alpha / 2) @ orthogonal(1, d, count).T + normal(2, d)
    assert alpha_req(x) == pytest.approx(alpha, rel=1e-6)


def test_alpha_is_a_weighted_line():
    """Against the normal equations of the fit, on a spectrum that is no power."""
    x = normal(3, 400, 30) * np.exp(-np.arange(30) / 10)
    spectrum = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    j = np.arange(3, 31)
    a = np.stack([np.log(j), np.ones(28)], axis=1)
    slope = np.linalg.solve(a.T @ (a / j[:, None]), a.T @ (np.log(spectrum[2:]) / j))[0]
    assert alpha_req(x) == pytest.approx(-slope, rel=1e-9)
    assert math.isnan(alpha_req(normal(0, 100, 4))) and math.isnan(alpha_req(x * np.nan))


def test_lidar_is_the_generalised_eigenproblem():
    """Sigma_b v = lambda Sigma_w v, one image after the other."""
    z = normal(0, 40, 6, 12) * np.linspace(0.2, 1, 12) + 2 * normal(1, 40, 1, 12)
    between = np.cov(z.mean(axis=1).T, bias=True)
    within = sum(np.cov(views.T) for views in z) / 40 + 1e-4 * np.eye(12)
    assert lidar(z) == pytest.approx(entropy_rank(scipy.linalg.eigh(between, within)[0].tolist()), rel=1e-9)


@pytest.mark.parametrize("rank", [2, 5, 20])
def test_lidar_of_planted_clusters(rank):
    """Images lie in `rank` directions, equally far; their views in all 20. Views that vary more there take it down."""
    z = orthogonal_means(200, rank, 20)[:, None] + 0.01 * normal(1, 200, 10, 20)
    assert lidar(z) == pytest.approx(rank, rel=0.02)
    assert math.isnan(lidar(z * np.nan))


def test_lidar_counts_no_direction_that_views_drown():
    means = orthogonal_means(300, 4, 16)
    spread = np.where(np.arange(16) < 1, 100.0, 0.01)  # in the first direction views differ more than images
    z = means[:, None] + spread * normal(2, 300, 10, 16)
    assert lidar(z) == pytest.approx(3, abs=0.1)
    assert rankme(z.mean(axis=1)) != pytest.approx(3, abs=0.1)  # which the rank of the images alone does not see


def orthogonal_means(n, rank, d):
    """n points of mean 0 with the same variance in the first `rank` of d directions, and none in others."""
    x = normal(0, n, rank)
    x = np.linalg.qr(x - x.mean(axis=0))[0] * np.sqrt(n)
    return np.pad(x, ((0, 0), (0, d - rank)))
