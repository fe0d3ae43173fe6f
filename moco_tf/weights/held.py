"""What a run folder, a checkpoint or a file holds, found in its arrays without building a network."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.errors import UserError
from moco_tf.training import checkpoint
from moco_tf.weights import foreign
from moco_tf.weights.architecture import describe
from moco_tf.weights.load import described, find, query_encoder
from moco_tf.weights.torchvision import to_torch_layout


def held(path: str) -> dict[str, Any]:
    """What --load=path holds, of plain types and in the order in which it is to be shown; None for what is not known.

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
    mean, std = state.about.get("mean"), state.about.get("std")
    try:
        about = {"source": state.source} | _encoder(state.encoder)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return about | {
        "key_encoder": state.key_encoder is not None,
        "queue": None if state.queue is None else _rows(state.queue.shape, state.queue_pointer),
        "bank": None,
        "optimizer": state.optimizer,
        "step": state.about.get("step"),
        "epoch": state.epoch,
        "image_size": state.about.get("image_size"),
        "normalisation": {"mean": mean, "std": std} if mean else None,
        **dict.fromkeys(("method", "dataset", "batch_size", "ranks", "flags")),
    }


def _of_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    values = query_encoder(path)
    about = described(path, values)
    shapes = {name.split("/.")[0]: tuple(shape) for name, shape in tf.train.list_variables(str(path / "variables"))}
    groups = {name.partition("/")[0] for name in shapes}
    weights = {name: to_torch_layout(value) for name, value in values.items()}
    return (
        {"source": "moco_tf checkpoint"}
        | _encoder(weights, about["encoder"]["bn_splits"])
        | {
            "key_encoder": "key_encoder" in groups,
            "queue": _rows(shapes["queue"], _scalar(path, "queue_pointer")) if "queue" in shapes else None,
            "bank": _rows(shapes["bank"]) if "bank" in shapes else None,
            "optimizer": "optimizer" in groups,
            "step": about["step"],
            "epoch": _epoch(path.parent.parent / "metrics.jsonl", about["step"]),
            "image_size": about.get("image_size"),
            "normalisation": {part: tuple(about[part]) for part in ("mean", "std")},
            **{name: about.get(name) for name in ("method", "dataset", "batch_size", "ranks")},
            "flags": _flags(path.parent.parent / "flags.cfg"),
        }
    )


def _encoder(weights: Mapping[str, np.ndarray], bn_splits: int | None = None) -> dict[str, Any]:
    found = describe(weights)
    learnt = [value for name, value in weights.items() if ".running_" not in name]
    last = "conv3" if "layer4.0.conv3.weight" in weights else "conv2"
    return {
        "arch": found.arch,
        "stem": found.stem,
        "width": found.width,
        "bn_splits": bn_splits,
        "pooled_dim": len(weights[f"layer4.0.{last}.weight"]),
        "head": found.head,
        "hidden_dim": found.hidden_dim or None,
        "feature_dim": found.feature_dim,
        "parameters": sum(value.size for value in learnt),
    }


def _rows(shape: tuple[int, ...], pointer: int | None = None) -> dict[str, int | None]:
    return {"size": shape[0], "dim": shape[1] if len(shape) > 1 else 1, "pointer": pointer}


def _scalar(path: pathlib.Path, name: str) -> int | None:
    try:
        return int(tf.train.load_variable(str(path / "variables"), f"{name}/.ATTRIBUTES/VARIABLE_VALUE"))
    except (ValueError, TypeError, tf.errors.OpError):
        return None


def _epoch(metrics: pathlib.Path, step: int) -> float | None:
    """The epochs of a step by the run's metrics: those of a line of this step, or in proportion to the last before."""
    try:
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        known = [line for line in lines if "epoch" in line and 0 < line["step"] <= step]
        return round(known[-1]["epoch"] * step / known[-1]["step"], 4) if known else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _flags(path: pathlib.Path) -> list[str] | None:
    """The run's flags, as they ran."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("--")]
    except (OSError, ValueError):
        return None
