"""Which of our ResNets and ViTs the weights of a file of another program are of, by names and shapes.

Names are torchvision's or timm's, arrays have PyTorch's layout. Our own checkpoints say what they are of.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moco_tf.errors import UserError
from moco_tf.networks.backbones import vit
from moco_tf.networks.backbones.resnet import VARIANTS

BLOCKS = {(variant["bottleneck"], variant["depths"]): name for name, variant in VARIANTS.items()}
VIT_MARK = "blocks.0.attn.qkv.weight"  # what a ViT is told by
VIT_HEADS = 12  # of all published MoCo v3 networks; no file says how many
HEAD = ("fc.", "head.")  # what the names of a head's variables start with, on a ResNet and on a ViT
_STEMS = {3: "cifar", 7: "imagenet"}
_NAME = re.compile(
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01])|fc(\.\d)?)\.(weight|bias|running_(mean|var))"
)
_STATISTICS = ("running_mean", "running_var")
_VIT_PROJECTION = {"patch": "patch_embed.proj.weight", "conv": "patch_embed.proj.12.weight"}
_NORM1, _NORM4 = ({f"fc.{n}.{part}" for part in ("weight", "bias", *_STATISTICS)} for n in (1, 4))
_HEADS = {  # the last layer, and all names
    "linear": ("fc.weight", {"fc.weight", "fc.bias"}),
    "mlp": ("fc.2.weight", {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}),
    "mlp_bn": ("fc.3.weight", {"fc.0.weight", "fc.3.weight", "fc.3.bias", *_NORM1}),
    "mlp_bn2": ("fc.3.weight", {"fc.0.weight", "fc.3.weight", *_NORM1, *(f"fc.4.{part}" for part in _STATISTICS)}),
    "mlp_bn3": (
        "fc.6.weight",
        {"fc.0.weight", "fc.3.weight", "fc.6.weight", *_NORM1, *_NORM4, *(f"fc.7.{part}" for part in _STATISTICS)},
    ),
}


@dataclass(frozen=True)
class Architecture:
    """An encoder's architecture, in the words of networks.encoder.Encoder; hidden_dim is 0 without a hidden layer."""

    arch: str
    width: int
    stem: str
    head: str
    feature_dim: int
    hidden_dim: int


def describe(state: Mapping[str, np.ndarray]) -> Architecture:
    """The architecture of an encoder by the names and shapes that tell it apart; see `check_against` for the others.

    Raises:
        UserError: not one of the ResNets that networks.encoder builds; says what was found.
    """
    bottleneck = "layer1.0.conv3.weight" in state
    stages = [{name.split(".")[1] for name in state if name.startswith(f"layer{i}.")} for i in (1, 2, 3, 4)]
    arch = BLOCKS.get((bottleneck, tuple(map(len, stages))))
    conv1 = np.shape(state.get("conv1.weight", ()))
    if other := _other(state, conv1, arch):
        raise UserError(
            f"the weights ({listed(state)}; {'bottleneck' if bottleneck else 'basic'} blocks "
            f"{[len(blocks) for blocks in stages]}) are of {other}; expected torchvision's names of "
            f"{', '.join(VARIANTS)}, with a conv1.weight of 3x3 or 7x7 for RGB"
        )
    return Architecture(arch or "", conv1[0], _STEMS[conv1[2]], *_head(state, conv1[0] * (32 if bottleneck else 8)))


