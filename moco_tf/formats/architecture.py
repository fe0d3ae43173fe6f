"""Which of our ResNets the weights of a file of another program are of, by names and shapes.

Names are torchvision's, arrays have PyTorch's layout. Our own checkpoints say what they are of.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from moco_tf.errors import UserError

BLOCKS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (1, 1, 1, 1)): "resnet10",
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
}
_STEMS = {3: "cifar", 7: "imagenet"}
_NAME = re.compile(
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01])|fc(\.\d)?)\.(weight|bias|running_(mean|var))"
)


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
    known = all(_NAME.fullmatch(name) for name in state)
    stages = [{name.split(".")[1] for name in state if name.startswith(f"layer{i}.")} for i in (1, 2, 3, 4)]
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    arch = BLOCKS.get((block, tuple(len(blocks) for blocks in stages)))
    conv1 = np.shape(state.get("conv1.weight", ()))
    stem = _STEMS.get(conv1[2]) if len(conv1) == 4 and conv1[1] == 3 and conv1[2] == conv1[3] else None
    narrow = np.shape(state.get("layer1.0.conv1.weight", ()))[:1] == conv1[:1]  # not so in wide_resnet50_2
    if not known or not narrow or arch is None or stem is None:
        raise UserError(
            f"the weights ({listed(state)}; conv1.weight {conv1}; {block} blocks {[len(s) for s in stages]}) are of no "
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
        raise UserError(f"the head ({listed(found)}) has weights that are no matrices; expected Linear layers")
    if not found:
        return "none", pooled, 0
    if found == {"fc.weight", "fc.bias"}:
        return "linear", len(state["fc.weight"]), 0
    if found == {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}:
        return "mlp", len(state["fc.2.weight"]), len(state["fc.0.weight"])
    if found == normalised:
        return "mlp_bn", len(state["fc.3.weight"]), len(state["fc.0.weight"])
    raise UserError(
        f"the head ({listed(found)}) is unknown; expected Linear (fc), Linear-ReLU-Linear (fc.0, fc.2), "
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
