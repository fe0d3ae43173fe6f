"""Fine-tuning: the classifier and the backbone below it learn together, in training mode.

B per-rank batch.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from moco_tf.contrast import shuffle_bn
from moco_tf.evaluation.probe import Classifiers, optimizer_state
from moco_tf.networks.encoder import Encoder
from moco_tf.training.collectives import Collectives


class FineTuning:
    """A classifier and the backbone below it, trained by cross entropy; the projection head stays as it is.

    Batch norms use the statistics of a rank's own batch, as PyTorch's DistributedDataParallel has it, and move their
    running ones, which `settle` averages over ranks.

    Args:
        classifiers: one classifier.
        encoder: its backbone is learnt.
        optimizer: of the backbone.
        rate_ratio: the backbone's learning rate divided by the classifier's.
        prepare: (images, seed, positions, global batch) to augmented and normalised images.
        collectives: gradients are averaged over ranks.
        jit_compile: whether XLA compiles what lies between collectives.
    """

    def __init__(
        self,
        classifiers: Classifiers,
        encoder: Encoder,
        optimizer: keras.optimizers.Optimizer,
        rate_ratio: float,
        prepare: Callable,
        collectives: Collectives,
        jit_compile: bool = False,
    ) -> None:
        self.classifiers, self._encoder, self._optimizer = classifiers, encoder, optimizer
        self._rate_ratio, self._prepare, self._collectives = rate_ratio, prepare, collectives
        names = [name for name in encoder.named_variables() if ".running_" not in name]
        self._learnt = {name: encoder.named_variables()[name] for name in names if name.split(".")[0] != "fc"}
        optimizer.build(list(self._learnt.values()))
        if jit_compile:
            encoder.prepare_for_xla()
        self._learn = tf.function(self._forward_backward, jit_compile=True) if jit_compile else self._forward_backward

    def state(self) -> dict[str, dict[str, tf.Variable]]:
        """All variables by name, in groups; what a checkpoint holds, and --load takes as an encoder."""
        encoder = {name: v.value for name, v in self._encoder.named_variables().items()}
        backbone = optimizer_state(self._optimizer, list(self._learnt))
        return {"query_encoder": encoder, "optimizer": backbone, **self.classifiers.state()}

    def set_learning_rates(self, rates: Sequence[float]) -> None:
        """The classifier's, and with it the backbone's."""
        (rate,), (optimizer,) = rates, self.classifiers.optimizers
        optimizer.learning_rate.assign(rate)
        self._optimizer.learning_rate.assign(rate * self._rate_ratio)

    def train_step(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One step on this rank's images; returns loss and accuracy, 1 each, averaged over ranks."""
        batch, ranks = images.shape[0], self._collectives
        x = self._prepare(images, seed, shuffle_bn.positions(batch, ranks), batch * ranks.size)
        gradients, both = self._learn(x, labels)
        *gradients, both = ranks.mean([*gradients, both])
        self._optimizer.apply(gradients[: len(self._learnt)], list(self._learnt.values()))
        self.classifiers.apply(gradients[len(self._learnt) :])
        return both[0], both[1]

    def _forward_backward(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        with tf.GradientTape() as tape:
            losses, accuracies = self.classifiers.loss(self._encoder.features(images, training=True), labels)
        learnt = [*(v.value for v in self._learnt.values()), *self.classifiers.variables()]
        return tape.gradient(losses, learnt), tf.stack([losses, accuracies])

    def settle(self) -> None:
        """Averages the running statistics over ranks, before a test or a checkpoint."""
        statistics = [v.value for v in self._encoder.running_statistics()]
        for variable, mean in zip(statistics, self._collectives.mean([tf.identity(v) for v in statistics])):
            variable.assign(mean)
