"""Accuracy of each class and what is confused with what."""

import numpy as np
from sklearn.metrics import confusion_matrix

from moco_tf.reporting.subject import Subject

_MATRIX = 25  # classes up to which the whole matrix is shown
_CONFUSIONS = 10


def summary(subject: Subject) -> dict:
    """Rows for the page: every class, the commonest confusions, the matrix where it is small."""
    labelled = subject.test.labels >= 0
    names, classes = subject.class_names, range(len(subject.class_names))
    matrix = confusion_matrix(subject.test.labels[labelled], subject.predicted[labelled], labels=classes)  # LxL
    images = matrix.sum(axis=1)
    share = matrix / np.maximum(images, 1)[:, None]
    return {
        "accuracy": subject.accuracy,
        "rows": [(names[c], int(images[c]), float(share[c, c]) if images[c] else None) for c in classes],
        "confusions": _confusions(matrix, names),
        "names": names,
        "matrix": matrix.tolist() if len(names) <= _MATRIX else None,
        "share": share.tolist() if len(names) <= _MATRIX else None,
        "limit": _MATRIX,
    }


def _confusions(matrix: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """(class, predicted class, images) of the largest cells beside the diagonal."""
    wrong = matrix - np.diag(np.diag(matrix))
    largest = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]
    cells = zip(*np.unravel_index(largest, wrong.shape))
    return [(names[true], names[taken], int(wrong[true, taken])) for true, taken in cells if wrong[true, taken]]
