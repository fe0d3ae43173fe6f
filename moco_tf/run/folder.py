"""What a run folder holds: the only place that spells its names."""

import json
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

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        self.flags = self.path / "flags.cfg"  # everything that ran, as a flagfile
        self.metrics = self.path / "metrics.jsonl"  # one JSON object a line
        self.checkpoints = self.path / CHECKPOINTS  # complete state
        self.tensorboard = self.path / "tensorboard"  # the same numbers, views, embeddings
        self.normalisation = self.path / "normalisation.json"  # mean and deviation, where they were measured
        self.unreadable = self.path / "unreadable.txt"  # images that could not be read
        self.report = self.path / "report.html"
        self.result = self.path / RESULT  # of a folder of results
        self.confusion = self.path / "confusion.csv"  # of a folder of results

    @classmethod
    def of(cls, path: str | pathlib.Path) -> "RunFolder":
        """The folder of this path."""
        return cls(path)

    @classmethod
    def around(cls, checkpoint: pathlib.Path) -> "RunFolder":
        """The run folder that a checkpoint, or its folder of checkpoints, stands in; else the folder itself."""
        folders = (checkpoint, *checkpoint.parents)
        return cls(next((folder.parent for folder in folders if folder.name == CHECKPOINTS), checkpoint))

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
