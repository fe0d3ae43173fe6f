"""What a run folder holds: the only place that spells its names.

flags.cfg        everything that ran, as a flagfile
metrics.jsonl    one JSON object a line
checkpoints/     complete state
tensorboard/     the same numbers, views, embeddings
report.html      one page
knn/ lincls/     results: result.json, confusion.csv, flags.cfg
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from moco_tf.errors import UserError

RESULT = "result.json"
FLAGS = "flags.cfg"
CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run folder, or a folder of results inside one.

    Args:
        path: of the folder; it need not be there.
    """

    path: pathlib.Path

    @classmethod
    def of(cls, path: str | pathlib.Path) -> "RunFolder":
        """The folder of this path."""
        return cls(pathlib.Path(path))

    @classmethod
    def around(cls, checkpoint: pathlib.Path) -> "RunFolder":
        """The run folder that a checkpoint, or its folder of checkpoints, stands in; else the folder itself."""
        for folder in (checkpoint, *checkpoint.parents):
            if folder.name == CHECKPOINTS:
                return cls(folder.parent)
        return cls(checkpoint)

    @property
    def flags(self) -> pathlib.Path:
        """flags.cfg."""
        return self.path / FLAGS

    @property
    def metrics(self) -> pathlib.Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def tensorboard(self) -> pathlib.Path:
        """The folder of TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def normalisation(self) -> pathlib.Path:
        """Where a measured normalisation is kept."""
        return self.path / "normalisation.json"

    @property
    def unreadable(self) -> pathlib.Path:
        """The list of images that could not be read."""
        return self.path / "unreadable.txt"

    @property
    def report(self) -> pathlib.Path:
        """The report's page."""
        return self.path / "report.html"

    @property
    def result(self) -> pathlib.Path:
        """result.json of a folder of results."""
        return self.path / RESULT

    @property
    def confusion(self) -> pathlib.Path:
        """confusion.csv of a folder of results."""
        return self.path / "confusion.csv"

    def results(self, evaluation: str, baseline: str = "none") -> "RunFolder":
        """The folder of the results of an evaluation of this run."""
        name = evaluation.lower() if baseline == "none" else f"{evaluation.lower()}_{baseline}"
        return RunFolder(self.path / name)

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

    def flag_lines(self) -> list[str]:
        """The lines of flags.cfg that hold a flag; empty without the file."""
        try:
            lines = self.flags.read_text(encoding="utf-8", errors="replace").splitlines()
        except (OSError, ValueError):
            return []
        return [line.strip() for line in lines if line.strip().startswith("--")]

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first; a line that a crash cut off is left out.

        Raises:
            UserError: there is no such file.
        """
        try:
            lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise UserError(
                f"{self.metrics} cannot be read ({error.strerror}); expected a run folder of moco_tf.pretrain"
            ) from None
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found
