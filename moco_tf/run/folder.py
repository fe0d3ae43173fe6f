"""What a run folder holds: the only place that spells its names."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from moco_tf.errors import UserError

RESULT = "result.json"
CHECKPOINTS = "checkpoints"


class RunFolder:
    """A run folder, or a folder of results inside one.

    Args:
        path: of the folder; it need not be there.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = pathlib.Path(path).expanduser()
        self.flags = self.path / "flags.cfg"  # everything that ran, as a flagfile
        self.metrics = self.path / "metrics.jsonl"  # one JSON object a line
        self.checkpoints = self.path / CHECKPOINTS  # complete state
        self.tensorboard = self.path / "tensorboard"  # the same numbers, views, embeddings
        self.normalisation = self.path / "normalisation.json"  # mean and deviation, where they were measured
        self.init = self.path / "init.json"  # what --init took, where it was given
        self.compiled = self.path / "compiled.json"  # what --jit_compile=auto chose on a GPU
        self.environment = self.path / "environment.json"  # machine, versions and changed flags of each start
        self.broken = self.path / "broken"  # state and batch of a step that is not finite
        self.unreadable = self.path / "unreadable.txt"  # images that could not be read
        self.report = self.path / "report.html"
        self.result = self.path / RESULT  # of a folder of results
        self.confusion = self.path / "confusion.csv"  # of a folder of results
        self.predictions = self.path / "predictions.npz"  # of a folder of results: an answer for each test image

    @classmethod
    def of(cls, path: str | os.PathLike) -> "RunFolder":
        """The folder of this path."""
        return cls(path)

    @classmethod
    def around(cls, checkpoint: pathlib.Path) -> "RunFolder":
        """The run folder that a checkpoint, or its folder of checkpoints, stands in; else the folder itself."""
        folders = (checkpoint, checkpoint.parent)  # further up it is a name of the user's
        return cls(next((folder.parent for folder in folders if folder.name == CHECKPOINTS), checkpoint))

    def results(self, evaluation: str, baseline: str = "none") -> Iterator["RunFolder"]:
        """The folders for results of an evaluation of this run, without an end: knn, knn-2, knn-3 ..."""
        own = "" if baseline == "none" else f"_{pathlib.PurePath(baseline).name.partition('.')[0]}"  # a name or a path
        name = evaluation.lower() + own
        yield RunFolder(self.path / name)
        yield from (RunFolder(self.path / f"{name}-{number}") for number in itertools.count(2))

    def all_results(self) -> list["RunFolder"]:
        """Every folder of results in this run folder."""
        return [RunFolder(path.parent) for path in sorted(self.path.glob(f"*/{RESULT}"))]

    def read_result(self) -> dict[str, Any]:
        """What result.json says; empty when there is none, or a broken one."""
        try:
            found = json.loads(self.result.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def read_environment(self) -> list[dict[str, Any]]:
        """The entries of environment.json, the oldest first; none without the file, or with a broken one."""
        try:
            found = json.loads(self.environment.read_text(encoding="utf-8"))
            return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
        except (OSError, ValueError, RecursionError):
            return []

    def flag_lines(self) -> list[str]:
        """The lines of flags.cfg that hold a flag; empty without the file."""
        try:
            lines = self.flags.read_text(encoding="utf-8", errors="replace").splitlines()
        except (OSError, ValueError):
            return []
        return [line.strip() for line in lines if line.strip().startswith("--")]

    def read_metrics(self) -> "Metrics":
        """What metrics.jsonl says, ordered by step.

        Raises:
            UserError: there is no such file.
        """
        try:
            text = self.metrics.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(
                f"{self.metrics} cannot be read ({error.strerror}); expected a run folder of moco_tf.pretrain"
            ) from None
        found = {number: _numbers(line) for number, line in enumerate(text.splitlines(), 1) if line.strip()}
        lines = [line for line in found.values() if line]
        return Metrics(sorted(lines, key=lambda line: line["step"]), [n for n, line in found.items() if not line])


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What a metrics.jsonl says.

    Args:
        lines: the numbers of each line, some perhaps not finite; each has a step.
        broken: which lines, from 1, are no JSON object with a step, as a crash leaves one; they are left out.
    """

    lines: list[dict[str, float]]
    broken: list[int]

    def series(self, metric: str, axis: str) -> list[tuple[float, float]]:
        """(axis, metric) of every line that has both, finite."""
        pairs = [(line[axis], line[metric]) for line in self.lines if metric in line and axis in line]
        return [pair for pair in pairs if all(map(math.isfinite, pair))]

    def last(self, metric: str) -> float | None:
        """The newest finite value of a metric."""
        values = (line[metric] for line in reversed(self.lines) if metric in line)
        return next((value for value in values if math.isfinite(value)), None)


def _numbers(text: str) -> dict[str, float]:
    """The numbers of a line by name; none of a broken one."""
    try:
        values = json.loads(text)
        found = {n: v for n, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        finite = {name: math.isfinite(value) for name, value in found.items()}  # fails for what no float can hold
        return found if finite["step"] else {}
    except (ValueError, KeyError, RecursionError, AttributeError, OverflowError):
        return {}
