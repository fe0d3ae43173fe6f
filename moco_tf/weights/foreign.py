"""Weights that other implementations of MoCo wrote, by content: encoders, queue and what architecture they are.

Read are checkpoints of facebookresearch/moco and of its CIFAR-10 notebook, torchvision's ResNets (.pth) and
moco.tensorflow's .npz files. Names follow torchvision, arrays PyTorch's layout: kernels OIHW, matrices (out, in).
"""

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moco_tf.errors import UserError
from moco_tf.weights import tensorpack, torch_file
from moco_tf.weights.torch_objects import show

_BLOCKS = {
    ("basic", (1, 1, 1, 1)): "resnet10",
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
}
_STEMS = {3: "cifar", 7: "imagenet"}
# The CIFAR-10 notebook's encoder is nn.Sequential: conv1, bn1, ReLU, four layers, pooling, flatten, fc.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4", "9": "fc"}
_NAME = re.compile(
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01])|fc(\.\d)?)\.(weight|bias|running_(mean|var))"
)


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
    """

    encoder: dict[str, np.ndarray]
    key_encoder: dict[str, np.ndarray] | None
    queue: np.ndarray | None
    queue_pointer: int | None
    epoch: int | None
    arch: str | None
    source: str

    def __post_init__(self) -> None:
        """Refuses two encoders of different shapes and a pointer outside of the queue."""
        if self.key_encoder is not None:
            check_against(self.key_encoder, {name: value.shape for name, value in self.encoder.items()})
        if self.queue is not None and not 0 <= (self.queue_pointer or 0) < max(len(self.queue), 1):
            raise UserError(f"queue_ptr is {self.queue_pointer} in a queue of {len(self.queue)}; use an undamaged file")


@dataclass(frozen=True)
class Architecture:
    """An encoder's architecture, in the words of networks.encoder.Encoder; hidden_dim is 0 without a hidden layer."""

    arch: str
    width: int
    stem: str
    head: str
    feature_dim: int
    hidden_dim: int


def read_state(path: str | os.PathLike) -> Foreign:
    """Reads a foreign file, told apart by its content.

    Raises:
        UserError: the file is unreadable, holds more than plain data and tensors, or no encoder.
    """
    if _is_npz(path):
        return _from_tensorpack(path)
    data = torch_file.read(path)
    try:
        return _from_torch(data)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e.__cause__


def _is_npz(path: str | os.PathLike) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False  # the reader of PyTorch's files says what it is


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
        )
    except UserError as e:
        raise UserError(f"{path}: {e}") from e.__cause__


def _from_torch(data: Any) -> Foreign:
    expected = "expected a state_dict or a checkpoint with one, as torch.save(model.state_dict(), path) writes"
    if not isinstance(data, dict):
        raise UserError(f"the file holds a {show(data)}; {expected}")
    state = data.get("state_dict", data)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"its state_dict is no dict of names; {expected}")
    state = _without_prefix(state, "module.")
    queries = _encoder(state, "encoder_q.")
    keys = _encoder(state, "encoder_k.")
    encoder = queries or _encoder(state, "")
    if "conv1.weight" not in encoder:
        raise UserError(f"no encoder (conv1.weight) among {_names(state)}; expected a ResNet's or MoCo's state_dict")
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
            f"{_names(wrong)}: no floating-point tensors; expected a network's weights: torch.save its state_dict"
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
        shape = getattr(value, "shape", show(value))
        raise UserError(f"the queue is {shape}; expected a floating-point matrix; use a file of MoCo with one queue")
    return np.ascontiguousarray(value, dtype=np.float32)


def _pointer(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "iu":
        shape = getattr(value, "shape", show(value))
        raise UserError(f"queue_ptr is {shape}; expected one integer; use a file of MoCo with one queue")
    return int(value.reshape(-1)[0])


def describe(state: Mapping[str, np.ndarray]) -> Architecture:
    """The architecture of an encoder by its names and shapes (see `check_against` for all shapes).

    Raises:
        UserError: not one of the ResNets that networks.encoder builds; says what was found.
    """
    known = all(_NAME.fullmatch(name) for name in state)
    stages = [{name.split(".")[1] for name in state if name.startswith(f"layer{i}.")} for i in (1, 2, 3, 4)]
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    arch = _BLOCKS.get((block, tuple(len(blocks) for blocks in stages)))
    conv1 = np.shape(state.get("conv1.weight", ()))
    stem = _STEMS.get(conv1[2]) if len(conv1) == 4 and conv1[1] == 3 and conv1[2] == conv1[3] else None
    narrow = np.shape(state.get("layer1.0.conv1.weight", ()))[:1] == conv1[:1]  # not so in wide_resnet50_2
    if not known or not narrow or arch is None or stem is None:
        raise UserError(
            f"the weights ({_names(state)}; conv1.weight {conv1}; {block} blocks {[len(s) for s in stages]}) are of no "
            "known architecture; expected torchvision's names of resnet10, 18, 34 or 50 and a 3x3 or 7x7 conv1.weight"
        )
    pooled = conv1[0] * 8 * (4 if block == "bottleneck" else 1)
    return Architecture(arch, conv1[0], stem, *_head(state, pooled))


def _head(state: Mapping[str, np.ndarray], pooled: int) -> tuple[str, int, int]:
    """(head, feature_dim, hidden_dim) from the fc layers' names; without a head feature_dim is the pooled width."""
    found = {name for name in state if name.startswith("fc.")}
    normalised = {"fc.0.weight", "fc.3.weight", "fc.3.bias"}
    normalised |= {f"fc.1.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
    matrices = [name for name in found if name.endswith(".weight") and name != "fc.1.weight"]
    if any(np.ndim(state[name]) != 2 for name in matrices):
        raise UserError(f"the head ({_names(found)}) has weights that are no matrices; expected Linear layers")
    if not found:
        return "none", pooled, 0
    if found == {"fc.weight", "fc.bias"}:
        return "linear", len(state["fc.weight"]), 0
    if found == {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}:
        return "mlp", len(state["fc.2.weight"]), len(state["fc.0.weight"])
    if found == normalised:
        return "mlp_bn", len(state["fc.3.weight"]), len(state["fc.0.weight"])
    raise UserError(
        f"the head ({_names(found)}) is unknown; expected Linear (fc), Linear-ReLU-Linear (fc.0, fc.2), "
        "Linear-BN-ReLU-Linear (fc.0 without bias, fc.1, fc.3) or none"
    )


def check_against(state: Mapping[str, np.ndarray], expected_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises a UserError that lists missing and unexpected names and differing shapes, if there are any."""
    missing = [name for name in expected_shapes if name not in state]
    unexpected = [name for name in state if name not in expected_shapes]
    shapes = {name: np.shape(state[name]) for name in expected_shapes if name in state}
    differing = [name for name, shape in shapes.items() if shape != tuple(expected_shapes[name])]
    wrong = [f"{name} {shapes[name]} instead of {tuple(expected_shapes[name])}" for name in differing]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    found = [f"{len(names)} {what}: {_names(names)}" for what, names in problems.items() if names]
    if found:
        raise UserError(f"a wrong architecture: {'; '.join(found)}; give the one that the weights were made for")


def _names(names: Any) -> str:
    """The first few of some names, on one line."""
    shown = [show(name, 100) for name in sorted(names)[:4]]
    return ", ".join(shown) + (f", ... ({len(names)} in all)" if len(names) > 4 else "") if shown else "no names"
