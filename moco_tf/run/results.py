"""What an evaluation works on, and what it leaves: result.json, confusion.csv and flags.cfg in a folder of its own."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from moco_tf.config import define
from moco_tf.config.options import BASELINES, OF_THE_RUN, DataOptions, EncoderToEvaluate, FewShot, Knn, Lincls
from moco_tf.data.records import BadImages
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import features, scores
from moco_tf.evaluation.subject import Subject
from moco_tf.formats import origin
from moco_tf.formats.load import SOURCES
from moco_tf.run import prepare
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint
from moco_tf.training.collectives import Collectives, broadcast_result
from moco_tf.training.files import make_folder, write_new, write_whole

_IMAGES = ("dataset", "data_dir", "holdout", "image_size", "test_resize", "normalise")
# What a result depends on, besides the images and what is evaluated.
_GROUPS = ("data", "knn", "sweep", "few", "optimizer", "schedule", "probe")
_OF_A_TRAINING = ("batch_size", "seed")
_NO_SETTINGS = ("max_bad_images", "eval_every")

Evaluating = Knn | Lincls | FewShot
Program = TypeVar("Program", Knn, Lincls, FewShot)


@dataclasses.dataclass(frozen=True)
class Evaluation(Generic[Program]):
    """What an evaluation works on.

    Args:
        name: kNN, lincls ...
        options: complete: what the run says of its images is in them.
        subject: what is evaluated.
        train, test: the images.
        collectives: what crosses ranks.
        folder: of the result.
        settings: what the result depends on besides, as text by flag; without what is the run's own.
    """

    name: str
    options: Program
    subject: Subject
    train: Source
    test: Source
    collectives: Collectives
    folder: RunFolder
    settings: dict[str, str]

    @property
    def rank_batch(self) -> int:
        """Images of a batch of one rank where nothing is trained."""
        return max(1, self.options.run.batch_size // self.collectives.size)

    @property
    def bad_images(self) -> BadImages:
        """How unreadable images are treated."""
        return BadImages(self.options.data.max_bad_images, str(self.folder.unreadable))

    @property
    def counts_copies(self) -> bool:
        """Whether near-duplicates are counted: of the encoder, as the images of a baseline are the same."""
        return baseline_of(self.options) == "none"

    def of_copies(self, count: int | None, total: int) -> dict[str, int]:
        """Of how many test images a near-duplicate is among the training images, for a result; rank 0 says it."""
        if self.collectives.rank == 0 and self.counts_copies:
            many = "an unknown number" if count is None else f"about {count:,}"
            images = "held-out" if self.options.data.holdout else "test"
            more = "" if count == 0 else "; moco_tf.duplicates looks closer and lists them"
            print(f"{many} of {total:,} {images} images have a near-duplicate among the training images{more}")
        return {} if count is None else {"test_images_in_train": count}

    def contents(self, count: int, numbers: dict[str, Any]) -> dict[str, Any]:
        """What result.json says.

        Args:
            count: of the test images that can be read.
            numbers: what was measured.
        """
        o, one = self.options, self.subject
        resize, size = one.geometry(self.test)
        as_they_are = self.test.image_shape == (size, size)
        return numbers | {
            "evaluation": self.name,
            "subject": one.name,
            "baseline": baseline_of(o),
            "checkpoint": one.path,
            "step": one.step,
            "weights": one.weights,
            "dataset": o.data.dataset,
            "data_dir": o.data.data_dir,
            "split": f"{o.data.holdout} held-out training images" if o.data.holdout else "test",
            "test_images": count,
            "unreadable_test_images": self.test.num_examples - count,
            "image_size": size,
            "test_resize": resize or (size if as_they_are else features.short_side(size)),
            "mean": list(one.mean),
            "std": list(one.std),
            "settings": self.settings,
        }

    def finish(self, predictions: np.ndarray, labels: np.ndarray, numbers: dict[str, Any]) -> dict[str, Any]:
        """Writes the files and prints the accuracy, on rank 0; returns what result.json says.

        Args:
            predictions, labels: of the test images that can be read, Q each.
            numbers: top1, top5 and what else is kept.
        """
        counts = scores.confusion(predictions, labels, self.test.num_classes)
        found = self.contents(len(labels), numbers)
        found["per_class"] = scores.per_class(counts, self.test.class_names)
        if self.collectives.rank == 0:
            make_folder(self.folder.path)
            scores.write_confusion(self.folder.confusion, counts, self.test.class_names)
            scores.write_predictions(self.folder.predictions, predictions, labels)
            accuracy = f"top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%}"
            self.write(found, f"{self.name} of {self.subject.name} on {self.options.data.dataset}: {accuracy}")
        return found

    def write(self, found: dict[str, Any], words: str) -> None:
        """Writes result.json and flags.cfg, and prints what was found, in words."""
        write_whole(self.folder.flags, define.flagfile(self.options))
        write_whole(self.folder.result, json.dumps(found, indent=1) + "\n")
        print(f"{words}\nwritten to {self.folder.result}", flush=True)


def completed(o: Program) -> Program:
    """The options with the run's own data set, place and held-out images where they name none. Raises UserError."""
    if not o.encoder.load and baseline_of(o) != "raw_pixels":
        raise UserError(f"--load is missing; give {SOURCES}")
    given = origin.completed(o.data, o.encoder.load)
    return define.replaced(o, dataset=given.dataset, data_dir=given.data_dir, holdout=given.holdout)


