"""torchvision's names in a file of torch.save."""

import pathlib

import numpy as np

from moco_tf.formats import base
from moco_tf.weights.load import Loaded, load
from moco_tf.weights.torchvision import save_torch_file

SUFFIX, ANY_SIZE = ".pth", False

_USE = """\
{here}
    state = torch.load("{name}", weights_only=True)  # torchvision's names; the head's begin with fc
"""
_HERE = """\
    python -m moco_tf.knn --load={name} --dataset=... --image_size={size} --normalise={normalisation}
"""
_NOT_HERE = """\
A .pth does not hold the normalisation, and --normalise has no name for this one: moco_tf reads it from a .keras export.
"""
_TORCHVISION = """\
    network = torchvision.models.{arch}()
    network.fc = torch.nn.Identity()  # Bx{D} comes out
    network.load_state_dict({{name: value for name, value in state.items() if not name.startswith("fc.")}})
"""


def check() -> None:
    """PyTorch is not needed."""


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the file."""
    save_torch_file(subject.encoder, str(path))


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of an encoder with the file's weights."""
    return {"the file": base.evaluate(load(str(path)).encoder, subject, base.in_unit_range(images))}


def use(subject: Loaded, name: str) -> str:
    """How to load it here and in PyTorch."""
    config, template = subject.encoder.config, _USE
    if (config["stem"], config["width"]) == ("imagenet", 64) and config["arch"] != "resnet10":
        template += _TORCHVISION  # torchvision has this network
    named = base.normalisation_name(subject)
    template = template.replace("{here}", _HERE if named else _NOT_HERE)
    return template.format(name=name, arch=config["arch"], normalisation=named, **base.sizes(subject))
