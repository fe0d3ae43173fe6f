"""What a run folder, a checkpoint or a file of another program holds, for `python -m moco_tf.show`."""

import pathlib
from typing import Any

import numpy as np

from moco_tf.formats import load
from moco_tf.formats.base import backbone_options
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint


def contents(path: str) -> dict[str, Any]:
    """What --load=path holds, of plain types and in the order in which it is to be shown; None if it is not known.

    parameters counts what is learnt in one encoder, head included; pooled_dim is D, feature_dim C of its head;
    optimizer says whether an optimizer's state is there; notes are lines about what was chosen and left out; broken
    lists checkpoints that were passed over.

    Raises:
        UserError: nothing there, no encoder in it, or it is damaged.
    """
    place = load.find(path)
    state = load.read_state(place)
    loaded, ours = load.build(place, state), place.is_dir()
    about, run = checkpoint.describe(place) if ours else {}, RunFolder.around(place)
    config, pooled = loaded.encoder.config, loaded.encoder.backbone.features
    bank = checkpoint.read_group(place, "bank") if ours else {}
    found = {
        "path": str(place),
        "source": loaded.source,
        **backbone_options(loaded.encoder),
        "bn_splits": config["bn_splits"] if ours else None,
        "pooled_dim": pooled,
        "head": config["head"],
        "hidden_dim": None if config["head"] in ("none", "linear") else config["hidden_dim"] or pooled,
        "feature_dim": pooled if config["head"] == "none" else config["feature_dim"],
        "parameters": sum(int(np.prod(variable.shape)) for variable in loaded.encoder.parameters()),
        "key_encoder": state.key_encoder is not None,
        "queue": None if state.queue is None else _rows(state.queue.shape, state.queue_pointer),
        "bank": _rows(bank[""].shape) if bank else None,
        "optimizer": bool(checkpoint.read_group(place, "optimizer")) if ours else state.optimizer,
        "step": loaded.step,
        "epoch": _epoch(run, about["step"]) if ours else state.epoch,
        "image_size": loaded.image_size or None,
        "test_resize": loaded.test_resize if ours else None,
        "normalisation": {"mean": loaded.mean, "std": loaded.std} if ours else None,
        **{name: about.get(name) for name in ("method", "dataset", "batch_size", "ranks")},
        "flags": (run.flag_lines() or None) if ours else None,
        "notes": list(state.notes),
    }
    if ours and str(place) != str(pathlib.Path(path)):
        checkpoints = checkpoint.existing(place.parent)
        found["checkpoints"] = [folder.name for folder in checkpoints]
        found["broken"] = [folder.name for folder in checkpoints[checkpoints.index(place) + 1 :]]
    return found


def _rows(shape: tuple[int, ...], pointer: int | None = None) -> dict[str, int | None]:
    return {"size": shape[0], "dim": shape[1] if len(shape) > 1 else 1, "pointer": pointer}


def _epoch(run: RunFolder, step: int) -> float | None:
    """The epochs of a step by the run's metrics: those of a line of this step, or in proportion to the last before."""
    if not run.metrics.is_file():
        return None
    known = [pair for pair in run.read_metrics().series("epoch", "step") if 0 < pair[0] <= step]
    return round(known[-1][1] * step / known[-1][0], 4) if known else None
