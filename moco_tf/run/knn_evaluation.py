"""kNN evaluation of an encoder, or of every checkpoint of a run."""

import dataclasses
import math
from typing import Any

from moco_tf.config import define
from moco_tf.config.options import LABEL_FREE, Knn
from moco_tf.data.sources import Source
from moco_tf.errors import RankError, UserError
from moco_tf.evaluation import knn, retrieval, robustness, subject
from moco_tf.evaluation.subject import Subject
from moco_tf.formats import origin
from moco_tf.run import label_free, prepare, results
from moco_tf.run.results import Evaluation
from moco_tf.training.files import make_folder

_BESIDES = ("label_free", "retrieval", "robustness")  # of --measures, in a result


def evaluate(o: Knn, one: Subject | None = None) -> dict[str, Any]:
    """Classifies the test images by their nearest training images, and writes the result; returns it, on every rank.

    Args:
        o: the options.
        one: what to evaluate; None: what the options name.

    Raises:
        UserError: options do not fit, nothing can be loaded, or the set has no labels.
    """
    collectives = prepare.connect(o.device, o.run.seed, compiles=False)
    if o.sweep.all_checkpoints and o.encoder.baseline != "none":
        raise UserError(
            f"--all_checkpoints came with --baseline={o.encoder.baseline}, expected none; leave one of them out"
        )
    paths = subject.checkpoints(o.encoder.load) if o.sweep.all_checkpoints else []
    given, o = o.data, results.completed(o)
    one = one or (last_of(o, paths) if paths else subject_of(o))
    run = results.begin("kNN", o, given, one, collectives)
    with results.given_back(run):
        return _classified(run, paths)


def _classified(run: Evaluation[Knn], paths: list[str]) -> dict[str, Any]:
    """The result, written; paths: of the checkpoints of a sweep."""
    o, collectives = run.options, run.collectives
    check_neighbours(max(o.knn.k), run.train)
    results.check_folder(run.folder)
    make_folder(run.folder.path)  # now, not after the work
    swept: dict[str, Any] = {}
    if paths:
        run, found, swept["checkpoints"] = sweep(run, paths)
        more = {name: swept["checkpoints"][-1][name] for name in _BESIDES if name in swept["checkpoints"][-1]}
    else:
        found = measure(run)
        more = besides(run, found)
    outcomes, bank, first = found.outcomes, found.bank, found.outcomes[0]
    if collectives.rank == 0 and bank < max(o.knn.k):
        print(f"warning: of --k={define.shown(o.knn.k)} no more than {bank} vote: so many can be read", flush=True)
    if collectives.rank == 0 and len(outcomes) > 1:
        print("\n".join(f"k {x.k}, temperature {x.temperature:g}: {words(x)}" for x in outcomes), flush=True)
    numbers: dict[str, Any] = {**first.summary(), "weighting": o.knn.weighting}
    numbers |= {"feature": o.knn.feature if run.subject.encoder else "pixels", "train_images": bank}
    numbers |= run.of_copies(found.copies, len(found.labels))
    numbers |= {"all": [x.summary() for x in outcomes], **swept, **more, **run.subject.cost(run.test)}
    return run.finish(first.predictions, found.labels, numbers)


def subject_of(o: Knn, path: str | None = None) -> Subject:
    """What the options name, or the encoder in another place."""
    encoder = dataclasses.replace(o.encoder, load=path or o.encoder.load)
    return subject.load(encoder, o.data, o.device.precision, o.knn.feature)


def measure(run: Evaluation[Knn], copies: bool = True) -> knn.Measured:
    """Outcomes of all settings, on altered images if --measures says so; whether near-duplicates are counted."""
    o, one = run.options, run.subject
    geometries, settings = (one.geometry(run.train), one.geometry(run.test)), (o.knn.k, o.knn.knn_temperature)
    return knn.measure(
        one.embed,
        run.train,
        run.test,
        geometries,
        *settings,
        o.knn.weighting,
        run.rank_batch,
        run.collectives,
        run.bad_images,
        alterations=robustness.alterations() if "robustness" in (o.measures.measures or ()) else None,
        copies=copies and run.counts_copies,
    )


def besides(run: Evaluation[Knn], found: knn.Measured) -> dict[str, Any]:
    """What else --measures asks for, as the result has it; said on rank 0."""
    o, one, wanted = run.options, run.subject, run.options.measures.measures or ()
    numbers: dict[str, Any] = {}
    if set(LABEL_FREE) & set(wanted):
        views, of_run = origin.views_of(o.encoder.load), (o.run.seed, run.collectives, run.bad_images)
        seen = label_free.see(one.embed, wanted, run.train, one.geometry(run.train), views, *of_run)
        figures = label_free.figures(seen, wanted)
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        numbers["label_free"] = {**finite, **label_free.sizes(seen), "views": views.views}
        say(run, label_free.words(figures))
    if "retrieval" in wanted:
        numbers["retrieval"] = retrieval.measure(found.queries, found.labels, run.collectives)
        say(
            run,
            "retrieval: {mean_average_precision:.2%} mean average precision, recall at 1 {recall_at_1:.2%}, at 10 "
            "{recall_at_10:.2%}".format(**numbers["retrieval"]),
        )
    if found.altered:
        numbers["robustness"] = found.altered
        say(run, "top-1 on altered images: " + ", ".join(f"{name} {top1:.2%}" for name, top1 in found.altered.items()))
    return numbers


def say(run: Evaluation[Knn], words: str) -> None:
    """Prints a line, on rank 0."""
    if run.collectives.rank == 0:
        print(words, flush=True)


def last_of(o: Knn, paths: list[str]) -> Subject:
    """The last of several encoders that can be read. Raises UserError when none can be."""
    reason = ""
    for path in reversed(paths):
        try:
            return subject_of(o, path)
        except UserError as error:
            reason = reason or f"skipped: {error}"
    raise UserError(f"none of the {len(paths)} checkpoints in --load={o.encoder.load} can be evaluated; {reason}")


def sweep(run: Evaluation[Knn], paths: list[str]) -> tuple[Evaluation[Knn], knn.Measured, list[dict[str, Any]]]:
    """The last checkpoint that can be evaluated, what it gives, and the numbers of all that can.

    Args:
        run: what the evaluation works on.
        paths: of the checkpoints.

    Raises:
        UserError: none can be evaluated.
    """
    found, last, line = [], None, ""
    for path in paths:
        try:
            one = dataclasses.replace(run, subject=subject_of(run.options, path))
            last = one, measure(one, copies=path == paths[-1])
            first = last[1].outcomes[0]
            line = f"{path}: {words(first)}"
            found.append({"checkpoint": path, "step": one.subject.step, **first.summary(), **besides(*last)})
        except RankError:  # the other ranks are waiting
            raise
        except UserError as error:
            line = f"skipped: {error}"
        if run.collectives.rank == 0:
            print(line, flush=True)
    if last is None:
        raise UserError(f"none of the {len(paths)} checkpoints can be evaluated; {line}")
    return *last, found


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
