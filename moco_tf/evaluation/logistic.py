"""Multinomial logistic regression to convergence, by scikit-learn's L-BFGS: a check of the linear classifier.

The problem is convex, so that its answer depends on no learning rate, schedule or seed.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moco_tf.config import extras
from moco_tf.evaluation.scores import MISS, label_places
from moco_tf.training.runlog import progress

WEIGHT_DECAYS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FEW_WEIGHT_DECAYS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)  # of few images
_UNCHOSEN = 0.1


def require(what: str = "--logistic_regression") -> None:
    """Raises UserError where scikit-learn is missing."""
    extras.need(what, ("sklearn",), "probe")


def fit_and_test(
    features: np.ndarray,
    labels: np.ndarray,
    held_out: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    max_iterations: int = 1000,
) -> dict[str, object]:
    """Chooses the weight decay on held-out training images, learns from all, tests.

        loss = mean cross entropy + weight_decay / 2 |w|^2

    with w without the bias; scikit-learn's C is 1 / (N weight_decay).

    Args:
        features, labels: NxD, best standardised, and N.
        held_out: rows that are kept out while weight decays are compared.
        test, test_labels: QxD and Q.
        max_iterations: of L-BFGS, for each weight decay.

    Returns:
        top1, top5 (shares of the test images), weight_decay, held_out_top1 of each weight decay tried, iterations, and
        whether it converged.
    """
    split = np.setdiff1d(np.arange(len(features)), held_out), held_out
    with progress(len(WEIGHT_DECAYS) + 1, "L-BFGS, --nologistic_regression leaves it out") as bar:
        shares = _shares(features, labels, [split], WEIGHT_DECAYS, max_iterations, bar.update)
        best = max(shares, key=lambda weight_decay: shares[weight_decay])
        model = _fit(features, labels, best, max_iterations)
    scores = model.decision_function(test)
    scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores  # of two classes it gives one column
    # A class without training images has no column there, and is no answer.
    column = np.searchsorted(model.classes_, test_labels).clip(max=len(model.classes_) - 1)
    places = np.where(model.classes_[column] == test_labels, label_places(scores, column), MISS)
    return {
        "top1": float((places == 0).mean()),
        "top5": float((places < 5).mean()),
        "weight_decay": best,
        "held_out_top1": [{"weight_decay": w, "top1": share} for w, share in shares.items()],
        "iterations": int(model.n_iter_.max()),
        "converged": bool(model.n_iter_.max() < max_iterations),
    }


def few(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, test: np.ndarray, max_iterations: int = 1000
) -> tuple[np.ndarray, float]:
    """Learns from few images, with the weight decay that cross-validation among them chooses.

    Features are turned into as many as there are images, where these are fewer: the answer is the same, sooner.

    Args:
        features, labels: NxD, best standardised, and N.
        folds: N, in which fold an image is kept out; of a single fold nothing can be chosen, and 0.1 is taken.
        test: QxD.
        max_iterations: of L-BFGS, for each fit.

    Returns:
        The answers, Q, and the weight decay.
    """
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    turned, basis = _turned(features)
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
    splits = [(rest, held_out) for rest, held_out in splits if len(np.unique(labels[rest])) > 1]
    best = _UNCHOSEN
    with threadpool_limits(1):  # matrices are small: threads would wait for each other, on a busy machine for minutes
        if splits:
            shares = _shares(turned, labels, splits, FEW_WEIGHT_DECAYS, max_iterations)
            best = max(shares, key=lambda weight_decay: shares[weight_decay])
        model = _fit(turned, labels, best, max_iterations)
    scores = test @ (basis @ model.coef_.T.astype(test.dtype)) + model.intercept_  # a column for two classes
    places = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(int)
    return model.classes_[places], best


def _turned(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features NxR of R at most N, and DxR of length one each, which turn NxD into them and lose nothing of it."""
    if len(features) > features.shape[1]:
        return features, np.eye(features.shape[1], dtype=features.dtype)
    basis, lengths, rest = np.linalg.svd(features.T, full_matrices=False)
    kept = lengths >= 1e-5 * lengths[0]  # all of them where features are alike: the answer is then one of chance
    return (lengths[kept, None] * rest[kept]).T, basis[:, kept]


def _shares(
    features: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    weight_decays: Sequence[float],
    max_iterations: int,
    done: Callable[[], object] = bool,
) -> dict[float, float]:
    """Of the images that are kept out, the share that is right with each weight decay.

    Args:
        features, labels: NxD and N.
        splits: rows to learn from and rows that are kept out, of each part.
        weight_decays: from the strongest on, each begins where the last one ended.
        max_iterations: of L-BFGS, for each.
        done: called after each fit.
    """
    right = dict.fromkeys(weight_decays, 0)
    for rest, held_out in splits:
        model: Any = None
        for weight_decay in weight_decays:
            model = _fit(features[rest], labels[rest], weight_decay, max_iterations, model)
            right[weight_decay] += int((model.predict(features[held_out]) == labels[held_out]).sum())
            done()
    total = sum(len(held_out) for _, held_out in splits)
    return {weight_decay: count / total for weight_decay, count in right.items()}


def in_words(result: dict[str, Any]) -> str:
    """The result of `fit_and_test` in a line."""
    ended = "converged" if result["converged"] else "did not converge"
    accuracy = f"top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}"
    return f"{accuracy}, weight decay {result['weight_decay']:g}, {ended} after {result['iterations']} iterations"


def _fit(features: np.ndarray, labels: np.ndarray, weight_decay: float, max_iterations: int, start: Any = None) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = start or LogisticRegression(solver="lbfgs", max_iter=max_iterations, warm_start=True)
    model.set_params(C=1.0 / (len(features) * weight_decay))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as `converged`
        return model.fit(features, labels)
