"""What a run folder, a checkpoint or a file of another program holds, for `python -m moco_tf.show`."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.formats import foreign
from moco_tf.formats.base import Loaded, backbone_options
from moco_tf.formats.load import find, from_checkpoint, from_foreign
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint


def contents(path: str) -> dict[str, Any]:
    """What --load=path holds, of plain types and in the order in which it is to be shown; None if it is not known.

    parameters counts what is learnt in one encoder, head included; pooled_dim is D, feature_dim C of its head;
    optimizer says whether an optimizer's state is there; broken lists checkpoints that were passed over.

    Raises:
        UserError: nothing there, no encoder in it, or it is damaged.
    """
    place = find(path)
    about = {"path": str(place)} | (_of_checkpoint(place) if place.is_dir() else _of_file(place))
    if place.is_dir() and str(place) != str(pathlib.Path(path)):
        found = checkpoint.existing(place.parent)
        about["checkpoints"] = [folder.name for folder in found]
        about["broken"] = [folder.name for folder in found[found.index(place) + 1 :]]
    return about


def _of_file(path: pathlib.Path) -> dict[str, Any]:
    state = foreign.read_state(path)
    loaded = from_foreign(path, state)
    return _of_encoder(loaded) | {
        "bn_splits": None,
        "key_encoder": state.key_encoder is not None,
        "queue": None if state.queue is None else _rows(state.queue.shape, state.queue_pointer),
        "bank": None,
        "optimizer": state.optimizer,
        "step": None,
        "epoch": state.epoch,
        **dict.fromkeys(("image_size", "normalisation", "method", "dataset", "batch_size", "ranks", "flags")),
    }


def _of_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    loaded, about = from_checkpoint(path), checkpoint.describe(path)
    shapes = {name.split("/.")[0]: tuple(shape) for name, shape in tf.train.list_variables(str(path / "variables"))}
    groups = {name.partition("/")[0] for name in shapes}
    return _of_encoder(loaded) | {
        "key_encoder": "key_encoder" in groups,
        "queue": _rows(shapes["queue"], _scalar(path, "queue_pointer")) if "queue" in shapes else None,
        "bank": _rows(shapes["bank"]) if "bank" in shapes else None,
        "optimizer": "optimizer" in groups,
        "step": loaded.step,
        "epoch": _epoch(RunFolder.around(path), about["step"]),
        "image_size": loaded.image_size,
        "normalisation": {"mean": loaded.mean, "std": loaded.std},
        **{name: about.get(name) for name in ("method", "dataset", "batch_size", "ranks")},
        "flags": RunFolder.around(path).flag_lines() or None,
    }


def _of_encoder(loaded: Loaded) -> dict[str, Any]:
    encoder, config, pooled = loaded.encoder, loaded.encoder.config, loaded.encoder.backbone.features
    hidden = None if config["head"] in ("none", "linear") else config["hidden_dim"] or pooled
    return {
        "source": loaded.source,
        **backbone_options(encoder),
        "pooled_dim": pooled,
        "head": config["head"],
        "hidden_dim": hidden,
        "feature_dim": pooled if config["head"] == "none" else config["feature_dim"],
        "parameters": sum(int(np.prod(variable.shape)) for variable in encoder.parameters()),
    }


def _rows(shape: tuple[int, ...], pointer: int | None = None) -> dict[str, int | None]:
    return {"size": shape[0], "dim": shape[1] if len(shape) > 1 else 1, "pointer": pointer}


def _scalar(path: pathlib.Path, name: str) -> int | None:
    try:
        return int(tf.train.load_variable(str(path / "variables"), f"{name}/.ATTRIBUTES/VARIABLE_VALUE"))
    except (ValueError, TypeError, tf.errors.OpError):
        return None


def _epoch(run: RunFolder, step: int) -> float | None:
    """The epochs of a step by the run's metrics: those of a line of this step, or in proportion to the last before."""
    if not run.metrics.is_file():
        return None
    known = [pair for pair in run.read_metrics().series("epoch", "step") if 0 < pair[0] <= step]
    return round(known[-1][1] * step / known[-1][0], 4) if known else None