def baseline_of(o: Evaluating) -> str:
    """The baseline that an evaluation is of; none: of the encoder."""
    return o.encoder.baseline if isinstance(o.encoder, EncoderToEvaluate) else "none"


def begin(name: str, o: Program, given: DataOptions, one: Subject, collectives: Collectives) -> Evaluation[Program]:
    """Loads the images, says which they are, and finds the folder of the result.

    Args:
        name: of the evaluation.
        o: the options, `completed`.
        given: the options of the images as they were given.
        one: what is evaluated.
        collectives: what crosses ranks.

    Raises:
        UserError: there are no images or no labels, or --workdir holds something else.
    """
    load = one.path if one.path and baseline_of(o) in BASELINES else o.encoder.load  # another encoder has its own flag
    full = define.replaced(o, image_size=one.image_size, test_resize=one.test_resize, load=load)
    if collectives.rank == 0:
        print(said(given, full.data, o.encoder.load), flush=True)
    train, test = (prepare.source(o.data, split, collectives) for split in ("train", "test"))
    scores.check_labels(train, test)
    names = settings(full)
    folder = RunFolder(broadcast_result(collectives, lambda: str(folder_of(name, full, one.weights, names).path)))
    own = [flag for flag, value in one.own.items() if getattr(full.data, flag) == value]
    kept = {flag: text for flag, text in names.items() if flag not in own}
    return Evaluation(name, full, one, train, test, collectives, folder, kept)


def said(given: DataOptions, found: DataOptions, load: str | None) -> str:
    """Which images, and who says so: the run, or the command line; what another program's file does not is assumed."""
    parts: dict[bool, list[str]] = {False: [], True: []}
    unsaid = found.normalise == "auto" and (not load or os.path.isfile(load))
    for name in (name for name in _IMAGES if not (unsaid and name == "normalise")):
        value, told = getattr(found, name), getattr(given, name) != getattr(OF_THE_RUN, name)
        if value or told:
            parts[told].append(define.word(name, value))
    own = [f"{' '.join(parts[False])} from {load}"] if parts[False] else []
    own += [f"{' '.join(parts[True])} as given"] if parts[True] else []
    return "images: " + "; ".join(own + (["ImageNet's normalisation is assumed"] if unsaid and load else []))


