"""Detectron2's .pkl of a backbone, for detection and segmentation, by the names of MoCo's own conversion."""

import pathlib

import numpy as np

from moco_tf.formats import base
from moco_tf.weights import detectron2
from moco_tf.weights.load import Loaded, load
from moco_tf.weights.torchvision import get_weights

SUFFIX, ANY_SIZE = ".pkl", False

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
    "those of 18 and 34 are 64 wide. This is for one that you add to it.\n\n"
)


def check() -> None:
    """Detectron2 is not needed."""


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the file."""
    detectron2.write(path, get_weights(subject.encoder))


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of an encoder with the file's weights; the reader executes nothing of the pickle."""
    return {"the file": base.evaluate(load(str(path)).encoder, subject, base.in_unit_range(images))}


def use(subject: Loaded, name: str) -> str:
    """The configuration that fits."""
    config = subject.encoder.config
    narrow = config["width"] != 64 and config["arch"] != "resnet50"
    return _USE.format(
        name=name,
        mean=", ".join(f"{255 * value:.3f}" for value in subject.mean),
        std=", ".join(f"{255 * value:.3f}" for value in subject.std),
        depth=config["arch"].removeprefix("resnet"),
        width=config["width"],
        res2=config["width"] * (4 if config["arch"] == "resnet50" else 1),
        note=_NOTE if config["stem"] == "cifar" or config["arch"] == "resnet10" or narrow else "",
    )