def configuration(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The arguments of networks.encoder.Encoder for an encoder's weights.

    Raises:
        UserError: neither a ResNet nor a ViT that is built here; says what was found.
    """
    return _describe_vit(state) if VIT_MARK in state else vars(describe(state))


def _describe_vit(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    shapes = {name: np.shape(value) for name, value in state.items()}
    stem = "conv" if "patch_embed.proj.12.weight" in state else "patch"
    projection, hidden = shapes.get(_VIT_PROJECTION[stem], ()), shapes.get("blocks.0.mlp.fc1.weight", ())
    if len(projection) != 4 or len(hidden) != 2:
        raise UserError(
            f"the weights ({listed(state)}) are of no ViT that is built here; expected timm's names of a "
            f"VisionTransformer with {' or '.join(_VIT_PROJECTION.values())} and MLPs of two layers"
        )
    dim, depth = hidden[1], len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    named = next((arch for arch, variant in vit.VARIANTS.items() if variant["dim"] == dim), "vit_small")
    own = {"width": dim, "depth": depth, "heads": VIT_HEADS, "mlp_ratio": hidden[0] // dim, "stem": stem}
    patch = vit.CONV_PATCH if stem == "conv" else projection[-1]
    head, feature_dim, hidden_dim = _head(_with_fc(state), dim)
    return {"arch": named, **own, "patch": patch, "head": head, "feature_dim": feature_dim, "hidden_dim": hidden_dim}


def fixed_image_size(positions: np.ndarray, patch: int) -> int:
    """The side in pixels of the images that a ViT's position embedding is for.

    Args:
        positions: 1xTxD, as a file has it.
        patch: side of a patch in pixels.

    Raises:
        UserError: it is not the fixed one that is computed here.
    """
    tokens, dim = np.shape(positions)[-2:] if np.ndim(positions) == 3 else (0, 0)
    grid = math.isqrt(max(tokens - 1, 0))
    if tokens != grid**2 + 1 or dim % 4 or np.abs(positions[0] - vit.positions(grid, grid, dim)).max() > 1e-5:
        raise UserError(
            "the position embedding is a learnt one, or of a grid that is no square; expected fixed sines and cosines "
            "in two dimensions, as MoCo v3's: give such a ViT"
        )
    return grid * patch


def _with_fc(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights with the name of a ResNet's head, fc, for a ViT's."""
    return {re.sub("^head", "fc", name): value for name, value in state.items()}


def _other(state: Mapping[str, np.ndarray], conv1: tuple[int, ...], arch: str | None) -> str:
    """What a network is called that is none of ours; empty for ours."""
    narrow, grouped = (np.shape(state.get(f"layer1.0.conv{n}.weight", (0,))) for n in (1, 2))
    unknown = [name for name in state if not _NAME.fullmatch(name)]
    if any(name.startswith("conv1.0.") for name in unknown):
        return "a ResNet with a deep stem (conv1.0), as resnet50d"
    if unknown:
        return f"a network with other layers, {listed(unknown)}"
    if len(conv1) != 4 or conv1[2] != conv1[3] or conv1[2] not in _STEMS:
        return f"no known stem: conv1.weight is {conv1}"
    if conv1[1] != 3:
        return f"a network for images of {conv1[1]} channel{'s' * (conv1[1] > 1)}: conv1.weight is {conv1}"
    if arch is None:
        return "a ResNet of another depth"
    if len(grouped) == 4 and grouped[1] < narrow[0]:
        groups = narrow[0] // max(grouped[1], 1)
        return f"a ResNeXt (resnext{arch.removeprefix('resnet')}_{groups}x{grouped[1]}d: convolutions in groups)"
    if narrow[0] != conv1[0]:
        return f"a wide ResNet (wide_{arch}_{narrow[0] / conv1[0]:g})"
    return ""


def _head(state: Mapping[str, np.ndarray], pooled: int) -> tuple[str, int, int]:
    """(head, feature_dim, hidden_dim) from the fc layers' names; without a head feature_dim is the pooled width."""
    found = {name for name in state if name.startswith("fc.")}
    if not found:
        return "none", pooled, 0
    kind = next((kind for kind, (_, names) in _HEADS.items() if found == names), None)
    matrices = [name for name in found - _NORM1 - _NORM4 if name.endswith(".weight")]
    if kind is None or any(np.ndim(state[name]) != 2 for name in matrices):
        raise UserError(
            f"the head ({listed(found)}) is unknown; expected Linear (fc), Linear-ReLU-Linear (fc.0, fc.2), "
            "Linear-BN-ReLU-Linear (fc.0 without bias, fc.1, fc.3), MoCo v3's (BN after each Linear) or none"
        )
    return kind, len(state[_HEADS[kind][0]]), 0 if kind == "linear" else len(state["fc.0.weight"])


def without_unknown_head(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An encoder's weights; without those of its head if that is none of ours."""
    try:
        _head(_with_fc(state), 0)
        return dict(state)
    except UserError:
        return {name: value for name, value in state.items() if not name.startswith(HEAD)}


def check_against(state: Mapping[str, np.ndarray], expected_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises a UserError that lists missing and unexpected names and differing shapes, if there are any."""
    missing = [name for name in expected_shapes if name not in state]
    unexpected = [name for name in state if name not in expected_shapes]
    shapes = {name: np.shape(state[name]) for name in expected_shapes if name in state}
    differing = [name for name, shape in shapes.items() if shape != tuple(expected_shapes[name])]
    wrong = [f"{name} {shapes[name]} instead of {tuple(expected_shapes[name])}" for name in differing]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    found = [f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names]
    if found:
        raise UserError(f"a wrong architecture: {'; '.join(found)}; give the one that the weights were made for")


def listed(names: Collection[str]) -> str:
    """The first few of some names, on one line."""
    shown = [printable(name, 100) for name in sorted(names)[:4]]
    return ", ".join(shown) + (f", ... ({len(names)} in all)" if len(names) > 4 else "") if shown else "no names"


def printable(text: object, limit: int = 60) -> str:
    """A string from a file (or another value's type) on one line of printable characters, cut at the limit."""
    line = ascii(text if isinstance(text, str) else type(text).__name__)[1:-1]
    return line if len(line) <= limit else line[: limit - 3] + "..."
