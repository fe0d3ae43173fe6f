"""Multinomial logistic regression to convergence, by scikit-learn's L-BFGS: a check of the linear classifier.

The problem is convex, so that its answer depends on no learning rate, schedule or seed.
"""

import warnings
from typing import Any

import numpy as np

from moco_tf.config import extras
from moco_tf.evaluation.scores import MISS, label_places
from moco_tf.training.runlog import progress

WEIGHT_DECAYS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def require() -> None:
    """Raises UserError where scikit-learn is missing."""
    extras.need("--logistic_regression", ("sklearn",), "probe")


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
    rest = np.setdiff1d(np.arange(len(features)), held_out)
    shares: dict[float, float] = {}
    model: Any = None
    with progress(len(WEIGHT_DECAYS) + 1, "L-BFGS, --nologistic_regression leaves it out") as bar:
        for weight_decay in WEIGHT_DECAYS:  # from the strongest on, each from where the last one ended
            model = _fit(features[rest], labels[rest], weight_decay, max_iterations, model)
            shares[weight_decay] = float((model.predict(features[held_out]) == labels[held_out]).mean())
            bar.update()
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
