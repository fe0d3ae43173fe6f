"""What run folders hold, for report and table: metrics, flags, accuracies. Nothing here trusts what it reads."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Iterator

from moco_tf.config import define
from moco_tf.errors import UserError
from moco_tf.run.folder import Metrics, RunFolder

BASELINES = {"untrained": "untrained encoder", "raw_pixels": "raw pixels"}
COLUMNS = {"knn": "kNN top-1", "lincls": "linear top-1"}
_SHOWN = 3  # broken lines that are named one by one


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run folder says.

    Args:
        name: of the run, for people.
        folder: the run folder.
        metrics: of metrics.jsonl; empty without the file.
        flags: of flags.cfg, as text by name; empty without the file.
        complaints: what is wrong with the files.
    """

    name: str
    folder: RunFolder
    metrics: Metrics
    flags: dict[str, str]
    complaints: list[str]


def read_all(names: Iterable[str]) -> list[RunRecord]:
    """The runs of --workdir, each with a name of its own.

    Raises:
        UserError: one of them is no run folder, or cannot be read.
    """
    return [_read(folder, name) for name, folder in folders(names).items()]


def _read(folder: RunFolder, name: str) -> RunRecord:
    parts = [folder.metrics, folder.flags, folder.checkpoints, *(folder.results(column).path for column in COLUMNS)]
    if not any(part.exists() for part in parts):
        raise UserError(
            f"--workdir={folder.path} holds no run, expected one or more of {', '.join(part.name for part in parts)}; "
            "give the folder that moco_tf.pretrain wrote to"
        )
    metrics = folder.read_metrics() if folder.metrics.exists() else Metrics([], [])
    return RunRecord(name, folder, metrics, define.texts_of(folder.flags), _complaints(folder.metrics, metrics))


def _complaints(path: pathlib.Path, metrics: Metrics) -> list[str]:
    """What is wrong with a metrics.jsonl: broken lines, and the first value of each metric that is not finite."""
    broken = metrics.broken
    infinite: dict[str, float] = {}
    for line in metrics.lines:
        for name, value in line.items():
            if not math.isfinite(value):
                infinite.setdefault(name, line["step"])
    shown = ", ".join(map(str, broken[:_SHOWN])) + (f" and {len(broken) - _SHOWN} more" if broken[_SHOWN:] else "")
    complaints = [f"{path}: no JSON object with a step in line {shown}; left out"] if broken else []
    return complaints + [f"{path}: {name} is not finite at step {step:g}" for name, step in sorted(infinite.items())]


def folders(names: Iterable[str]) -> dict[str, RunFolder]:
    """The folders of --workdir by a name of its own for each: its last part where that is enough.

    Raises:
        UserError: there are none, or one of them is no folder.
    """
    paths = [pathlib.Path(name) for name in dict.fromkeys(names) if name.strip()]
    if not paths:
        raise UserError("--workdir is missing; give a run folder, or several: a,b,c")
    for path in paths:
        if not path.is_dir():
            raise UserError(f"--workdir={path} is no folder; give a run folder, or several: a,b,c")
    short = [path.resolve().name for path in paths]
    return dict(zip(short if len(set(short)) == len(short) else map(str, paths), map(RunFolder, paths)))


def table(runs: dict[str, RunFolder]) -> str:
    """The runs' accuracies beside their baselines', as Markdown; a dash where nothing was evaluated."""
    lines = ["| features | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows(runs)]
    return "\n".join(lines)


def rows(runs: dict[str, RunFolder]) -> Iterator[tuple[str, list[str]]]:
    """(name, a cell for each of COLUMNS) of every run, folders by name, and of the baselines."""
    for name, run in runs.items():
        yield "pre-trained" if len(runs) == 1 else name, [_top1([run.results(column)]) for column in COLUMNS]
    for baseline, name in BASELINES.items():
        yield name, [_top1(run.results(column, baseline) for run in runs.values()) for column in COLUMNS]


def _top1(places: Iterable[RunFolder]) -> str:
    """The accuracy in the first folder that has one."""
    for folder in places:
        top1 = folder.read_result().get("top1")
        if isinstance(top1, int | float):
            return f"{100 * top1:.2f}"
    return "-"
