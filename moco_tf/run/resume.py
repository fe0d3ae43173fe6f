"""Goes on from a run folder's newest sound checkpoint: what must not have changed is refused, the rest is said."""

import dataclasses
import json
import pathlib

from moco_tf.errors import UserError
from moco_tf.methods import base
from moco_tf.methods.base import Method
from moco_tf.run import statistics as rank_statistics
from moco_tf.training import checkpoint, elastic
from moco_tf.training.agree import on_first_rank
from moco_tf.training.collectives import Collectives

# With another value of these, the checkpoint's numbers would belong to another model or loss ...
MODEL = ("method", "arch", "stem", "width", "head", "hidden_dim", "feature_dim", "optimizer")
# ... or its place in the epoch to other images.
IMAGES = ("dataset", "holdout", "normalise", "batch_size", "seed", "read_order")
# The same where the method has them.
OF_METHODS = ("queue_size", "symmetric", "key_update", "npid_loss", "negatives")
_FREE = ("workdir", "data_dir")  # a run folder or data that was moved


@dataclasses.dataclass(frozen=True)
class Found:
    """Where a run goes on: after `step`, with the metrics of the steps since the last line of metrics."""

    step: int = 0
    pending: dict = dataclasses.field(default_factory=dict)


def resume(o: object, method: Method, ranks: Collectives, num_examples: int) -> Found:
    """Restores the newest sound checkpoint of --workdir; then all ranks have the same state, but for what is their own.

    Rank 0 alone reads it: the run folder may be on its disk only.

    Raises:
        UserError: it was made with flags that do not fit, on every rank.
    """
    if elastic.restore(method.state()):
        return Found(int(method.steps_done.numpy()))
    about = on_first_rank(ranks, lambda: _restore(o, method, ranks))
    method.synchronise()
    if about is None:
        return Found()
    if about["statistics"] == ranks.size:
        rows = checkpoint.read_rank_statistics(pathlib.Path(about["path"])) if ranks.rank == 0 else None
        rank_statistics.scatter(method, rows, ranks.size, ranks)
    if ranks.rank == 0:
        print("\n".join([f"resuming from {about['path']}", *changes(o, about, ranks, num_examples)]), flush=True)
    return Found(int(method.steps_done.numpy()), about.get("pending", {}))


def _restore(o: object, method: Method, ranks: Collectives) -> dict | None:
    """Restores on rank 0; returns what checkpoint.json says, `path` and the rows of its rank statistics."""
    newest, complaints = checkpoint.newest_sound(pathlib.Path(o.workdir) / "checkpoints")
    for complaint in complaints:
        print(f"skipped: {complaint}", flush=True)
    if newest is None:
        return None
    about = checkpoint.describe(newest)
    check_flags(o, about.get("flags", {}))
    checkpoint.restore(newest, method.state())
    rows = checkpoint.read_rank_statistics(newest)
    return {**about, "path": str(newest), "statistics": 0 if rows is None else len(rows)}


def check_flags(o: object, before: dict) -> None:
    """Refuses flags that would make the checkpoint's numbers mean something else.

    Args:
        o: the options now.
        before: flags of the checkpoint by name.
    """
    of_method = [name for name in OF_METHODS if name in base.parameters(base.find(o.method))]
    different = [name for name in (*MODEL, *IMAGES, *of_method) if name in _different(o, before)]
    if "float16" in (o.precision, before.get("precision")) and "precision" in _different(o, before):
        different.append("precision")  # its loss scale is part of the state
    if different:
        there, here = (" ".join(_flag(name, value[name]) for name in different) for value in (before, flags_of(o)))
        raise UserError(
            f"the run in {o.workdir} has {there} and came with {here}, which its checkpoint does not fit; give the "
            "same as before, or another --workdir for a new run"
        )


def changes(o: object, about: dict, ranks: Collectives, num_examples: int) -> list[str]:
    """Lines about what is not as it was when the checkpoint was written."""
    lines, before = [], about.get("flags", {})
    now = flags_of(o)
    changed = [name for name in _different(o, before) if name not in _FREE]
    if changed:
        lines.append("changed: " + ", ".join(f"{_flag(n, now[n])} (was {_shown(before[n])})" for n in changed))
    if about.get("ranks", ranks.size) != ranks.size:
        lines.append(
            f"changed: {ranks.size} ranks (were {about['ranks']}) share the same global batch of {o.batch_size}, "
            f"{o.batch_size // ranks.size} images a rank; batch norms see so many (--bn_splits splits them again), and "
            "running statistics go on from their mean"
        )
    if about.get("num_examples", num_examples) != num_examples:
        lines.append(
            f"warning: {num_examples} training images, before {about['num_examples']}: their order and the steps of an "
            "epoch are others from here on"
        )
    return lines


def flags_of(o: object) -> dict[str, object]:
    """All options as JSON has them; what a checkpoint keeps."""
    return json.loads(json.dumps(dataclasses.asdict(o), default=str))


def _different(o: object, before: dict) -> list[str]:
    return [name for name, value in flags_of(o).items() if name in before and before[name] != value]


def _flag(name: str, value: object) -> str:
    return f"--{name}={_shown(value)}"


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
