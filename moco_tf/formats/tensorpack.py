"""Weights of moco.tensorflow (tensorpack) in .npz files, under torchvision's names and in PyTorch's layout.

Names there: conv0, then group<stage - 1>/block<n>/conv<m> and convshortcut, each with W and with its batch norm's
gamma, beta, mean/EMA and variance/EMA under conv0_bn/ (moco.tensorflow) or conv0/bn/ (tensorpack's examples); fully
connected layers are linear<n>_<units> (or linear, fc), each with W and b. The query encoder stands under no prefix, the
key encoder under momentum_encoder/; the queue is `queue` (KxC) with `queue_ptr`. Two differences stay: its batch norm
has epsilon 1.001e-5 (PyTorch 1e-5), and the key encoder's running statistics were never updated in training.

Source: github.com/ppwwyyxx/moco.tensorflow and tensorpack's ResNet example.
"""

import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_tf.errors import UserError
from moco_tf.formats.pth import DAMAGED
from moco_tf.formats.torchvision import to_torch_layout

MAX_BYTES = 4 * 2**30  # of all arrays; a MoCo of ResNet-50 with its optimizer takes 0.4e9
MAX_RATIO = 20  # of arrays to the file: weights hardly compress, zeros of an optimizer do

_PARTS = {"W": "weight", "gamma": "weight", "beta": "bias", "mean/EMA": "running_mean", "variance/EMA": "running_var"}
_SLOTS = re.compile(r"/(Momentum|Adam(_\d)?|RMSProp(_\d)?|ExponentialMovingAverage|biased|local_step)$")
_IN_ENCODER = re.compile(r"(conv\d|bn|group\d|linear|fc)[^/]*/")
_LAYER = re.compile(
    r"(?P<block>group(?P<group>\d)/block(?P<index>\d+)/)?conv(?P<number>\d|shortcut)"
    r"(/(?P<kernel>W)|(_bn|/bn)/(?P<part>gamma|beta|mean/EMA|variance/EMA))"
)
_UNREADABLE: tuple[type[Exception], ...] = (*DAMAGED, AttributeError)  # the latter of a lone .npy
_DENSE = re.compile(r"(?:linear|fc)(\d*)(?:_\w+)?")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, without TensorFlow's ":0"; pickled objects are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed, size = sum(info.file_size for info in archive.infolist()), os.path.getsize(path)
        if claimed > min(MAX_RATIO * size + 2**20, MAX_BYTES):
            raise UserError(f"{path}: {size} bytes claim to hold {claimed} of arrays; give an undamaged file")
        with np.load(path, allow_pickle=False) as file:
            return {name.removesuffix(":0"): file[name] for name in file.files}
    except _UNREADABLE as e:
        reason = ascii(str(e))[1:-1][:80]
        raise UserError(
            f"{path}: not a readable .npz file ({reason}); expected arrays saved by np.savez; copy it again"
        ) from e


def is_slot(name: str) -> bool:
    """Whether an array is an optimizer's."""
    return _SLOTS.search(name) is not None


def encoder_prefixes(arrays: Mapping[str, Any]) -> tuple[str, str | None]:
    """The prefixes ("" or "scope/") of the query encoder and, if there is one, of the key encoder."""
    prefixes = [name.removesuffix("conv0/W") for name in arrays if name == "conv0/W" or name.endswith("/conv0/W")]
    key = [p for p in prefixes if re.search(r"momentum|key", p)]
    query = [p for p in prefixes if p not in key]
    if len(query) != 1 or len(key) > 1:
        raise UserError(
            f"found {len(query)} query encoders (conv0/W) and {len(key)} key encoders among {sorted(arrays)[:5]}...; "
            "expected one query encoder and at most one under momentum_encoder/; give an .npz of moco.tensorflow"
        )
    return query[0], key[0] if key else None


def to_torchvision(arrays: Mapping[str, np.ndarray], prefix: str | None = None) -> dict[str, np.ndarray]:
    """The encoder behind a prefix (None: the query encoder) as {torchvision name: float32 array}, for RGB images.

    The first convolution's input channels are reversed, because images there are BGR. Optimizer slots and variables
    outside of the encoder are ignored.

    Raises:
        UserError: no encoder, or variables in it with unknown names or ranks.
    """
    prefix = encoder_prefixes(arrays)[0] if prefix is None else prefix
    inner = {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
    inner = {name: value for name, value in inner.items() if _IN_ENCODER.match(name) and not is_slot(name)}
    dense = sorted({name.split("/")[0] for name in inner if _DENSE.match(name)}, key=_dense_index)
    names = {name: _renamed(name, dense) for name in inner}
    unknown = sorted(f"{name} {value.shape}" for name, value in inner.items() if value.ndim != names[name][1])
    if unknown:
        raise UserError(
            f"{len(unknown)} unknown encoder variables: {', '.join(unknown[:8])}; "
            "expected the names of moco.tensorflow's ResNet (conv0, group0/block0/conv1, linear0_128 ...)"
        )
    out = {names[name][0]: to_torch_layout(value) for name, value in inner.items()}
    out["conv1.weight"] = out["conv1.weight"][:, ::-1]
    return {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in out.items()}


def _dense_index(name: str) -> int:
    match = _DENSE.match(name)
    return int(match[1]) if match and match[1] else 0


def _renamed(name: str, dense: list[str]) -> tuple[str, int]:
    """The torchvision name of one variable and the number of its dimensions, -1 if it is unknown."""
    layer, _, part = name.partition("/")
    if layer in dense:
        fc = "fc" if len(dense) == 1 else f"fc.{2 * dense.index(layer)}"  # Linear-ReLU-Linear
        return {"W": (f"{fc}.weight", 2), "b": (f"{fc}.bias", 1)}.get(part, ("", -1))
    match = _LAYER.fullmatch(name)
    if match is None or bool(match["block"]) == (match["number"] == "0"):  # conv0 alone is outside of the groups
        return "", -1
    kernel, block = match["kernel"], f"layer{int(match['group']) + 1}.{match['index']}." if match["block"] else ""
    torch_layer = f"{'conv' if kernel else 'bn'}{match['number'] if block else 1}"
    if match["number"] == "shortcut":
        torch_layer = f"downsample.{0 if kernel else 1}"
    return f"{block}{torch_layer}.{_PARTS[kernel or match['part']]}", 4 if kernel else 1
