"""Alignment and uniformity of features on the unit sphere (Wang & Isola, 2020).

N images, C dimensions. Rows are normalised features; both figures are the better the lower they are.
"""

import numpy as np


def alignment(x: np.ndarray, y: np.ndarray, alpha: float = 2.0) -> float:
    """How close two views of an image lie: E |f(x) - f(y)|^alpha over positive pairs; 0 at best, at most 2^alpha.

    Wang & Isola, 2020, section 4.1.1, with their alpha of 2.

    Args:
        x, y: features of the first and the second view of each image, NxC, rows of length one.
        alpha: exponent of the distance, above 0.
    """
    _check(x)
    _check(y)
    if x.shape != y.shape:
        raise ValueError(f"views have features of shapes {x.shape} and {y.shape}; expected the same")
    distances = np.linalg.norm(x.astype(np.float64) - y, axis=1)  # N
    return float(np.mean(distances**alpha))


def uniformity(x: np.ndarray, t: float = 2.0) -> float:
    """How evenly images lie on the sphere: log E exp(-t |f(x) - f(y)|^2) over pairs of images; 0 when all are the same.

    Wang & Isola, 2020, section 4.1.2, with their t of 2, over the N(N-1)/2 pairs of different images; as C grows, the
    uniform distribution's value goes to -2t. Takes 4 N^2 bytes.

    Args:
        x: features of one view of each image, NxC with N at least 2, rows of length one.
        t: precision of the Gaussian kernel, above 0.
    """
    from scipy.spatial.distance import pdist

    _check(x)
    if len(x) < 2:
        raise ValueError(f"features of {len(x)} images came; expected at least 2, for there to be a pair")
    return float(np.log(np.mean(np.exp(-t * pdist(x.astype(np.float64), "sqeuclidean")))))


def _check(x: np.ndarray) -> None:
    if x.ndim != 2 or not len(x) or not np.allclose(np.linalg.norm(x, axis=1), 1.0, atol=1e-3):
        raise ValueError(f"features of shape {x.shape} came; expected NxC with rows of length one, normalise them")
