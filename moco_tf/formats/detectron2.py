"""Detectron2's .pkl of a backbone, for detection and segmentation.

A file is the pickle of {"model": {name: float32 array in PyTorch's layout}, "__author__": str, "matching_heuristics":
True}. Names are those of facebookresearch/moco's conversion: the stem's layers and the head's stand under stem., layer1
to layer4 are res2 to res5, bn<n> is conv<n>.norm, downsample.0 is shortcut and downsample.1 shortcut.norm.
"""

import io
import pathlib
import pickle
import re
from typing import Any

import numpy as np

from moco_tf.formats import base
from moco_tf.formats.base import Loaded
from moco_tf.formats.torchvision import get_weights
from moco_tf.networks.backbones.resnet import VARIANTS

SUFFIX, ANY_SIZE = ".pkl", False
AUTHOR = "moco_tf"

_DOWNSAMPLE = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}
_NUMPY = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
_USE = """\
{note}In Detectron2's configuration (strides are in the 3x3 convolutions, images are RGB):

    MODEL:
      WEIGHTS: "{name}"
      PIXEL_MEAN: [{mean}]
      PIXEL_STD: [{std}]
      RESNETS:
        DEPTH: {depth}
        STRIDE_IN_1X1: False
        STEM_OUT_CHANNELS: {width}
        WIDTH_PER_GROUP: {width}
        RES2_OUT_CHANNELS: {res2}
    INPUT:
      FORMAT: "RGB"

The head's weights, stem.fc..., are not used there.
"""
_NOTE = (
    "Detectron2 itself has no such network: its stem is a 7x7 convolution, its depths are 18, 34 and 50 and more, and "
    "those of 18 and 34 are 64 wide. This file is for a network that you add to it.\n\n"
)


def to_detectron2(name: str) -> str:
    """layer1.0.bn2.weight is res2.0.conv2.norm.weight, bn1.weight is stem.conv1.norm.weight."""
    stage = re.match(r"layer([1-4])\.", name)
    name = f"res{int(stage[1]) + 1}.{name[stage.end() :]}" if stage else f"stem.{name}"
    name = re.sub(r"\bbn([123])\.", r"conv\1.norm.", name)
    return re.sub(r"\bdownsample\.[01]", lambda match: _DOWNSAMPLE[match[0]], name)


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the file. Raises UnfitEncoder unless the encoder is a ResNet."""
    base.check_resnet("detectron2", subject.encoder)
    arrays = {to_detectron2(name): np.ascontiguousarray(v, "<f4") for name, v in get_weights(subject.encoder).items()}
    content = pickle.dumps({"model": arrays, "__author__": AUTHOR, "matching_heuristics": True}, 3)
    # NumPy 1 does not know NumPy 2's name of the module; NumPy 2 knows both. Its first place is before all arrays.
    path.write_bytes(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1))


class _Arrays(pickle.Unpickler):
    """Reads plain data and NumPy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return super().find_class(module, name)


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of an encoder with the file's weights."""
    arrays = _Arrays(io.BytesIO(path.read_bytes())).load()["model"]
    weights = {name: arrays[to_detectron2(name)] for name in subject.encoder.named_variables()}
    return {"the file": base.evaluate_weights(weights, subject, images)}


def use(subject: Loaded, name: str) -> str:
    """The configuration that fits."""
    config = subject.encoder.config
    bottleneck = VARIANTS[config["arch"]]["bottleneck"]
    narrow = config["width"] != 64 and not bottleneck
    return _USE.format(
        name=name,
        mean=", ".join(f"{255 * value:.3f}" for value in subject.mean),
        std=", ".join(f"{255 * value:.3f}" for value in subject.std),
        depth=config["arch"].removeprefix("resnet"),
        width=config["width"],
        res2=config["width"] * (4 if bottleneck else 1),
        note=_NOTE if config["stem"] == "cifar" or config["arch"] == "resnet10" or narrow else "",
    )
