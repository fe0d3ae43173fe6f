"""Encoder weights under torchvision's names and in PyTorch's layout, from and to Keras variables."""

from collections.abc import Mapping

import numpy as np

from moco_tf.formats.architecture import check_against
from moco_tf.networks.encoder import Encoder

# Axes of convolution kernels (HWIO to OIHW) and matrices ((in, out) to (out, in)); others stay as they are.
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_TO_KERAS = {4: (2, 3, 1, 0), 2: (1, 0)}


def to_torch_layout(value: np.ndarray) -> np.ndarray:
    """HWIO convolution kernels to OIHW, (in, out) matrices to (out, in), others as they are."""
    return np.transpose(value, _TO_TORCH.get(value.ndim, range(value.ndim)))


def to_keras_layout(value: np.ndarray) -> np.ndarray:
    """OIHW convolution kernels to HWIO, (out, in) matrices to (in, out), others as they are."""
    return np.transpose(value, _TO_KERAS.get(value.ndim, range(value.ndim)))


def get_weights(encoder: Encoder) -> dict[str, np.ndarray]:
    """All variables of an encoder: {torchvision name: float32 array in PyTorch's layout}."""
    return {name: to_torch_layout(np.asarray(v.value)) for name, v in encoder.named_variables().items()}


def check_weights(encoder: Encoder, weights: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if names or shapes of {torchvision name: array in PyTorch's layout} are not the encoder's."""
    shapes = {name: tuple(v.shape) for name, v in encoder.named_variables().items()}
    check_against(
        weights,
        {
            name: tuple(shape[axis] for axis in _TO_TORCH.get(len(shape), range(len(shape))))
            for name, shape in shapes.items()
        },
    )


def set_weights(encoder: Encoder, weights: Mapping[str, np.ndarray]) -> None:
    """Sets all variables of an encoder from {torchvision name: array in PyTorch's layout}.

    Raises:
        UserError: names are missing or left over, or a shape differs; nothing is set then.
    """
    check_weights(encoder, weights)
    for name, variable in encoder.named_variables().items():
        variable.assign(to_keras_layout(np.asarray(weights[name])))
