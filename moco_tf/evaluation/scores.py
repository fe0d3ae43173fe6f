"""Accuracies of predictions: top-1 and top-5, of each class, and what is taken for what.

Q images, L classes.
"""

import csv
import pathlib
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.training.files import replacing

MISS = 1 << 30


def label_places(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of each image's label in the ranking of its logits, 0 the first: QxL, Q to Q int64.

    Behind all classes of equal logit: a classifier that tells nothing apart is right nowhere. An image whose logits are
    not all finite has place MISS, behind any class.
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    return np.where(np.isfinite(logits).all(axis=1), (logits >= own).sum(axis=1) - 1, MISS)


def calibration_error(confidences: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., 2017): how far confidence and accuracy lie apart, in [0, 1].

        sum over bins of  share of the images in it * |their accuracy - their mean confidence|

    The bins divide (0, 1] equally; each has its upper border.

    Args:
        confidences: probabilities of the likeliest classes, Q.
        right: whether these are the labels, Q.
        bins: 15, as there.
    """
    place = np.ceil(confidences.astype(np.float64) * bins).astype(int).clip(1, bins)
    gaps = np.bincount(place, right - confidences.astype(np.float64), bins + 1)
    return float(np.abs(gaps).sum() / len(right))


def check_labels(train: Source, test: Source, purpose: str = "to evaluate with; give") -> None:
    """Refuses sets without classes, and sets of which some images are known to have none.

    Args:
        train, test: the images.
        purpose: what labels are needed for, and the verb of the advice.

    Raises:
        UserError: there are none, or too few.
    """
    if train.num_classes < 2 or test.num_classes < 2:
        raise UserError(
            f"{train.name} has {train.num_classes} classes, expected labels of two or more {purpose} a set with "
            "labels (for --dataset=folder: train/<class>/ and val/<class>/)"
        )
    for images in (train, test):
        without = 0 if images.labels is None else int((images.labels < 0).sum())
        if without:
            raise UserError(
                f"{without} of {images.num_examples} images in {images.name} have no label, expected one for each "
                f"{purpose.partition(';')[0]}; leave them out of the set"
            )


def confusion(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts of images by label (row) and prediction (column): Q, Q to LxL int64."""
    cells = np.asarray(labels, np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(counts: np.ndarray, class_names: Sequence[str]) -> dict[str, float | None]:
    """Top-1 accuracy of each class, None where it has no images; counts of `confusion`, LxL."""
    images = counts.sum(axis=1)
    return {name: float(counts[i, i] / images[i]) if images[i] else None for i, name in enumerate(class_names)}


def write_confusion(path: pathlib.Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes counts of `confusion` as CSV: a header with the predicted classes, a line for each true class."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label \\ prediction", *class_names])
        writer.writerows([name, *row.tolist()] for name, row in zip(class_names, counts))


def write_predictions(path: pathlib.Path, predictions: np.ndarray, labels: np.ndarray) -> None:
    """Writes the answer and the label of each test image, Q each, in the order of the set. Raises UserError."""
    with replacing(path) as draft:
        np.savez_compressed(draft, predictions=predictions.astype(np.int32), labels=labels.astype(np.int32))


def read_predictions(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray] | None:
    """(predictions, labels), Q int32 each; None without the file, or of a broken one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = file["predictions"], file["labels"]
    # RuntimeError: a changed byte says that the file is encrypted, or compressed in an unknown way.
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile):
        return None
    return found if found[0].shape == found[1].shape == (found[0].size,) and found[0].size > 1 else None
