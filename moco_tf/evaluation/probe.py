"""Linear classifiers on frozen features, and batches of features that were computed before.

B per-rank batch, D width of the features, N images, L classes, R classifiers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from moco_tf.contrast import shuffle_bn
from moco_tf.data.pipeline import epoch_order
from moco_tf.errors import UserError
from moco_tf.evaluation.scores import label_places
from moco_tf.training.collectives import Collectives
from moco_tf.training.stop import StopRequest
from moco_tf.training.update import Guard, averaged

HELD_OUT = 0.1  # share of the training images on which settings are compared
_ROWS = 8192  # features that are tested at a time


class Classifiers:
    """Softmax regressions on the same features, one for each optimizer: weights N(0, 0.01), bias 0 (MoCo, section 4.1).

    They begin alike and do not know of each other, but share one matrix product: the grid of learning rates costs
    little more than one of them.

    Args:
        features: D.
        classes: L.
        optimizers: R.
    """

    def __init__(self, features: int, classes: int, optimizers: Sequence[keras.optimizers.Optimizer]) -> None:
        first = keras.initializers.RandomNormal(stddev=0.01)((features, classes))
        self.classes, self.optimizers = classes, list(optimizers)
        self._layers = []
        for optimizer in self.optimizers:
            layer = keras.layers.Dense(classes, dtype="float32")
            layer.build((None, features))
            layer.kernel.assign(first)
            optimizer.build(layer.trainable_variables)
            self._layers.append(layer)

    def variables(self) -> list[tf.Variable]:
        """What is learnt: kernel DxL and bias L of each classifier."""
        return [v.value for layer in self._layers for v in layer.trainable_variables]

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """BxD to BxRxL."""
        kernel = tf.concat([layer.kernel.value for layer in self._layers], axis=1)  # Dx(RL)
        bias = tf.concat([layer.bias.value for layer in self._layers], axis=0)
        return tf.reshape(features @ kernel + bias, [-1, len(self._layers), self.classes])

    def loss(self, features: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross entropy and share of right answers on BxD features with B labels: R float32 each."""
        logits = self.logits(features)
        wanted = tf.tile(labels[:, None], [1, len(self._layers)])  # BxR
        losses = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(wanted, logits), axis=0)
        right = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 2, tf.int32), wanted), tf.float32), axis=0)
        return losses, right

    def apply(self, gradients: list[tf.Tensor]) -> None:
        """Takes each optimizer's step with its own gradients, in the order of `variables`."""
        for i, (layer, optimizer) in enumerate(zip(self._layers, self.optimizers)):
            optimizer.apply(gradients[2 * i : 2 * i + 2], layer.trainable_variables)

    def learnt(self) -> dict[str, keras.Variable]:
        """What a single classifier learns, by name."""
        (layer,) = self._layers
        return {"fc.weight": layer.kernel, "fc.bias": layer.bias}

    def state(self) -> dict[str, dict[str, tf.Variable]]:
        """All variables of a single classifier by name, in groups; what a checkpoint holds."""
        (optimizer,) = self.optimizers
        learnt = {name: v.value for name, v in self.learnt().items()}
        return {"classifier": learnt, "classifier_optimizer": optimizer_state(optimizer, list(learnt))}

    def test(
        self, features: np.ndarray, labels: np.ndarray
    ) -> tuple[list[tuple[float, float]], np.ndarray, np.ndarray]:
        """(top-1, top-5) of each classifier, R; predictions and their probabilities, NxR, of NxD features, N labels.

        With fewer than five classes top-5 is 1. A classifier that has diverged, with logits that are not finite, is
        right nowhere.
        """
        kernels = [v.numpy() for v in self.variables()]
        places, predictions = (np.empty((len(features), len(self._layers)), np.int64) for _ in range(2))
        confidences = np.empty(places.shape)
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            for i, (kernel, bias) in enumerate(zip(kernels[::2], kernels[1::2])):
                with np.errstate(over="ignore", invalid="ignore"):
                    logits = features[rows] @ kernel + bias
                    likeliest = logits.max(axis=1, keepdims=True)
                    confidences[rows, i] = 1 / np.exp(logits - likeliest, dtype=np.float64).sum(axis=1)
                places[rows, i] = label_places(logits, labels[rows])
                predictions[rows, i] = logits.argmax(axis=1)
        shares = [(float((column == 0).mean()), float((column < 5).mean())) for column in places.T]
        return shares, predictions, confidences


