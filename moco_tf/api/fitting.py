"""Pre-training with Keras' own loop: a recipe's method, images, views and schedule.

B per-rank batch, S side of a view, N images.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from moco_tf.api import pretrained
from moco_tf.api.pretrained import as_rgb
from moco_tf.api.recipes import Recipe
from moco_tf.config import define
from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.errors import UserError
from moco_tf.methods import base
from moco_tf.run import prepare, pretraining, statistics
from moco_tf.run.folder import RunFolder
from moco_tf.run.prepare import Pretraining
from moco_tf.training.collectives import broadcast_result
from moco_tf.training.files import write_whole


class Training:
    """What a recipe pre-trains with, for Keras' fit: the same images, views and learning rates as `train` has.

    Nothing is written; checkpoints are Keras callbacks' matter, or `save`'s. `train` is for runs that resume.

    Args:
        recipe: of the program pretrain.

    Attributes:
        recipe: as given.
        method: the compiled method, a keras.Model whose train_step takes (images, labels, indices).
        images: the training images, see moco_tf.data.sources.
        image_size: side of a view in pixels.
        mean, std: of RGB in [0, 1], what views are normalised with.
        batches: this rank's batches, see moco_tf.data.pipeline.

    Raises:
        UserError: as python -m moco_tf.pretrain.
    """

    def __init__(self, recipe: Recipe) -> None:
        if recipe.program != "pretrain":
            raise UserError(f"a recipe of moco_tf.{recipe.program} came, expected one of moco_tf.pretrain")
        o, self.recipe = recipe.options, recipe
        # What would be written or measured on the way is left to callbacks.
        ranks = prepare.connect(o.device, o.run.seed)
        self._run = prepare.pretraining(define.replaced(o, workdir=None, monitor=("knn",), knn_every=0), ranks)
        self.images, self.image_size = self._run.train, self._run.size
        self.mean, self.std = self._run.mean_and_std
        self.batches, self.method = self._run.batches, self._run.method
        broadcast_result(ranks, lambda: pretraining.begin(self._run, None))
        self.method.synchronise()

    def fit(
        self, epochs: int | None = None, callbacks: Sequence[keras.callbacks.Callback] = (), **kwargs: Any
    ) -> keras.callbacks.History:
        """Keras' fit, from the steps done so far to the end of an epoch, with the recipe's schedules.

        The history has each epoch's last step, as the metrics are those of single steps.

        Args:
            epochs: how many in all; default: the recipe's. Its `steps` ends the training earlier.
            callbacks: Keras' own, or yours.
            **kwargs: of keras.Model.fit.

        Raises:
            UserError: the loss is no finite number any more, and nan_policy is not "skip".
        """
        o, per_epoch = self.recipe.options, self.batches.steps_per_epoch
        total = (o.schedule.epochs if epochs is None else epochs) * per_epoch
        total, start = min(o.schedule.steps or total, total), int(self.method.steps_done)
        if start >= total:
            return keras.callbacks.History()
        return self.method.fit(
            self._data(start),
            initial_epoch=start // per_epoch,
            epochs=-(-total // per_epoch),
            steps_per_epoch=min(per_epoch, total - start),
            shuffle=False,  # says nothing: the order is the batches'
            callbacks=[_Schedules(dataclasses.replace(self._run, options=o), start, total), *callbacks],
            **({"verbose": 0} if self._run.collectives.rank else {}) | kwargs,
        )

    def views(self, images: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Two random views of each image as the next step would draw them, before normalisation: to look at.

        Args:
            images: N uint8 images HxWx3 (or HxW, gray), of any sizes.

        Returns:
            Two arrays NxSxSx3 float32 in [0, 1].
        """
        views = prepare.random_views(self.recipe.options.views, self.image_size, NORMALISATIONS["none"])
        seeds = [self.method.seed_of(use) for use in (base.FIRST_VIEW, base.SECOND_VIEW)]
        first, second = (
            np.concatenate([view(as_rgb(x)[None], seed, rows=[i], count=len(images)) for i, x in enumerate(images)])
            for view, seed in zip(views, seeds)
        )
        return first, second

    def save(self, folder: str | os.PathLike) -> "pretrained.Pretrained":
        """Writes the query encoder to a new run folder and loads it from there. See `Pretrained.save`."""
        statistics.average(self.method, self._run.collectives)
        about = pretraining.about(self._run)
        about.pop("encoder")
        saved = pretrained.write(folder, self.method.query_encoder, int(self.method.steps_done), about)
        if self._run.collectives.rank == 0:
            write_whole(RunFolder.of(folder).flags, self.recipe.flagfile)
        return saved

    def _data(self, start: int) -> tf.data.Dataset:
        """The batches from a step on, without an end."""
        first = next(self._batches(start))
        spec = tf.nest.map_structure(lambda x: tf.TensorSpec(np.shape(x), np.asarray(x).dtype), first)
        return tf.data.Dataset.from_generator(lambda: self._batches(start), output_signature=spec)

    def _batches(self, start: int) -> Iterator[tuple]:
        epoch, place = divmod(start, self.batches.steps_per_epoch)
        while True:
            yield from self.batches.batches(epoch, place)
            epoch, place = epoch + 1, 0


class _Schedules(keras.callbacks.Callback):
    """Learning rate and key momentum of each step, and the end, as pretrain's loop has them; stops at a broken loss."""

    def __init__(self, run: Pretraining, start: int, total: int) -> None:
        super().__init__()
        self._run, self._step, self._total = run, start, total

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        self._step += 1
        pretraining.set_rates(self._run.method, pretraining.rates(self._run, self._step))

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"]) and self._run.options.checkpoints.nan_policy == "stop":
            raise UserError(
                f"the loss is {logs['loss']} at step {self._step}, expected a number; lower learning_rate, warm "
                "up with warmup_epochs, or raise temperature"
            )
        if self._step >= self._total:
            self.model.stop_training = True