def settings(o: Evaluating) -> dict[str, str]:
    """What a result depends on besides what is evaluated, as text by flag."""
    groups = [getattr(o, group) for group in _GROUPS if hasattr(o, group)]
    names = {"precision"} | {field.name for group in groups for field in dataclasses.fields(group)}
    names |= set(_OF_A_TRAINING) if isinstance(o, Lincls) else {"seed"} if isinstance(o, FewShot) else set()
    texts = define.texts(define.flagfile(o).splitlines())
    return {name: text for name, text in texts.items() if name in names and name not in _NO_SETTINGS}


def folder_of(name: str, o: Evaluating, weights: str, own: dict[str, str]) -> RunFolder:
    """--workdir, or the folder of these settings in the run folder, or beside the file that was loaded.

    There the first result stands in knn, one of other settings or another checkpoint in knn-2, and so on.

    Args:
        name: of the evaluation.
        o: the options, complete.
        weights: digest of what is evaluated.
        own: the settings.

    Raises:
        UserError: --workdir holds the result of other settings.
    """
    if not o.run.workdir:
        places = place_of(o.encoder.load).results(name, baseline_of(o))
        return next(folder for folder in places if reserved(folder, o, weights, own))
    folder = RunFolder.of(o.run.workdir)
    if checkpoint.existing(folder.checkpoints):  # of more steps it goes on, as if it had never stopped
        own = {flag: text for flag, text in own.items() if flag != "steps"}
    others = different(folder, o, weights, own)
    if others and folder.result.exists():  # a training without one goes on by the rules of resume.check
        raise UserError(f"--workdir={folder.path} holds a result with {', '.join(others)}; give another folder")
    return folder


def reserved(folder: RunFolder, o: Evaluating, weights: str, own: dict[str, str]) -> bool:
    """Whether a folder is for this result; then its flags.cfg says so to jobs that start now. Args: of `different`."""
    if different(folder, o, weights, own):
        return False
    make_folder(folder.path)
    write_new(folder.flags, define.flagfile(o))
    return not different(folder, o, weights, own)  # another job may have been faster


@contextlib.contextmanager
def given_back(run: Evaluation[Program]) -> Iterator[None]:
    """Gives a reserved folder back where the work fails before anything else is there."""
    try:
        yield
    except BaseException:
        folder = run.folder
        left = any(path.exists() for path in (folder.result, folder.metrics, folder.checkpoints))
        if run.collectives.rank == 0 and not run.options.run.workdir and not left:
            with contextlib.suppress(OSError):
                folder.flags.unlink()
                folder.path.rmdir()  # unless unreadable images are listed there
        raise


def place_of(load: str | None) -> RunFolder:
    """Where the folders of results are: in the run folder, or in runs/ under the name of the file that was loaded."""
    if not load:
        return RunFolder.of("runs")
    place = RunFolder.around(pathlib.Path(load)).path
    if (place / checkpoint.DESCRIPTION).is_file():  # results do not go where pruning would remove them
        place = place.parent
    return RunFolder(place if place.is_dir() else pathlib.Path("runs", place.name.split(".")[0]))


def different(folder: RunFolder, o: Evaluating, weights: str, own: dict[str, str]) -> list[str]:
    """What of a folder's result, or unfinished training, is not as it is here, in words; nothing of an empty folder.

    Args:
        folder: of results.
        o: the options, complete.
        weights: digest of what is evaluated.
        own: the settings.
    """
    found, result = define.texts_of(folder.flags), folder.read_result()
    if not found:
        return ["no flags.cfg"] if folder.result.exists() or folder.metrics.exists() else []
    others = [f"--{flag}={found.get(flag, '')} (here {text})" for flag, text in own.items() if found.get(flag) != text]
    before, now = (os.path.basename(load or "") for load in (found.get("load"), o.encoder.load))
    if (before, result.get("weights", weights)) != (now, weights):
        others.append(f"other weights, of {before}")
    return others


def check_folder(folder: RunFolder) -> None:
    """Refuses a folder of results that holds a training's checkpoints: its metrics and flags would be overwritten."""
    if checkpoint.existing(folder.checkpoints):
        raise UserError(
            f"{folder.path} holds the checkpoints of a training, expected a folder for the results alone; give another "
            "--workdir"
        )
