"""What the .keras format's ResNets and ViTs share: layers of Keras' own, named and shaped as an encoder's."""

import keras
import numpy as np

Layers = dict[str, list[np.ndarray]]  # values by layer, in an order that Keras takes, too


def convolution(x: keras.KerasTensor, layers: Layers, name: str, strides: int) -> keras.KerasTensor:
    """A convolution with padding k // 2 on every side; with stride 2 Keras' "same" would pad one side only."""
    side, _, _, filters = layers[name][0].shape
    x = keras.layers.ZeroPadding2D(side // 2)(x) if strides > 1 and side > 1 else x
    padding = "valid" if strides > 1 else "same"
    return keras.layers.Conv2D(filters, side, strides, padding, use_bias=False, name=name)(x)


def norm(x: keras.KerasTensor, name: str, learnt: bool = True) -> keras.KerasTensor:
    """A batch norm as PyTorch's in inference; without scale and offset unless they are learnt."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, center=learnt, scale=learnt, name=name)(x)
