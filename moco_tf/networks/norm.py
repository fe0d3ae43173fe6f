"""Batch normalisation on TensorFlow's fused kernel, over the whole batch or strided splits of it; or over all ranks."""

from typing import Any

import keras
import tensorflow as tf

from moco_tf.networks.sync_norm import normalise_over_ranks
from moco_tf.training.collectives import Collectives


@keras.saving.register_keras_serializable("moco_tf")
class BatchNorm(keras.layers.Layer):
    """Batch normalisation as PyTorch computes it, on FusedBatchNormV3 (Ioffe and Szegedy, 2015, algorithm 1).

    Keras 3's own layer is not fused on TensorFlow (three times slower on a CPU) and moves the running variance with the
    biased estimate; this one uses the unbiased estimate, as PyTorch does:

        running <- (1 - momentum) * running + momentum * batch

    With `splits` > 1 it is SplitBatchNorm: sample i belongs to split i mod splits, each split is normalised with its
    own statistics, as on `splits` devices, and the running statistics move by the mean over the splits.

    Args:
        momentum: weight of the new batch in the running statistics (PyTorch's sense).
        epsilon: added to the variance.
        splits: number of strided splits of the batch; the batch size must be a multiple of it.
        scale: what the learnt scale starts with, "ones" or "zeros"; "none": neither scale nor offset is learnt.

    Shapes: BxHxWxC or BxC in, the same out. Scale, offset and statistics are float32 under mixed precision.
    """

    def __init__(
        self, momentum: float = 0.1, epsilon: float = 1e-5, splits: int = 1, scale: str = "ones", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if splits < 1:
            raise ValueError(f"splits is {splits}; expected 1 or more")
        self.momentum, self.epsilon, self.splits, self.scale = momentum, epsilon, splits, scale
        # XLA replaces the kernel by E[x^2] - E[x]^2, which loses digits where the mean is larger than the deviation (10
        # times the error, as measured). Subtracting the first image's mean first mends this and is free: XLA fuses it.
        self.for_xla = False
        self.moves = True  # whether a training pass moves the running statistics
        self.over_ranks: Collectives | None = None  # set: SyncBN, training batches have the statistics of all ranks

    def build(self, input_shape: tuple) -> None:
        def vector(name: str, initializer: str, trainable: bool) -> keras.Variable:
            return self.add_weight(
                shape=(input_shape[-1],), name=name, initializer=initializer, trainable=trainable, autocast=False
            )

        if self.scale != "none":
            self.gamma = vector("gamma", self.scale, True)
            self.beta = vector("beta", "zeros", True)
        self.running_mean = vector("running_mean", "zeros", False)
        self.running_variance = vector("running_variance", "ones", False)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = inputs if len(inputs.shape) == 4 else inputs[:, None, None, :]
        y = self._normalise_batch(x) if training else self._normalise_running(x)
        return tf.reshape(y, tf.shape(inputs)) if len(inputs.shape) != 4 else y

    def _scale_and_offset(self) -> tuple[tf.Tensor, tf.Tensor]:
        if self.scale == "none":
            return tf.ones_like(self.running_mean.value), tf.zeros_like(self.running_mean.value)
        return tf.convert_to_tensor(self.gamma.value), tf.convert_to_tensor(self.beta.value)

    def _normalise_running(self, x: tf.Tensor) -> tf.Tensor:
        if x.dtype == tf.float64:
            return self._scaled(x, self.running_mean.value, self.running_variance.value)
        scale, offset = self._scale_and_offset()
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=offset,
            mean=self.running_mean.value,
            variance=self.running_variance.value,
            epsilon=self.epsilon,
            is_training=False,
        ).y

    def _normalise_batch(self, x: tf.Tensor) -> tf.Tensor:
        n = self.splits
        if self.over_ranks and self.over_ranks.size > 1:  # one rank has the whole batch
            return self._normalise_over_ranks(x, self.over_ranks)
        if n > 1 and self.for_xla and x.dtype != tf.float64:
            return self._normalise_splits(x)
        split = self._to_channels(x) if n > 1 else x  # B/n x H x W x nC: one kernel call for all splits
        if x.dtype == tf.float64:
            y = self._normalise_double(split)
            return self._from_channels(y, tf.shape(x)) if n > 1 else y
        shift = tf.stop_gradient(tf.reduce_mean(split[:1], axis=[0, 1, 2])) if self.for_xla else None
        split = split - shift if self.for_xla else split
        scale, offset = self._scale_and_offset()
        out = tf.raw_ops.FusedBatchNormV3(
            x=split,
            scale=tf.tile(scale, [n]),
            offset=tf.tile(offset, [n]),
            mean=tf.zeros([0], tf.float32),
            variance=tf.zeros([0], tf.float32),
            epsilon=self.epsilon,
            is_training=True,
        )
        mean = out.batch_mean + tf.cast(shift, tf.float32) if self.for_xla else out.batch_mean
        self._move(self.running_mean, mean)
        self._move(self.running_variance, out.batch_variance)  # the kernel's output is the unbiased estimate
        return self._from_channels(out.y, tf.shape(x)) if n > 1 else out.y

    def _normalise_splits(self, x: tf.Tensor) -> tf.Tensor:
        """The same in operations that XLA fuses: the kernel's form would copy the batch, to and fro."""
        b, h, w, c = tf.unstack(tf.shape(x))
        parts = tf.cast(tf.reshape(x, [b // self.splits, self.splits, h * w, x.shape[-1]]), tf.float32)
        shift = tf.stop_gradient(tf.reduce_mean(parts[:1], axis=[0, 2], keepdims=True))
        parts -= shift
        mean, square = (tf.reduce_mean(v, axis=[0, 2], keepdims=True) for v in (parts, tf.square(parts)))
        variance = square - tf.square(mean)  # 1 x splits x 1 x C
        scale, offset = self._scale_and_offset()
        y = (parts - mean) * (scale * tf.math.rsqrt(variance + self.epsilon)) + offset
        count = tf.cast(b // self.splits * h * w, tf.float32)
        self._move(self.running_mean, mean + shift)
        self._move(self.running_variance, variance * count / tf.maximum(count - 1.0, 1.0))
        return tf.reshape(tf.cast(y, x.dtype), tf.shape(x))

    def _normalise_over_ranks(self, x: tf.Tensor, collectives: Collectives) -> tf.Tensor:
        shift = tf.convert_to_tensor(self.running_mean.value)
        y, mean, variance = normalise_over_ranks(x, *self._scale_and_offset(), shift, self.epsilon, collectives)
        self._move(self.running_mean, mean)
        self._move(self.running_variance, variance)
        return y

    def _normalise_double(self, x: tf.Tensor) -> tf.Tensor:
        """The same in float64, which the fused kernel lacks: for debugging and proofs, not for speed."""
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        count = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), x.dtype)
        self._move(self.running_mean, mean)
        self._move(self.running_variance, variance * count / tf.maximum(count - 1.0, 1.0))
        return self._scaled(x, mean, variance)

    def _scaled(self, x: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        gamma, beta = (tf.tile(v, [x.shape[-1] // v.shape[0]]) for v in self._scale_and_offset())
        return (x - mean) / tf.sqrt(variance + self.epsilon) * gamma + beta

    def _move(self, running: keras.Variable, batch: tf.Tensor) -> None:
        if not self.moves:
            return
        batch = tf.reduce_mean(tf.reshape(batch, [self.splits, -1]), axis=0) if self.splits > 1 else batch
        running.assign((1.0 - self.momentum) * running.value + self.momentum * tf.stop_gradient(batch))

    def _to_channels(self, x: tf.Tensor) -> tf.Tensor:
        b, h, w, c = tf.unstack(tf.shape(x))
        x = tf.reshape(x, [b // self.splits, self.splits, h, w, x.shape[-1]])  # row i*n + s is sample i of split s
        return tf.reshape(tf.transpose(x, [0, 2, 3, 1, 4]), [b // self.splits, h, w, self.splits * x.shape[-1]])

    def _from_channels(self, y: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        b, h, w, c = tf.unstack(shape)
        y = tf.reshape(y, [b // self.splits, h, w, self.splits, c])
        return tf.reshape(tf.transpose(y, [0, 3, 1, 2, 4]), shape)

    def get_config(self) -> dict:
        own = {"momentum": self.momentum, "epsilon": self.epsilon, "splits": self.splits, "scale": self.scale}
        return {**super().get_config(), **own}
