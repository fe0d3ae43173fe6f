"""Convolution as PyTorch pads and initialises it, in forms that are faster on a CPU where there are such."""

import functools
from typing import Any

import keras
import tensorflow as tf

from moco_tf.networks import cpu
from moco_tf.training import device


@keras.saving.register_keras_serializable("moco_tf")
class Conv2D(keras.layers.Layer):
    """k x k convolution without bias, PyTorch's padding k // 2; He normal initialisation with fan_out, or another."""

    def __init__(
        self, filters: int, kernel_size: int, strides: int = 1, kernel_initializer: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.strides = filters, kernel_size, strides
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        # Whether it may take matrix products where they are faster. Not in exports: a SavedModel cannot store their
        # custom gradients.
        self.may_use_products = False

    def build(self, input_shape: tuple) -> None:
        # Made here: an initializer draws its seed when it is made, and the order of these decides a network's weights.
        he_normal = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        self.kernel = self.add_weight(
            shape=(self.kernel_size, self.kernel_size, input_shape[-1], self.filters),
            initializer=self.kernel_initializer or he_normal,
            name="kernel",
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        # With stride 2 "SAME" pads one side only. Explicit padding in the op has a very slow bfloat16 backward pass.
        pad = self.kernel_size // 2 if self.strides > 1 else 0
        x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) if pad else x
        padding = "SAME" if self.strides == 1 else "VALID"  # SAME is padding k // 2 for an odd k
        kernel = tf.convert_to_tensor(self.kernel)
        y = cpu.conv2d(x, kernel, self.strides, padding) if self.may_use_products else None
        return tf.nn.conv2d(x, kernel, self.strides, padding) if y is None else y

    def get_config(self) -> dict:
        own: dict[str, Any] = {"filters": self.filters, "kernel_size": self.kernel_size, "strides": self.strides}
        given = self.kernel_initializer
        own["kernel_initializer"] = given and keras.initializers.serialize(given)
        return {**super().get_config(), **own}


def max_pool(x: tf.Tensor) -> tf.Tensor:
    """Maxima of 3x3 pixels, two apart, with padding 1, of what a ReLU gives: BxHxWxC to BxOxPxC."""
    # After a ReLU padding with zeros is padding with minus infinity: no maximum changes.
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    # XLA on GPUs has no deterministic gradient of max-pooling, and refuses it then.
    by_slices = device.has_gpu() and device.is_deterministic()
    return max_pool_by_slices(x) if by_slices else tf.nn.max_pool2d(x, 3, 2, "VALID")


def max_pool_by_slices(x: tf.Tensor) -> tf.Tensor:
    """tf.nn.max_pool2d(x, 3, 2, "VALID"); of equal maxima the first gets the gradient."""
    rows, columns = x.shape[1] - 2, x.shape[2] - 2
    return functools.reduce(
        tf.maximum, [x[:, i : i + rows : 2, j : j + columns : 2] for i in range(3) for j in range(3)]
    )
