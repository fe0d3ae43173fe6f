"""Goes on from a run folder's newest whole checkpoint: what must not have changed is refused, the rest is said."""

import dataclasses
import json
import pathlib
from typing import Any

from moco_tf.config import define
from moco_tf.config.types import Value
from moco_tf.errors import UserError
from moco_tf.run import statistics
from moco_tf.run.learner import TrainingTask
from moco_tf.training import checkpoint, elastic
from moco_tf.training.collectives import broadcast_result


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a training goes on: after `step`, with the metrics of the steps since the last line of metrics."""

    step: int = 0
    pending: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def resume(training: TrainingTask) -> Start:
    """Restores the newest whole checkpoint; then all ranks have the same state, but for what is their own.

    Rank 0 alone reads it: the run folder may be on its disk only.

    Raises:
        UserError: it was made with options that do not fit, on every rank.
    """
    learner, collectives = training.learner, training.collectives
    if not training.resumes:
        broadcast_result(collectives, training.begin)
        learner.synchronise()
        return Start()
    if elastic.restore(learner.state()):
        return Start(int(learner.steps_done.numpy()))
    about: Any = broadcast_result(collectives, lambda: _restore(training))
    learner.synchronise()
    if about is None:
        return Start()
    if about["statistics"] == collectives.size:
        rows = checkpoint.read_rank_statistics(pathlib.Path(about["path"])) if collectives.rank == 0 else None
        statistics.scatter(learner, rows, collectives.size, collectives)
    if collectives.rank == 0:
        print("\n".join([f"resuming from {about['path']}", *changes(training, about)]), flush=True)
    return Start(int(learner.steps_done.numpy()), about.get("pending", {}))


def _restore(training: TrainingTask) -> dict[str, Any] | None:
    """Restores on rank 0; returns what checkpoint.json says, `path` and the rows of its rank statistics."""
    newest, complaints = checkpoint.newest_sound(training.folder.checkpoints)
    for complaint in complaints:
        print(f"skipped: {complaint}", flush=True)
    if newest is None:
        training.begin()
        return None
    about = checkpoint.describe(newest)
    check(training, about)
    checkpoint.restore(newest, training.learner.state())
    rows = checkpoint.read_rank_statistics(newest)
    return {**about, "path": str(newest), "statistics": 0 if rows is None else len(rows)}


def check(training: TrainingTask, about: dict[str, Any]) -> None:
    """Refuses options and facts that would make the checkpoint's numbers mean something else.

    Args:
        training: what is about to go on.
        about: what checkpoint.json says.
    """
    facts = about.get("facts", {})
    if facts.keys() != training.facts.keys():
        raise UserError(
            f"the checkpoints in {training.folder.checkpoints} are of another program or version, expected its own or "
            "none; give another --workdir"
        )
    now, before, policy = flags_of(training.options), about.get("flags", {}), define.changes(training.options)
    different = [name for name in _different(now, before) if policy[name] == "refused"]
    if "float16" in (now.get("precision"), before.get("precision")) and "precision" in _different(now, before):
        different.append("precision")  # its loss scale is part of the state
    there, here = ([_flag(name, values[name]) for name in different] for values in (before, now))
    for name, value in training.facts.items():
        if facts[name] != value:
            there.append(f"{name}={facts[name]}")
            here.append(f"{name}={value}")
    if here:
        raise UserError(
            f"the run in {training.folder.path} has {' '.join(there)} and came with {' '.join(here)}, which its "
            "checkpoint does not fit; give the same as before, or another --workdir for a new run"
        )


def changes(training: TrainingTask, about: dict[str, Any]) -> list[str]:
    """Lines about what is not as it was when the checkpoint was written."""
    now, before, policy = flags_of(training.options), about.get("flags", {}), define.changes(training.options)
    lines, ranks, batch_size = [], training.collectives.size, training.batch_size
    changed = [name for name in _different(now, before) if policy[name] == "said"]
    if changed:
        lines.append("changed: " + ", ".join(f"{_flag(n, now[n])} (was {define.shown(before[n])})" for n in changed))
    if now.get("init"):
        lines.append(f"--init={now['init']} is not read again: the run goes on from its checkpoint")
    if about.get("ranks", ranks) != ranks:
        lines.append(
            f"changed: {ranks} ranks (were {about['ranks']}) share the same global batch of {batch_size}, "
            f"{batch_size // ranks} images a rank; batch norms see so many (--bn_splits splits them again), and "
            "running statistics go on from their mean"
        )
    examples = training.about().get("num_examples")
    if examples and about.get("num_examples", examples) != examples:
        lines.append(
            f"warning: {examples} training images, before {about['num_examples']}: their order and the steps of an "
            "epoch are others from here on"
        )
    return lines


def flags_of(options: Any) -> dict[str, Any]:
    """All options as JSON has them; what a checkpoint keeps."""
    return dict(json.loads(json.dumps(define.values_of(options))))


def _different(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    return [name for name, value in now.items() if name in before and before[name] != value]


def _flag(name: str, value: Value) -> str:
    return f"--{name}={define.shown(value)}"
