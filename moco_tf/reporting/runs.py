"""What a run folder holds, read for the report: metrics, flags. Nothing here trusts what it reads."""

import dataclasses
import json
import math
import pathlib

from moco_tf import table
from moco_tf.config import define
from moco_tf.errors import UserError

_SHOWN = 3  # broken lines that are named one by one
PARTS = ("metrics.jsonl", "flags.cfg", "checkpoints", "knn", "lincls")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder: name for people, lines of metrics.jsonl (numbers only), flags, what was wrong with the files."""

    name: str
    folder: pathlib.Path
    metrics: list[dict[str, float]]
    flags: dict[str, str]
    complaints: list[str]

    def series(self, metric: str, axis: str) -> list[tuple[float, float]]:
        """(axis, metric) of every line that has both."""
        return [(line[axis], line[metric]) for line in self.metrics if metric in line and axis in line]

    def last(self, metric: str) -> float | None:
        """The newest value of a metric."""
        return next((line[metric] for line in reversed(self.metrics) if metric in line), None)


def read_all(names: list[str]) -> list[Run]:
    """The runs of --workdir, each with a name of its own.

    Raises:
        UserError: one of them is no run folder.
    """
    return [_read(folder, name) for name, folder in table.folders(names).items()]


def _read(folder: pathlib.Path, name: str) -> Run:
    if not any((folder / part).exists() for part in PARTS):
        raise UserError(
            f"--workdir={folder} holds no run, expected one or more of {', '.join(PARTS)}; give the folder that "
            "moco_tf.pretrain wrote to"
        )
    metrics, complaints = read_metrics(folder / "metrics.jsonl")
    return Run(name, folder, metrics, read_flags(folder / "flags.cfg"), complaints)


def read_metrics(path: pathlib.Path) -> tuple[list[dict[str, float]], list[str]]:
    """(the lines' finite numbers by name, ordered by step; what is wrong with the file).

    A line that is no JSON object with a step, as a crash leaves one, is left out and named; so is a number that is not
    finite.
    """
    lines, broken, infinite = [], [], {}
    for number, text in enumerate(_text(path).splitlines(), 1):
        if not text.strip():
            continue
        values = _numbers(text)
        kept = {name: value for name, value in values.items() if math.isfinite(value)}
        if "step" not in kept:
            broken.append(number)
            continue
        lines.append(kept)
        for name in values.keys() - kept.keys():
            infinite.setdefault(name, number)
    shown = ", ".join(map(str, broken[:_SHOWN])) + (f" and {len(broken) - _SHOWN} more" if broken[_SHOWN:] else "")
    complaints = [f"{path}: no JSON object with a step in line {shown}; left out"] if broken else []
    complaints += [f"{path}: {name} is not finite in line {first}" for name, first in sorted(infinite.items())]
    return sorted(lines, key=lambda line: line["step"]), complaints


def _numbers(text: str) -> dict[str, float]:
    """The numbers of a line by name; none of a broken one."""
    try:
        values = json.loads(text)
        return {n: float(v) for n, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    except (ValueError, RecursionError, AttributeError, OverflowError):
        return {}


def read_flags(path: pathlib.Path) -> dict[str, str]:
    """A run's flags by name, as text; none where there is no file."""
    return define.texts_of(path)


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend it or give another --workdir") from None
