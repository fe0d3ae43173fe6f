"""What features are worth without labels: effective ranks and the decay of their spectrum, all in float64.

N images, q views of each, D width of the features. docs/evaluation.md says what each figure may be compared with.
"""

import numpy as np

LIDAR_DELTA = 1e-4  # Thilak et al., 2024, section 4
FIRST_RANK, LAST_RANK = 3, 100  # of the eigenvalues that alpha is fitted to


def effective_rank(spectrum: np.ndarray) -> float:
    """exp of the entropy of p = spectrum / sum (Roy & Vetterli, 2007): r where r values are equal and the rest are 0.

    Between 1 and the number of values; 0 where all are 0. The papers add 1e-7 to p before the logarithm; here p log p
    of p = 0 is 0.
    """
    total = spectrum.sum()
    if not 0 < total < np.inf:
        return 0.0 if total == 0 else float("nan")
    p = spectrum[spectrum > 0] / total
    return float(np.exp(-np.sum(p * np.log(p))))


def rankme(x: np.ndarray) -> float:
    """RankMe (Garrido et al., 2023): the effective rank of the singular values of the features as they are, NxD."""
    return effective_rank(np.sqrt(_eigenvalues(x.astype(np.float64))))


def alpha_req(x: np.ndarray) -> float:
    """alpha-ReQ (Agrawal et al., 2022): the exponent of lambda_j ~ j^-alpha, features NxD.

    lambda_j are the eigenvalues of the features' covariance, the largest first. A line through (log j, log lambda_j) of
    j = 3 to 100 (or the last that is not 0) with weights 1/j, as Stringer et al. (2019) fit theirs; NaN where fewer
    than three such are there.
    """
    x = x.astype(np.float64)
    spectrum = _eigenvalues(x - x.mean(axis=0))
    spectrum = spectrum[spectrum > 0][:LAST_RANK]
    j = np.arange(FIRST_RANK, len(spectrum) + 1)
    if len(j) < 3:
        return float("nan")
    slope, _ = np.polyfit(np.log(j), np.log(spectrum[FIRST_RANK - 1 :]), 1, w=j**-0.5)  # polyfit squares its weights
    return float(-slope)


def lidar(z: np.ndarray) -> float:
    """LiDAR (Thilak et al., 2024): the effective rank of what tells images apart, where views of an image vary.

        Sigma_b = covariance of the images' mean features        Sigma_w = mean covariance of an image's views + delta I
        LiDAR = effective rank of the eigenvalues of Sigma_w^-1/2 Sigma_b Sigma_w^-1/2

    Args:
        z: features of the views, NxqxD, with N and q at least 2.
    """
    z = z.astype(np.float64)
    n, q, dim = z.shape
    means = z.mean(axis=1)
    within = (z - means[:, None]).reshape(n * q, dim)
    means -= means.mean(axis=0)
    sigma_w = within.T @ within / (n * (q - 1)) + LIDAR_DELTA * np.eye(dim)
    if not np.isfinite(sigma_w).all():
        return float("nan")
    values, vectors = np.linalg.eigh(sigma_w)
    return effective_rank(_eigenvalues(means @ vectors / np.sqrt(values)))


def _eigenvalues(x: np.ndarray) -> np.ndarray:
    """Those of x'x, the largest first; 0 in place of what float64 cannot tell from 0. All NaN where x is not finite."""
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    if not np.isfinite(gram).all():
        return np.full(len(gram), np.nan)
    values = np.linalg.eigvalsh(gram)[::-1]
    return np.where(values > values[0] * max(x.shape) * np.finfo(np.float64).eps, values, 0.0)
