"""Projection heads and predictors: fully connected layers on features."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from moco_tf.networks.naming import Composite
from moco_tf.networks.norm import BatchNorm


class Sequential(Composite):
    """Layers one after the other, called 0, 1, 2 ... as in PyTorch's Sequential."""

    def __init__(self, layers: Sequence[keras.layers.Layer], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = list(layers)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        for layer in self.layers:
            x = layer(x, training=training)
        return x


def linear(widths: Sequence[int], use_bias: bool = True, init: str = "torch", dtype: Any = None) -> keras.layers.Dense:
    """A fully connected layer.

    Args:
        widths: its inputs first, its outputs last.
        use_bias: whether it has a bias.
        init, dtype: of `mlp`.
    """
    if init == "normal":
        kernel, bias = keras.initializers.RandomNormal(stddev=0.01), "zeros"
    else:
        limit = 1.0 / np.sqrt(widths[0])
        kernel, bias = (keras.initializers.RandomUniform(-limit, limit) for _ in range(2))
    return keras.layers.Dense(
        widths[-1], use_bias=use_bias, kernel_initializer=kernel, bias_initializer=bias, dtype=dtype
    )


def mlp(
    widths: Sequence[int],
    norm: bool = False,
    init: str = "torch",
    bn_splits: int = 1,
    dtype: Any = None,
    last: str = "bias",
) -> Sequential:
    """A multi-layer perceptron: Linear-ReLU-Linear, or Linear-BN-ReLU-Linear, or longer; its variables are created.

    Args:
        widths: of the input, the hidden layers and the output.
        norm: whether a batch norm follows each hidden layer, which has no bias then.
        init: "torch" (uniform within 1/sqrt(inputs), bias too) or "normal" (N(0, 0.01), bias 0).
        bn_splits: strided splits of the batch in each batch norm.
        dtype: Keras' dtype policy; a method gives that of its encoder, `encoder.dtype_policy`.
        last: what the last layer has: a "bias"; "nothing"; or "norm", a batch norm without scale and offset.
    """
    layers: list[keras.layers.Layer] = []
    for inputs, units in zip(widths[:-2], widths[1:-1]):
        layers.append(linear((inputs, units), not norm, init, dtype))
        layers += [BatchNorm(splits=bn_splits, dtype=dtype)] if norm else []
        layers.append(keras.layers.ReLU(dtype=dtype))
    layers.append(linear(widths[-2:], last == "bias", init, dtype))
    layers += [BatchNorm(splits=bn_splits, scale="none", dtype=dtype)] if last == "norm" else []
    made = Sequential(layers, dtype=dtype)
    made(tf.zeros([1, widths[0]]))
    return made


# {name: (widths of input, hidden layer and output, init, dtype, bn_splits) -> layer}
HEADS: dict[str, Callable[..., keras.layers.Layer | None]] = {
    "linear": lambda widths, init, dtype, bn_splits: linear(widths, init=init, dtype=dtype),
    "mlp": mlp,
    "mlp_bn": partial(mlp, norm=True),
    "mlp_bn2": partial(mlp, norm=True, last="norm"),
    "mlp_bn3": lambda widths, **kwargs: mlp([*widths[:2], *widths[1:]], norm=True, last="norm", **kwargs),
    "none": lambda *_, **__: None,
}
