"""The linear classifier of a probe, and batches of features that were computed before.

B per-rank batch, D width of the features, N images.
"""

from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from moco_tf.contrast import shuffle_bn
from moco_tf.data.pipeline import epoch_order
from moco_tf.errors import UserError
from moco_tf.training.collectives import Collectives


class LinearProbe:
    """Softmax regression on features: weights N(0, 0.01), bias 0 (MoCo, section 4.1).

    Args:
        features: D.
        classes: number of classes.
        optimizer: of the classifier alone.
        embed: (images, seed, positions, global batch) to features in inference mode, or tf.identity for features.
        collectives: gradients are averaged over ranks.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        optimizer: keras.optimizers.Optimizer,
        embed: Callable,
        collectives: Collectives,
    ) -> None:
        self._linear = keras.layers.Dense(
            classes, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01), dtype="float32"
        )
        self._linear.build((None, features))
        self.optimizer, self._embed, self._collectives = optimizer, embed, collectives
        optimizer.build(self._linear.trainable_variables)

    def variables(self) -> list[tf.Variable]:
        """What is learnt."""
        return [v.value for v in self._linear.trainable_variables]

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """BxD features to BxL."""
        return self._linear(features)

    def train_step(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One step on this rank's images (or features); returns loss and accuracy, averaged over ranks."""
        batch, ranks = images.shape[0], self._collectives
        if self._embed is tf.identity:
            x = tf.cast(images, tf.float32)
        else:
            x = self._embed(images, seed, shuffle_bn.positions(batch, ranks), batch * ranks.size)
        x = tf.stop_gradient(x)
        with tf.GradientTape() as tape:
            logits = self.logits(x)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), labels), tf.float32))
        gradients = tape.gradient(loss, self.variables())
        *gradients, both = ranks.mean([*gradients, tf.stack([loss, accuracy])])
        self.optimizer.apply(gradients, self._linear.trainable_variables)
        return both[0], both[1]

    def test(self, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """Top-1 and top-5 accuracy (with fewer than five classes, top-5 is 1) on NxD features."""
        kernel, bias = (v.numpy() for v in self.variables())
        ranked = np.argsort(-(features @ kernel + bias), axis=1, kind="stable")[:, :5]
        hits = ranked == labels[:, None]
        return float(hits[:, 0].mean()), float(hits.any(1).mean())


class CachedBatches:
    """Features computed once, served as `TrainBatches` serves images.

    Args:
        features, labels: NxD and N, of all images on every rank.
        batch_size: global.
        seed: of the order.
        collectives: each rank takes its positions of every global batch.
    """

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, batch_size: int, seed: int, collectives: Collectives
    ) -> None:
        if batch_size % collectives.size or batch_size > len(features):
            raise UserError(
                f"--batch_size={batch_size} came, expected a multiple of the {collectives.size} ranks and at most "
                f"{len(features)}, the number of training images"
            )
        self._features, self._labels = features, labels
        self._batch_size, self._seed, self._ranks = batch_size, seed, collectives
        self.steps_per_epoch = len(features) // batch_size

    def standardise(self, test: np.ndarray) -> np.ndarray:
        """Gives every training feature mean 0 and deviation 1, and the same shift and scale to the test features."""
        mean, deviation = self._features.mean(0), self._features.std(0)
        deviation = np.where(deviation > 1e-6, deviation, 1.0)
        self._features = (self._features - mean) / deviation
        return (test - mean) / deviation

    def batches(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(features BxD, labels B, indices B) of each step; the last partial batch is dropped."""
        order = epoch_order(self._seed, epoch, len(self._features))
        for step in range(self.steps_per_epoch):
            rows = order[step * self._batch_size : (step + 1) * self._batch_size][self._ranks.rank :: self._ranks.size]
            yield self._features[rows], self._labels[rows], rows
