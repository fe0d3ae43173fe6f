"""What a run keeps of a step that is not finite, for moco_tf.debug: state, batch, flags; one step, in RUN/broken.

Nothing is copied while all goes well. A step whose loss is not finite leaves the learnt weights and the optimizer as
they were: they can still be kept when the loop finds it, some steps later. What such steps do change (key encoder,
queue, bank, statistics) is taken from the last checkpoint where it is not finite. The batch is read once more.
"""

import pathlib
import shlex
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.config import define
from moco_tf.errors import UserError
from moco_tf.run.learner import Batches, Learner, TrainingTask
from moco_tf.training import checkpoint
from moco_tf.training.collectives import Collectives
from moco_tf.training.files import replacing
from moco_tf.training.update import flat

BATCH = "batch.npz"
_MOST = 2**28  # bytes of images that are kept: larger batches are named by their images' numbers alone


def keep(training: TrainingTask, first: int, found: int) -> str:
    """Keeps the state and the batch of a step on rank 0, in place of those of an earlier one; all ranks call it.

    Args:
        training: that stops.
        first: number of the step, from 1 on.
        found: steps that are done.

    Returns:
        What to say of it, behind a message; empty for a training that is not kept.
    """
    if not training.keeps_broken:
        return ""
    folder, guard = training.folder, training.learner.guard
    rank = take_broken_weights(training.learner, training.collectives)
    batch = gathered(training.batches.fetch(batch_of(training.batches, first)), training.collectives)
    if training.collectives.rank != 0:
        return ""
    about: dict[str, Any] = {
        **training.about(),
        "words": define.flagfile(training.options).splitlines(),
        "found": found,
        "broken_rank": rank,
        "left_out": int(guard.left_out),
    }
    try:
        checkpoint.save(folder.broken, first, training.learner.state(), about, keep=1)
        with replacing(folder.broken / BATCH) as draft:
            np.savez(draft, step=np.int64(first), allow_pickle=False, **batch)
    except UserError as error:
        return f"; its state is not kept: {error}"
    return f"; python -m moco_tf.debug --load={shlex.quote(str(folder.path))} says which value was the first"


def take_broken_weights(learner: Learner, ranks: Collectives) -> int:
    """The first rank with weights that are not finite, -1 where there is none; all ranks get these weights of it.

    Ranks have the same weights, unless memory fails on one of them.
    """
    weights = {name: v for name, v in flat(learner.state()).items() if v.trainable}
    own = [number for number, v in enumerate(weights.values()) if not np.isfinite(v.numpy()).all()]
    with tf.device("/CPU:0"):
        rows = ranks.allgather(tf.constant([[ranks.rank, number] for number in own], tf.int64, [len(own), 2])).numpy()
        if not len(rows):
            return -1
        first = int(rows[:, 0].min())
        for variable in [list(weights.values())[number] for number in rows[rows[:, 0] == first, 1]]:
            if ranks.size > 1:
                variable.assign(ranks.allgather(variable[None])[first])
    return first


def batch_of(batches: Batches, step: int) -> tuple:
    """This rank's batch of a step, counted from 1, as the loop gives it to the step."""
    return next(batches.batches(*divmod(step - 1, batches.steps_per_epoch)))


def gathered(batch: tuple, collectives: Collectives) -> dict[str, np.ndarray]:
    """All ranks' images, labels and indices in the order of the global batch: images0, images1 where views differ."""
    images, labels, indices = batch
    columns = {f"images{i}": x for i, x in enumerate(images if isinstance(images, tuple | list) else [images])}
    size = sum(np.asarray(x).nbytes for x in columns.values()) * collectives.size
    columns = {**(columns if size <= _MOST else {}), "labels": labels, "indices": indices}
    with tf.device("/CPU:0"):
        return {
            name: _in_order(collectives.allgather(tf.constant(x)).numpy(), collectives.size)
            for name, x in columns.items()
        }


def _in_order(rows: np.ndarray, ranks: int) -> np.ndarray:
    """Ranks' rows one after the other, to the global batch, in which rank r has the places r, r + ranks ..."""
    return rows.reshape(ranks, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def read(path: pathlib.Path, step: int) -> tuple[tuple | np.ndarray, np.ndarray, np.ndarray] | None:
    """(images, or those of each view; labels; indices) of a step as `keep` wrote them; None without images.

    Raises:
        UserError: the file is not there, broken, or of another step.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if int(arrays["step"]) != step:
            raise ValueError(f"of step {int(arrays['step'])}")
        views: Sequence[np.ndarray] = [arrays[name] for name in sorted(arrays) if name.startswith("images")]
        if not views:
            return None
        return (views[0] if len(views) == 1 else tuple(views)), arrays["labels"], arrays["indices"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); expected the batch of step {step}") from None
