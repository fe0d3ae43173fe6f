"""Alignment and uniformity against a direct computation and against cases known by hand."""

import math

import numpy as np
import pytest

from moco_tf.evaluation.uniformity import alignment, uniformity


def on_sphere(seed, n, c):
    x = np.random.default_rng(seed).standard_normal((n, c))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("n, c", [(2, 2), (7, 3), (40, 16)])
def test_direct_computation(n, c):
    """Equations of section 4.1, one pair after the other."""
    x, y = on_sphere(0, n, c), on_sphere(1, n, c)
    distances = [math.dist(a, b) for a, b in zip(x.tolist(), y.tolist())]
    assert alignment(x, y) == pytest.approx(sum(d**2 for d in distances) / n, rel=1e-6)
    assert alignment(x, y, alpha=1.0) == pytest.approx(sum(distances) / n, rel=1e-6)
    pairs = [(a, b) for i, a in enumerate(x.tolist()) for b in x.tolist()[:i]]
    for t in (2.0, 3.0):
        expected = math.log(sum(math.exp(-t * math.dist(a, b) ** 2) for a, b in pairs) / len(pairs))
        assert uniformity(x, t) == pytest.approx(expected, rel=1e-6)


def test_by_hand():
    same, opposite = np.array([[1.0, 0.0]] * 3), np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert alignment(same, same) == 0 and uniformity(same) == 0
    assert alignment(opposite, -opposite) == pytest.approx(4)  # squared diameter
    assert uniformity(opposite) == pytest.approx(-8)  # log exp(-2 * 4)


def test_uniform_distribution():
    """In many dimensions random points are orthogonal, so all squared distances are near 2: -2t."""
    assert uniformity(on_sphere(0, 500, 1024)) == pytest.approx(-4, abs=0.05)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: alignment(x, x[:3]), "same"),
        (lambda x: alignment(2 * x, x), "normalise"),
        (lambda x: uniformity(x[:1]), "at least 2"),
        (lambda x: uniformity(x[0]), "NxC"),
        (lambda x: uniformity(x * np.nan), "normalise"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call(on_sphere(0, 5, 4))
