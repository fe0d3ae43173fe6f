"""What run folders hold, for report and table: metrics and flags. Nothing here trusts what it reads."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable

from moco_tf.config import define
from moco_tf.errors import UserError
from moco_tf.run.folder import Metrics, RunFolder

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
    parts = [folder.metrics, folder.flags, folder.checkpoints]
    if not (any(part.exists() for part in parts) or folder.all_results()):
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
