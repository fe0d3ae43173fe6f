"""Weights that other implementations of MoCo wrote, by content: encoders, queue and what architecture they are.

Read are checkpoints of facebookresearch/moco and of its CIFAR-10 notebook, torchvision's ResNets (.pth), and
moco.tensorflow's .npz files. Names follow torchvision, arrays PyTorch's layout: kernels OIHW, matrices (out, in).
"""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moco_tf.errors import UserError
from moco_tf.formats import pth, tensorpack
from moco_tf.formats.architecture import check_against, listed, printable

MAX_BYTES = 16 * 2**30  # ResNet-50 four times as wide, with its key encoder and optimizer, has 5 GB
# The CIFAR-10 notebook's encoder is nn.Sequential: conv1, bn1, ReLU, four layers, pooling, flatten, fc.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4", "9": "fc"}


@dataclass(frozen=True)
class Foreign:
    """What a foreign file holds.

    Attributes:
        encoder: {torchvision name: float32 array} of the query encoder, or of the whole network.
        key_encoder: the same for the key encoder, None if the file has none.
        queue: KxC float32, None if the file has none.
        queue_pointer: the row that is replaced next, None if the file has none.
        epoch, arch: as the file says.
        source: "moco .pth.tar", "torchvision .pth" or "moco.tensorflow .npz".
        optimizer: whether the file has an optimizer's state, too.
    """

    encoder: dict[str, np.ndarray]
    key_encoder: dict[str, np.ndarray] | None
    queue: np.ndarray | None
    queue_pointer: int | None
    epoch: int | None
    arch: str | None
    source: str
    optimizer: bool = False

    def __post_init__(self) -> None:
        """Refuses two encoders of different shapes and a pointer outside of the queue."""
        if self.key_encoder is not None:
            check_against(self.key_encoder, {name: value.shape for name, value in self.encoder.items()})
        if self.queue is not None and not 0 <= (self.queue_pointer or 0) < max(len(self.queue), 1):
            raise UserError(f"queue_ptr is {self.queue_pointer} in a queue of {len(self.queue)}; use an undamaged file")


def read_state(path: str | os.PathLike) -> Foreign:
    """Reads a foreign file, told apart by its content.

    Raises:
        UserError: the file is unreadable, holds more than plain data and tensors, or no encoder.
    """
    _check_size(path)
    entries = _zip_entries(path)
    if any(name.endswith(".npy") for name in entries):
        return _from_tensorpack(path)
    if "model.weights.h5" in entries:
        raise UserError(
            f"{path}: a .keras file, which is written here but not read; give the run folder or the .pth of the same "
            "encoder"
        )
    data = pth.read(path)
    try:
        return _from_torch(data)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e.__cause__


def _check_size(path: str | os.PathLike) -> None:
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    if size > MAX_BYTES:
        raise UserError(
            f"{path} has {size / 1e9:,.1f} GB, expected at most {MAX_BYTES / 1e9:.1f}: no encoder is so large; give "
            "another file"
        )


def _zip_entries(path: str | os.PathLike) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return []  # the reader of PyTorch's files says what it is


def _from_tensorpack(path: str | os.PathLike) -> Foreign:
    arrays = tensorpack.read(path)
    try:
        query, key = tensorpack.encoder_prefixes(arrays)
        return Foreign(
            encoder=tensorpack.to_torchvision(arrays, query),
            key_encoder=None if key is None else tensorpack.to_torchvision(arrays, key),
            queue=_queue(arrays.get("queue")),
            queue_pointer=_pointer(arrays.get("queue_ptr")),
            epoch=None,
            arch=None,
            source="moco.tensorflow .npz",
            optimizer=any(tensorpack.is_slot(name) for name in arrays),
        )
    except UserError as e:
        raise UserError(f"{path}: {e}") from e.__cause__


def _from_torch(data: Any) -> Foreign:
    expected = "expected a state_dict or a checkpoint with one, as torch.save(model.state_dict(), path) writes"
    if not isinstance(data, dict):
        raise UserError(f"the file holds a {printable(data)}; {expected}")
    state = data.get("state_dict", data)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"its state_dict is no dict of names; {expected}")
    state = _without_prefix(state, "module.")
    queries = _encoder(state, "encoder_q.")
    keys = _encoder(state, "encoder_k.")
    encoder = queries or _encoder(state, "")
    if "conv1.weight" not in encoder:
        raise UserError(f"no encoder (conv1.weight) among {listed(state)}; expected a ResNet's or MoCo's state_dict")
    queue = _queue(state.get("queue"))
    epoch, arch = data.get("epoch"), data.get("arch")
    return Foreign(
        encoder=encoder,
        key_encoder=keys or None,
        queue=None if queue is None else np.ascontiguousarray(queue.T),  # CxK there
        queue_pointer=_pointer(state.get("queue_ptr")),
        epoch=epoch if type(epoch) is int else None,
        arch=arch if isinstance(arch, str) else None,
        source="moco .pth.tar" if queries else "torchvision .pth",
        optimizer=isinstance(data.get("optimizer"), dict) and data is not state,
    )


def _without_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The state without a prefix that every name has (DistributedDataParallel's `module.`)."""
    if not all(name.startswith(prefix) for name in state):
        return dict(state)
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _encoder(state: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    """One encoder's tensors as float32 under torchvision's names; counters of batches are dropped."""
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if "net.0.weight" in inner:
        inner = {_from_sequential(name): value for name, value in inner.items()}
    inner = {name: value for name, value in inner.items() if not name.endswith("num_batches_tracked")}
    if not prefix:
        inner = {name: value for name, value in inner.items() if name not in ("queue", "queue_ptr")}
    wrong = [name for name, value in inner.items() if not isinstance(value, np.ndarray) or value.dtype.kind != "f"]
    if wrong:
        raise UserError(
            f"{listed(wrong)}: no floating-point tensors; expected a network's weights: torch.save its state_dict"
        )
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in inner.items()}


def _from_sequential(name: str) -> str:
    """net.3.0.conv1.weight is layer1.0.conv1.weight."""
    _, index, rest = [*name.split(".", 2), "", ""][:3]
    return f"{_SEQUENTIAL[index]}.{rest}" if name.startswith("net.") and index in _SEQUENTIAL else name


def _queue(value: Any) -> np.ndarray | None:
    """A queue of two dimensions as float32, in the file's orientation."""
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind != "f":
        shape = getattr(value, "shape", printable(value))
        raise UserError(f"the queue is {shape}; expected a floating-point matrix; use a file of MoCo with one queue")
    return np.ascontiguousarray(value, dtype=np.float32)


def _pointer(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "iu":
        shape = getattr(value, "shape", printable(value))
        raise UserError(f"queue_ptr is {shape}; expected one integer; use a file of MoCo with one queue")
    return int(value.reshape(-1)[0])
