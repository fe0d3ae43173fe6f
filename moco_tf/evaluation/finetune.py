"""Fine-tuning: the classifier and the backbone below it learn together, in training mode.

B per-rank batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from moco_tf.contrast import shuffle_bn
from moco_tf.evaluation.probe import Classifiers, optimizer_state
from moco_tf.networks.encoder import Encoder
from moco_tf.training import compiled
from moco_tf.training.collectives import Collectives
from moco_tf.training.stop import StopRequest
from moco_tf.training.update import Guard, averaged


class FineTuning:
    """A classifier and the backbone below it, trained by cross entropy; the projection head stays as it is.

    Batch norms use the statistics of a rank's own batch, as PyTorch's DistributedDataParallel has it, and move their
    running ones.

    Args:
        classifiers: one classifier.
        encoder: its backbone is learnt.
        optimizer: of the backbone.
        rate_ratio: the backbone's learning rate divided by the classifier's.
        prepare: (images, seed, positions, global batch) to augmented and normalised images.
        collectives: gradients are averaged over ranks.
        jit_compile: whether XLA compiles what lies between collectives.
        seed: of the views.
    """

    one_piece = False

    def __init__(
        self,
        classifiers: Classifiers,
        encoder: Encoder,
        optimizer: keras.optimizers.Optimizer,
        rate_ratio: float,
        prepare: Callable,
        collectives: Collectives,
        jit_compile: bool = False,
        seed: int = 0,
    ) -> None:
        self.classifiers, self._encoder, self._optimizer = classifiers, encoder, optimizer
        self._rate_ratio, self._prepare, self._collectives, self._seed = rate_ratio, prepare, collectives, seed
        self._backbone = encoder.backbone.named_parameters()
        optimizer.build(list(self._backbone.values()))
        if jit_compile:
            encoder.prepare_for_xla()
        self._learn = compiled.function(self._forward_backward) if jit_compile else self._forward_backward
        self.steps_done = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps_done")
        self.stop, self.guard = StopRequest(), Guard(len(self.learnt()))

    def learnt(self) -> dict[str, keras.Variable]:
        """What the optimizers change, by name: the backbone's parameters, then the classifier's."""
        return {**self._backbone, **self.classifiers.learnt()}

    def state(self) -> dict[str, Any]:
        """All variables by name, in groups; what a checkpoint holds, and --load takes as an encoder."""
        return {
            "query_encoder": {name: v.value for name, v in self._encoder.named_variables().items()},
            "optimizer": optimizer_state(self._optimizer, list(self._backbone)),
            **self.classifiers.state(),
            "steps_done": self.steps_done,
        }

    def running_statistics(self) -> list[tf.Variable]:
        """Those of the backbone, which differ from rank to rank."""
        return [v.value for v in self._encoder.running_statistics()]

    def synchronise(self) -> None:
        """Gives every rank the state of rank 0."""
        self._collectives.broadcast(tf.nest.flatten(self.state()))

    def set_learning_rates(self, rates: Sequence[tf.Tensor | float]) -> None:
        """The classifier's, and with it the backbone's."""
        (rate,), (optimizer,) = rates, self.classifiers.optimizers
        optimizer.learning_rate.assign(rate)
        self._optimizer.learning_rate.assign(rate * self._rate_ratio)

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step on this rank's (images, labels, indices); returns scalar metrics, averaged over ranks."""
        images, labels, *_ = data
        batch, collectives = images.shape[0], self._collectives
        seed = tf.stack([self._seed, tf.cast(self.steps_done, tf.int32)])
        x = self._prepare(images, seed, shuffle_bn.positions(batch, collectives), batch * collectives.size)
        gradients, metrics = averaged(collectives, self.stop, *self._learn(x, labels))
        passes = self.guard.passes(metrics["loss"], gradients, self.steps_done + 1)
        tf.cond(passes, lambda: self._step(gradients), lambda: None)
        self.steps_done.assign_add(1)
        return metrics

    def _step(self, gradients: list[tf.Tensor]) -> None:
        self._optimizer.apply(gradients[: len(self._backbone)], list(self._backbone.values()))
        self.classifiers.apply(gradients[len(self._backbone) :])

    def _forward_backward(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        with tf.GradientTape() as tape:
            losses, accuracies = self.classifiers.loss(self._encoder.features(images, training=True), labels)
        gradients = tape.gradient(losses, [v.value for v in self.learnt().values()])
        return gradients, {"loss": losses[0], "train_top1": accuracies[0]}
