"""kNN evaluation of an encoder, or of every checkpoint of a run."""

import dataclasses
from typing import Any

import numpy as np

from moco_tf.config.options import Knn
from moco_tf.data.sources import Source
from moco_tf.errors import RankError, UserError
from moco_tf.evaluation import knn, subject
from moco_tf.evaluation.scores import check_labels
from moco_tf.evaluation.subject import Subject
from moco_tf.run import prepare, results
from moco_tf.run.results import Result
from moco_tf.training.collectives import Collectives
from moco_tf.training.files import make_folder


@dataclasses.dataclass(frozen=True)
class Measured:
    """Outcomes of every setting for one subject, and the labels of the test images, Q int32."""

    subject: Subject
    outcomes: list[knn.Outcome]
    labels: np.ndarray


def evaluate(o: Knn, one: Subject | None = None) -> dict[str, Any]:
    """Classifies the test images by their nearest training images, and writes the result; returns it, on every rank.

    Args:
        o: the options.
        one: what to evaluate; None: what the options name.

    Raises:
        UserError: options do not fit, nothing can be loaded, or the set has no labels.
    """
    collectives = prepare.connect(o.device, o.run.seed)
    if o.sweep.all_checkpoints and o.encoder.baseline != "none":
        raise UserError(
            f"--all_checkpoints came with --baseline={o.encoder.baseline}, expected none; leave one of them out"
        )
    paths = subject.checkpoints(o.encoder.load) if o.sweep.all_checkpoints else []
    if not (one or paths):
        one = subject.load(o.encoder, o.data, o.device.precision, o.knn.feature)
    train, test = (prepare.source(o.data, split, collectives) for split in ("train", "test"))
    check_labels(train, test)
    check_neighbours(max(o.knn.k), train)
    folder = results.folder_of(o.run, o.encoder, "knn")
    results.check_folder(folder)
    make_folder(folder.path)  # now, not after the work
    swept: dict[str, Any] = {}
    if paths:
        measured, swept["checkpoints"] = sweep(o, paths, train, test, collectives)
    else:
        assert one is not None
        measured = measure(o, one, train, test, collectives)
    first, several = measured.outcomes[0], len(measured.outcomes) > 1
    if collectives.rank == 0 and several:
        print("\n".join(f"k {x.k}, temperature {x.temperature:g}: {words(x)}" for x in measured.outcomes), flush=True)
    feature = o.knn.feature if measured.subject.encoder else "pixels"
    numbers: dict[str, Any] = {**first.summary(), "weighting": o.knn.weighting, "feature": feature}
    numbers |= {"all": [x.summary() for x in measured.outcomes], **swept}
    numbers |= measured.subject.cost(test)
    name, predictions = measured.subject.name, first.predictions
    found = Result("kNN", name, o.data.dataset, test, predictions, measured.labels, numbers)
    if collectives.rank == 0:
        found.write(folder, o)
    return found.contents()


def measure(o: Knn, one: Subject, train: Source, test: Source, collectives: Collectives) -> Measured:
    """Outcomes of all settings.

    Args:
        o: the options.
        one: what to evaluate.
        train, test: images that vote, and images to classify.
        collectives: what crosses ranks; each has its share of the global batch.
    """
    geometries = one.geometry(train), one.geometry(test)
    settings = o.knn.k, o.knn.knn_temperature, o.knn.weighting, max(1, o.run.batch_size // collectives.size)
    return Measured(
        one, *knn.measure(one.embed, train, test, geometries, *settings, collectives, o.data.max_bad_images)
    )


def sweep(
    o: Knn, paths: list[str], train: Source, test: Source, collectives: Collectives
) -> tuple[Measured, list[dict[str, Any]]]:
    """The last checkpoint that can be read, and the numbers of all that can.

    Args:
        o: the options.
        paths: of the checkpoints.
        train, test: images that vote, and images to classify.
        collectives: what crosses ranks.

    Raises:
        UserError: none can be read.
    """
    found, last, line = [], None, ""
    for path in paths:
        try:
            encoder = dataclasses.replace(o.encoder, load=path)
            one = subject.load(encoder, o.data, o.device.precision, o.knn.feature)
            last = measure(o, one, train, test, collectives)
            line = f"{path}: {words(last.outcomes[0])}"
            found.append({"checkpoint": path, **last.outcomes[0].summary()})
        except RankError:  # the other ranks are waiting
            raise
        except UserError as error:
            line = f"skipped: {error}"
        if collectives.rank == 0:
            print(line, flush=True)
    if last is None:
        raise UserError(f"none of the {len(paths)} checkpoints in --load={o.encoder.load} can be evaluated; {line}")
    return last, found


def check_neighbours(k: int, train: Source) -> None:
    """Refuses more neighbours than there are images. Raises UserError."""
    if k > train.num_examples:
        raise UserError(
            f"--k={k} came, expected at most {train.num_examples}, the number of training images in {train.name}; give "
            "a smaller one"
        )


def words(outcome: knn.Outcome) -> str:
    """Its accuracies in words."""
    return f"top-1 {outcome.top1:.2%}, top-5 {outcome.top5:.2%}"
