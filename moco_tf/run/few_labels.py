"""Evaluation with few labels: an encoder and its baselines on the same draws."""

from typing import Any

import keras
import numpy as np

from moco_tf.config.options import EncoderToEvaluate, FewShot
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import features, few_labels, logistic, probe, subject
from moco_tf.evaluation.subject import Subject
from moco_tf.reporting import few_shot
from moco_tf.run import prepare, results
from moco_tf.run.results import Evaluation
from moco_tf.training.collectives import broadcast_result
from moco_tf.training.files import make_folder


def evaluate(o: FewShot) -> dict[str, Any]:
    """Measures what few labels give, and writes the result; returns it, on every rank.

    Raises:
        UserError: options do not fit, nothing can be loaded, or the set has no labels or too few.
    """
    logistic.require("moco_tf.fewshot")
    collectives = prepare.connect(o.device, o.run.seed, compiles=False)
    given, o = o.data, results.completed(o)
    run = results.begin("fewshot", o, given, subject_of(o, "none"), collectives)
    with results.given_back(run):
        if run.test.num_examples < 2:
            raise UserError(f"{run.test.name} has one test image, expected two or more, of which intervals are made")
        results.check_folder(run.folder)
        make_folder(run.folder.path)  # now, not after the work
        numbers = measured(run)
    found = run.contents(numbers.pop("count"), numbers)
    if collectives.rank == 0:
        run.write(found, few_shot.markdown(found))
    collectives.barrier()
    return found


def subject_of(o: FewShot, baseline: str) -> Subject:
    """The encoder, or a baseline; an untrained one is the same as in other evaluations with this seed."""
    keras.utils.set_random_seed(o.run.seed)
    return subject.load(EncoderToEvaluate(o.encoder.load, baseline), o.data, o.device.precision)


def measured(run: Evaluation[FewShot]) -> dict[str, Any]:
    """The numbers for the result, and the count of test images."""
    o = run.options
    shots = few_labels.check_shots(run.train, o.few.shots)
    for number in sorted(set(o.few.shots) - set(shots)):
        say(run, f"{number} labels a class are left out: not every class has so many training images")
    drawn = few_labels.draws(run.train, shots[-1], o.few.draws, o.run.seed)
    names = ["none", *(name for name in dict.fromkeys(o.few.baseline) if name != "none")]
    tables, found, count = [], [], 0
    for name in names:
        one = run.subject if name == "none" else subject_of(o, name)
        right, decays = tested(run, one, drawn, shots)
        tables.append(right)
        count = right.shape[-1]
        about = {"baseline": name, "subject": one.name, "weights": one.weights, "weight_decays": decays}
        found.append(about)
    notes = few_labels.shared_images(run.train, shots)
    return broadcast_result(run.collectives, lambda: summary(shots, found, tables)) | {"notes": notes, "count": count}


def summary(shots: list[int], found: list[dict[str, Any]], tables: list[np.ndarray]) -> dict[str, Any]:
    """What the result says of tables SxDxQ of right answers, of the encoder and of each baseline."""
    compared = few_labels.differences(tables[0], tables[1:])
    for one, table, own in zip(found, tables, [[], *compared]):
        one["shots"] = [few_labels.estimate(right) for right in table]
        one["better_by"] = own
    return {"shots": shots, "features": found}


def tested(
    run: Evaluation[FewShot], one: Subject, drawn: list[np.ndarray], shots: list[int]
) -> tuple[np.ndarray, list[list[float]]]:
    """Whether the answer to each test image is right, SxDxQ, and the weight decays, DxS; zeros on ranks but the first.

    Args:
        run: what the evaluation works on.
        one: what is evaluated.
        drawn: indices of labelled training images, CxM each.
        shots: labelled images a class, S.
    """
    rows = np.unique(np.stack(drawn))
    numbered = run.train.subset(rows).labelled(np.arange(len(rows), dtype=np.int32), run.train.class_names)
    x, known = extract(run, one, numbered)
    queries, truth = extract(run, one, run.test)
    assert run.train.labels is not None
    decays: list[list[float]] = []
    right = np.zeros((len(shots), len(drawn), len(truth)))
    if run.collectives.rank > 0:
        return right, decays
    probe.standardise(x, queries)
    if len(x) and np.abs(x).max() < 1e-3:  # else the deviation is 1
        say(run, f"warning: {one.name}: the features of all labelled images are alike (a dead encoder): chance alone")
    places = np.full(len(rows), -1)
    places[known] = np.arange(len(known))
    for number, draw in enumerate(drawn):
        own = places[np.searchsorted(rows, draw)]
        given, chosen = few_labels.answers(x, run.train.labels[rows[known]], own, shots, queries)
        right[:, number] = given == truth
        decays.append(chosen)
    means = ", ".join(f"{100 * share:.2f}" for share in right.mean(axis=(1, 2)))
    say(run, f"{one.name}: top-1 {means} with {', '.join(map(str, shots))} labels a class")
    return right, decays


def say(run: Evaluation[FewShot], words: str) -> None:
    """Prints a line, on rank 0."""
    if run.collectives.rank == 0:
        print(words, flush=True)


def extract(run: Evaluation[FewShot], one: Subject, images: Source) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of all images that can be read."""
    found = features.extract(one.embed, images, one.geometry(images), run.rank_batch, run.collectives, run.bad_images)
    features.check_finite(found[0], run.collectives)
    return found[0], found[1]
