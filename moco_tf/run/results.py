"""What an evaluation leaves: result.json, confusion.csv and flags.cfg in a folder of its own."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from moco_tf.config import define
from moco_tf.config.options import EncoderToEvaluate, RunOptions
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import scores
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint
from moco_tf.training.files import make_folder, write_whole


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Args:
        evaluation: its name: kNN, lincls ...
        subject: the name of what was evaluated.
        dataset: the data set's name.
        test: the images tested.
        predictions, labels: of these images, Q each.
        numbers: top1, top5 and what else is kept.
    """

    evaluation: str
    subject: str
    dataset: str
    test: Source
    predictions: np.ndarray
    labels: np.ndarray
    numbers: dict[str, Any]

    def contents(self) -> dict[str, Any]:
        """What result.json says."""
        counts = scores.confusion(self.predictions, self.labels, self.test.num_classes)
        numbers = {**self.numbers, "evaluation": self.evaluation, "subject": self.subject, "dataset": self.dataset}
        per_class = scores.per_class(counts, self.test.class_names)
        return numbers | {"test_images": len(self.labels), "per_class": per_class}

    def write(self, folder: RunFolder, options: Any) -> None:
        """Prints the accuracy and writes the files; rank 0 calls it."""
        make_folder(folder.path)
        counts = scores.confusion(self.predictions, self.labels, self.test.num_classes)
        numbers = self.contents()
        scores.write_confusion(folder.confusion, counts, self.test.class_names)
        write_whole(folder.flags, define.flagfile(options))
        write_whole(folder.result, json.dumps(numbers, indent=1) + "\n")
        missing = self.test.num_examples - len(self.labels)
        if missing:
            print(f"{missing} of {self.test.num_examples} test images could not be read and do not count")
        accuracy = f"top-1 {numbers['top1']:.2%}, top-5 {numbers['top5']:.2%}"
        print(f"{self.evaluation} of {self.subject} on {self.dataset}: {accuracy}")
        print(f"written to {folder.result}", flush=True)


def folder_of(run: RunOptions, encoder: EncoderToEvaluate, evaluation: str) -> RunFolder:
    """--workdir, or a folder named after the evaluation inside the run folder, or beside the file that was loaded."""
    if run.workdir:
        return RunFolder.of(run.workdir)
    runs = RunFolder.of("runs")
    if not encoder.load:
        return runs.results(evaluation, encoder.baseline)
    place = pathlib.Path(encoder.load)
    if (place / checkpoint.DESCRIPTION).is_file():  # results do not go where pruning would remove them
        place = place.parent
    if checkpoint.existing(place):  # nor beside the checkpoints
        place = place.parent
    folder = RunFolder(place if place.is_dir() else runs.path / place.name.split(".")[0])
    return folder.results(evaluation, encoder.baseline)


def check_folder(folder: RunFolder) -> None:
    """Refuses a folder of results that holds a training's checkpoints: its metrics and flags would be overwritten."""
    if checkpoint.existing(folder.checkpoints):
        raise UserError(
            f"{folder.path} holds the checkpoints of a training, expected a folder for the results alone; give another "
            "--workdir"
        )
