"""Convolution as PyTorch pads and initialises it, in forms that are faster on a CPU where there are such."""

import keras
import tensorflow as tf

from moco_tf.networks import winograd


@keras.saving.register_keras_serializable("moco_tf")
class Conv2D(keras.layers.Layer):
    """k x k convolution without bias, PyTorch's padding k // 2, He normal initialisation with fan_out."""

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.strides = filters, kernel_size, strides
        # Whether it may take matrix products in place of TensorFlow's kernels where they are faster. Never in what is
        # exported: a saved graph does not hold a gradient of its own making.
        self.may_use_products = False

    def build(self, input_shape: tuple) -> None:
        self.kernel = self.add_weight(
            shape=(self.kernel_size, self.kernel_size, input_shape[-1], self.filters),
            initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            name="kernel",
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        # With stride 2 "SAME" pads one side only. Explicit padding in the op has a very slow bfloat16 backward pass.
        pad = self.kernel_size // 2 if self.strides > 1 else 0
        x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) if pad else x
        padding = "SAME" if self.strides == 1 else "VALID"  # SAME is padding k // 2 for an odd k
        kernel = tf.convert_to_tensor(self.kernel)
        if self.may_use_products and winograd.is_faster(x, kernel, self.strides):
            return winograd.conv2d(x, kernel)
        if self.may_use_products and _has_fast_products(x, self.kernel_size, self.strides):
            return _conv2d_with_products(x, kernel, self.strides, padding)
        return tf.nn.conv2d(x, kernel, self.strides, padding)

    def get_config(self) -> dict:
        own = {"filters": self.filters, "kernel_size": self.kernel_size, "strides": self.strides}
        return {**super().get_config(), **own}


def _has_fast_products(x: tf.Tensor, size: int, strides: int) -> bool:
    """Whether products are faster than the kernel's own gradient: measured at 4x4 to 32x32 outputs.

    oneDNN's backward pass by weights reaches a third of the forward pass' rate on small maps in bfloat16, and half of
    it in float32 with stride 2; products reach it. A 1x1 convolution's gradient is one product.
    """
    height, width = x.shape[1:3]
    if x.dtype not in (tf.bfloat16, tf.float32) or None in (height, width) or height % strides or width % strides:
        return False
    if size == strides == 1:
        return True
    outputs = height * width if strides == 1 else ((height - size) // strides + 1) * ((width - size) // strides + 1)
    return outputs <= (64 if x.dtype == tf.bfloat16 else 16)


def _conv2d_with_products(x: tf.Tensor, kernel: tf.Tensor, strides: int, padding: str) -> tf.Tensor:
    @tf.custom_gradient
    def conv2d(x: tf.Tensor, kernel: tf.Tensor) -> tuple:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            by_input = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x),
                filter=kernel,
                out_backprop=dy,
                strides=[1, strides, strides, 1],
                padding=padding,
            )
            return by_input, kernel_gradient(x, dy, kernel.shape[0], strides, padding)

        return tf.nn.conv2d(x, kernel, strides, padding), gradient

    return conv2d(x, kernel)


def kernel_gradient(x: tf.Tensor, dy: tf.Tensor, size: int, strides: int, padding: str) -> tf.Tensor:
    """A convolution's gradient in its kernel, size x size x C x D, as one matrix product for each place of the kernel.

    Args:
        x: the convolution's input, BxHxWxC, H and W multiples of the stride.
        dy: the gradient in its output, BxOxPxD.
        size: k.
        strides: 1 or 2.
        padding: "SAME" (of an odd k with stride 1) or "VALID".
    """
    pad = size // 2 if padding == "SAME" else 0
    x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) if pad else x
    _, height, width, channels = x.shape
    out_height, out_width, filters = dy.shape[1:]
    # [s, t, b, i, j] is pixel (s + i strides, t + j strides): a strided slice in place of it takes ten times as long.
    phases = tf.reshape(x, [-1, height // strides, strides, width // strides, strides, channels])
    phases = tf.transpose(phases, [2, 4, 0, 1, 3, 5]) if strides > 1 else phases[None, None, :, :, 0, :, 0]
    rows = tf.reshape(dy, [-1, filters])

    def product(i: int, j: int) -> tf.Tensor:
        top, left = i // strides, j // strides
        seen = phases[i % strides, j % strides, :, top : top + out_height, left : left + out_width]
        return tf.matmul(tf.reshape(seen, [-1, channels]), rows, transpose_a=True)

    products = [product(i, j) for i in range(size) for j in range(size)]
    return tf.reshape(tf.stack(products), [size, size, channels, filters])
