"""Accuracy of each class and what is confused with what: L classes, counts LxL of images by class and prediction."""

import csv
import dataclasses
import os
from typing import Any

import numpy as np

from moco_tf.evaluation import scores
from moco_tf.reporting.accuracies import Outcome, by_weights, outcomes
from moco_tf.reporting.examined import Examined
from moco_tf.reporting.results import RunRecord

MANY = 25  # classes up to which each is shown, and the whole matrix; of more there is a summary
_CONFUSIONS = 10  # the commonest; more where there are many classes
_ENDS = 10  # classes of lowest and of highest accuracy
_FEATURES = {"backbone": "the pooled features", "head": "the output of the head", "patches": "the mean of the patches"}


@dataclasses.dataclass(frozen=True)
class Counted:
    """Images by class and prediction.

    Args:
        counts: LxL.
        names: of the classes, L.
        says: what was counted, for people.
    """

    counts: np.ndarray
    names: tuple[str, ...]
    says: str


def of_knn(run: RunRecord, checkpoint: str) -> Counted | None:
    """What moco_tf.knn counted, if it evaluated this checkpoint on the run's own images: it takes all of them."""
    name = os.path.basename(checkpoint)  # folders may have moved since
    made = [
        one
        for one in outcomes(run.name, run.folder)
        if os.path.basename(one.subject) == name and one.column[0] == "kNN" and _of_the_runs_images(one, run.flags)
    ]
    counted = (_read(one) for one in by_weights(run.folder, made)[0])
    return next((found for found in counted if found), None)


def _of_the_runs_images(one: Outcome, flags: dict[str, str]) -> bool:
    """Whether a result is of the images that the run's flags name, as its encoder takes them."""
    own: dict[str, str] = {name: flags[name] for name in ("dataset", "data_dir") if name in flags}
    if own:
        held_out = flags.get("holdout", "0")
        own["split"] = "test" if held_out == "0" else f"{held_out} held-out training images"
    others = {name for name, _ in one.column[1]} & {"image_size", "test_resize", "normalise"}  # not the encoder's own
    return not others and own.items() <= ({"split": "test"} | one.result).items()


def _read(one: Outcome) -> Counted | None:
    """The counts of a result; None where they are broken."""
    try:
        with open(one.folder.confusion, newline="", encoding="utf-8") as file:
            (_, *names), *rows = csv.reader(file)
        counts = np.array([[int(cell) for cell in cells] for _, *cells in rows])
        if counts.shape != (len(names), len(names)) or counts.min() < 0 or not counts.sum():
            return None
        feature = _FEATURES[one.result.get("feature", "backbone")]
        says = f"kNN (k = {int(one.result['k'])}) on {feature}: {_percent(counts)} of {counts.sum():,} {one.kind}"
        return Counted(counts, tuple(names), f"{says} of {one.result['dataset']}, as moco_tf.knn evaluated them.")
    except (OSError, ValueError, LookupError, TypeError):
        return None


def of_examined(examined: Examined, predicted: np.ndarray) -> Counted:
    """The same of the images that the report classified: their predicted classes, N."""
    test = examined.test
    labelled = test.labels >= 0
    counts = scores.confusion(predicted[labelled], test.labels[labelled], len(examined.class_names))
    says = (
        f"kNN (k = {examined.k}) on the pooled features: {_percent(counts)} of {counts.sum():,} {examined.kind}s "
        f"against {len(examined.bank.features):,} training images. {examined.note} {examined.sampled}"
    )
    return Counted(counts, examined.class_names, says)


def _percent(counts: np.ndarray) -> str:
    return f"{100 * np.trace(counts) / counts.sum():.2f}\N{NO-BREAK SPACE}%"


def summary(found: Counted) -> dict[str, Any]:
    """Rows for the page: every class, the commonest confusions; the matrix of few classes, the spread of many."""
    counts, names = found.counts, found.names
    images = counts.sum(axis=1)
    share = counts / np.maximum(images, 1)[:, None]
    rows = [(name, int(n), float(share[c, c]) if n else None) for c, (name, n) in enumerate(zip(names, images))]
    many = len(names) > MANY
    return {
        "rows": rows,
        "many": _spread(rows) if many else None,
        "confusions": _confusions(counts, names, _CONFUSIONS * (1 + many)),
        "names": names,
        "matrix": None if many else counts.tolist(),
        "share": None if many else share.tolist(),
    }


def _spread(rows: list[tuple[str, int, float | None]]) -> dict[str, Any]:
    """How many classes have which accuracy, in ten steps; the classes of lowest and of highest."""
    known = [(name, images, share) for name, images, share in rows if share is not None]
    known.sort(key=lambda row: row[2])
    tenths = np.minimum((10 * np.array([share for *_, share in known]) + 1e-9).astype(int), 9)
    numbers = np.bincount(tenths, minlength=10)
    steps = [
        (f"{10 * n} to {10 * n + 10} %", int(count), float(count / numbers.max())) for n, count in enumerate(numbers)
    ]
    return {"steps": steps, "lowest": known[:_ENDS], "highest": known[: -_ENDS - 1 : -1]}


def _confusions(counts: np.ndarray, names: tuple[str, ...], most: int) -> list[tuple[str, str, int]]:
    """(class, predicted class, images) of the largest cells beside the diagonal."""
    wrong = counts - np.diag(np.diag(counts))
    largest = np.argsort(-wrong, axis=None, kind="stable")[:most]
    cells = zip(*np.unravel_index(largest, wrong.shape))
    return [(names[true], names[taken], int(wrong[true, taken])) for true, taken in cells if wrong[true, taken]]
