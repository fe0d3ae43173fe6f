"""Encoder weights under torchvision's names and in PyTorch's layout, from and to Keras variables."""

from collections.abc import Mapping

import numpy as np

from moco_tf.errors import UserError
from moco_tf.networks.encoder import Encoder
from moco_tf.weights import torch_file


def to_torch_layout(value: np.ndarray) -> np.ndarray:
    """HWIO convolution kernels to OIHW, (in, out) matrices to (out, in), vectors as they are."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
    return value if axes is None else np.transpose(value, axes)


def to_keras_layout(value: np.ndarray) -> np.ndarray:
    """OIHW convolution kernels to HWIO, (out, in) matrices to (in, out), vectors as they are."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim)
    return value if axes is None else np.transpose(value, axes)


def get_weights(encoder: Encoder) -> dict[str, np.ndarray]:
    """All variables of an encoder: {torchvision name: float32 array in PyTorch's layout}."""
    return {name: to_torch_layout(np.asarray(v.value)) for name, v in encoder.named_variables().items()}


def set_weights(encoder: Encoder, weights: Mapping[str, np.ndarray]) -> None:
    """Sets all variables of an encoder from {torchvision name: array in PyTorch's layout}.

    Raises:
        UserError: names are missing or left over, or a shape differs; nothing is set then.
    """
    variables = encoder.named_variables()
    missing, extra = sorted(variables.keys() - weights.keys()), sorted(weights.keys() - variables.keys())
    if missing or extra:
        raise UserError(
            f"weights do not fit the encoder: {len(missing)} missing {missing[:3]}, {len(extra)} unexpected {extra[:3]}"
            "; give the architecture that the weights were made for (arch, stem, head, hidden_dim)"
        )
    arrays = {name: to_keras_layout(np.asarray(weights[name])) for name in variables}
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise UserError(
                f"weights do not fit the encoder: {name} has shape {arrays[name].shape}, expected "
                f"{tuple(variable.shape)}; give the architecture that the weights were made for (arch, width, head ...)"
            )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def save_torch_file(encoder: Encoder, path: str) -> None:
    """Writes an encoder as a .pth with torchvision's names, which torch.load(path, weights_only=True) reads."""
    torch_file.write(path, get_weights(encoder))