class LinearProbe:
    """Classifiers on a backbone in inference mode, which they leave alone.

    Args:
        classifiers: what is learnt.
        embed: (images, seed, positions, global batch) to features in inference mode, or tf.identity for features.
        collectives: gradients are averaged over ranks.
        seed: of the views.
    """

    one_piece = False

    def __init__(self, classifiers: Classifiers, embed: Callable, collectives: Collectives, seed: int = 0) -> None:
        self.classifiers, self._embed, self._collectives, self._seed = classifiers, embed, collectives, seed
        self.steps_done = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps_done")
        self.stop, self.guard = StopRequest(), Guard(len(classifiers.variables()))

    def learnt(self) -> dict[str, keras.Variable]:
        """What the optimizer changes, by name: that of a single classifier."""
        return self.classifiers.learnt()

    def state(self) -> dict[str, Any]:
        """All variables by name, in groups; what a checkpoint holds."""
        return {**self.classifiers.state(), "steps_done": self.steps_done}

    def running_statistics(self) -> list[tf.Variable]:
        """None: the backbone's stay as they are."""
        return []

    def synchronise(self) -> None:
        """Gives every rank the state of rank 0."""
        self._collectives.broadcast(tf.nest.flatten(self.state()))

    def set_learning_rates(self, rates: Sequence[tf.Tensor | float]) -> None:
        """That of each classifier, R."""
        for optimizer, rate in zip(self.classifiers.optimizers, rates, strict=True):
            optimizer.learning_rate.assign(rate)

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step of a single classifier on this rank's (images or features, labels, indices)."""
        gradients, losses, accuracies = self._gradients(*data[:2])
        metrics = {"loss": losses[0], "train_top1": accuracies[0]}
        gradients, metrics = averaged(self._collectives, self.stop, gradients, metrics)
        passes = self.guard.passes(metrics["loss"], gradients, self.steps_done + 1)
        tf.cond(passes, lambda: self.classifiers.apply(gradients), lambda: None)
        self.steps_done.assign_add(1)
        return metrics

    def train_step_of_all(self, data: tuple[tf.Tensor, ...]) -> tf.Tensor:
        """One step of every classifier; returns their losses, R, averaged over ranks. One may diverge alone."""
        gradients, losses, _ = self._gradients(*data[:2])
        *gradients, losses = self._collectives.mean([*gradients, losses])
        self.classifiers.apply(gradients)
        self.steps_done.assign_add(1)
        return losses

    def _gradients(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """(gradients of all classifiers, losses R, accuracies R)."""
        batch, collectives = images.shape[0], self._collectives
        if self._embed is tf.identity:
            x = tf.cast(images, tf.float32)
        else:
            seed = tf.stack([self._seed, tf.cast(self.steps_done, tf.int32)])
            x = self._embed(images, seed, shuffle_bn.positions(batch, collectives), batch * collectives.size)
        x = tf.stop_gradient(x)
        with tf.GradientTape() as tape:
            losses, accuracies = self.classifiers.loss(x, labels)
            loss = tf.reduce_sum(losses)  # of independent terms: each classifier gets the gradient of its own
        return tape.gradient(loss, self.classifiers.variables()), losses, accuracies


class CachedBatches:
    """Features computed once, served as `TrainBatches` serves images.

    Args:
        features, labels: NxD and N, of all images on every rank.
        batch_size: global.
        seed: of the order.
        collectives: each rank takes its positions of every global batch.
        rows: only these, default all.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        collectives: Collectives,
        rows: np.ndarray | None = None,
    ) -> None:
        self._rows = np.arange(len(features)) if rows is None else rows
        check_batch(batch_size, len(self._rows), collectives)
        self._features, self._labels = features, labels
        self._batch_size, self._seed, self._ranks = batch_size, seed, collectives
        self.steps_per_epoch = len(self._rows) // batch_size

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(features BxD, labels B, indices B) of each step from start_step on; the last partial batch is dropped."""
        order = self._rows[epoch_order(self._seed, epoch, len(self._rows))]
        for step in range(start_step, self.steps_per_epoch):
            rows = order[step * self._batch_size : (step + 1) * self._batch_size][self._ranks.rank :: self._ranks.size]
            yield self._features[rows], self._labels[rows], rows

    def fetch(self, batch: tuple) -> tuple:
        """The batch itself."""
        return batch


def check_batch(batch_size: int, count: int, collectives: Collectives) -> None:
    """Refuses a global batch that ranks cannot share, or that is larger than the number of images. Raises UserError."""
    if batch_size % collectives.size or batch_size > count:
        raise UserError(
            f"--batch_size={batch_size} came, expected a multiple of the {collectives.size} ranks and at most {count}, "
            "the number of training images"
        )


def held_out(count: int, seed: int) -> np.ndarray:
    """A tenth of the rows of `count` training images, to choose settings on: ascending, one at least, fixed by seed."""
    rows = np.random.default_rng([seed, 2]).permutation(count)
    return np.sort(rows[: max(1, round(HELD_OUT * count))])


def standardise(train: np.ndarray, test: np.ndarray) -> None:
    """Gives every training feature mean 0 and deviation 1, and the test features the same shift and scale, in place."""
    mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    train -= mean
    deviation = np.sqrt(np.einsum("nd,nd->d", train, train, dtype=np.float32) / len(train))
    deviation = np.where(deviation > 1e-6, deviation, np.float32(1))
    train /= deviation
    test -= mean
    test /= deviation


def optimizer_state(optimizer: keras.optimizers.Optimizer, names: Sequence[str]) -> dict[str, tf.Variable]:
    """An optimizer's variables by slot and by the names of what it learns."""
    slots = {
        f"{slot}/{name}": v.value
        for slot, variables in optimizer.slots.items()
        for name, v in zip(names, variables, strict=True)
    }
    return {**slots, "iterations": optimizer.iterations.value}
