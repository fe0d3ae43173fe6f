"""What formats share: a loaded encoder, its outputs, and the function that runtimes other than TensorFlow run.

Legend: B images of a batch, S side of the network's images, D pooled features, C output of the head.
"""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import tensorflow as tf

from moco_tf.config import extras
from moco_tf.data.normalisation import NORMALISATIONS, normalisation
from moco_tf.errors import UserError
from moco_tf.evaluation import features
from moco_tf.formats.architecture import BLOCKS
from moco_tf.formats.torchvision import set_weights
from moco_tf.networks.backbones import vit
from moco_tf.networks.encoder import Encoder
from moco_tf.training.files import one_line

HOW_TO_RESIZE = """\

Resize images of other sizes to {size} x {size} first: bring the short side to {resize}, bilinear and antialiased (as
PIL does), and cut out the centre.
"""
_OF_THE_HEAD = ("head", "feature_dim", "hidden_dim", "head_init")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An encoder and what is known about it.

    Attributes:
        encoder: the network.
        path: the checkpoint or file that it comes from.
        source: what that is, in words.
        step: steps that it was trained for; None if unknown.
        image_size: side of its images in pixels; 0 if unknown.
        mean, std: what its images in [0, 1] were normalised with, three numbers each.
        notes: lines about what was chosen in the file, and what left out.
        test_resize: short side before the centre crop in tests; 0: 256/224 of the size.
    """

    encoder: Encoder
    path: str
    source: str
    step: int | None
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    test_resize: int = 0

    @property
    def resize(self) -> int:
        """The short side that images of other sizes are brought to before the centre is cut out."""
        return self.test_resize or features.short_side(self.image_size)


Known = TypeVar("Known", bound=Loaded)


def used_with(loaded: Known, image_size: int = 0, test_resize: int | None = None, normalise: str = "auto") -> Known:
    """An encoder with the size and normalisation of images to use it with.

    Args:
        loaded: the encoder.
        image_size: side of its images in pixels; 0: its own.
        test_resize: short side before the centre crop; None: its own, if its images have its own size.
        normalise: name of a normalisation; "auto": its own.

    Raises:
        UserError: there is no such normalisation.
    """
    size = image_size or loaded.image_size
    if test_resize is None:
        test_resize = loaded.test_resize if size == loaded.image_size else 0
    mean, std = normalisation(normalise, "") if normalise != "auto" else (loaded.mean, loaded.std)
    return dataclasses.replace(loaded, image_size=size, test_resize=test_resize, mean=mean, std=std)


class UnfitEncoder(UserError):
    """A format cannot hold this encoder, or cannot be written on this machine."""


def need(name: str, packages: tuple[str, ...], extra: str) -> None:
    """Raises UnfitEncoder if packages of an extra cannot be imported."""
    try:
        extras.need(f"--format={name}", packages, extra, "; or give --format=savedmodel")
    except UserError as error:
        raise UnfitEncoder(str(error)) from None


def unconvertible(name: str, converter: str, error: Exception) -> UserError:
    """The error of a converter that fails."""
    return UserError(
        f"--format={name}: {converter} cannot convert this encoder with TensorFlow {tf.__version__} "
        f"({one_line(error)}); give --format=savedmodel, and convert that with versions that fit"
    )


def check_resnet(name: str, encoder: Encoder) -> None:
    """Raises UnfitEncoder for a backbone that is no ResNet."""
    if not is_resnet(encoder):
        arch = encoder.config["arch"]
        raise UnfitEncoder(f"--format={name} holds ResNets only, and this encoder is {arch}; give --format=savedmodel")


def is_resnet(encoder: Encoder) -> bool:
    """Whether the backbone is one of this package's ResNets."""
    return encoder.config["arch"] in BLOCKS.values()


def is_vit(encoder: Encoder) -> bool:
    """Whether the backbone is one of this package's ViTs."""
    return encoder.config["arch"] in vit.VARIANTS


def fixed_positions(subject: Loaded) -> np.ndarray:
    """TxD: the position embedding that a ViT computes for its images."""
    grid = subject.image_size // subject.encoder.config["patch"]
    return subject.encoder.backbone.positions(grid, grid).numpy()


def evaluate(encoder: Encoder, subject: Loaded, images: list[tf.Tensor]) -> dict[str, np.ndarray]:
    """Features and head outputs of prepared images, each 1xSxSx3 in [0, 1], computed as the evaluations do."""
    outputs = {}
    for name, feature in (("features", "backbone"), ("head", "head")):
        embed = features.embedder(encoder, feature, subject.mean, subject.std)
        outputs[name] = np.concatenate([embed(image) for image in images])
    return outputs


def evaluate_weights(
    weights: Mapping[str, np.ndarray], subject: Loaded, images: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """The same of weights by torchvision's names, in an encoder made anew; images are SxSx3 uint8."""
    again = Encoder(**subject.encoder.config)
    set_weights(again, weights)
    return evaluate(again, subject, [tf.constant(image[None], tf.float32) / 255.0 for image in images])


def normalisation_name(subject: Loaded) -> str | None:
    """What --normalise calls the encoder's normalisation."""
    return next((name for name, known in NORMALISATIONS.items() if known == (subject.mean, subject.std)), None)


def sizes(subject: Loaded) -> dict[str, int]:
    """Numbers that the texts about use need."""
    encoder = subject.encoder
    return {"size": subject.image_size, "D": encoder.backbone.features, "C": encoder.config["feature_dim"]}


def backbone_options(encoder: Encoder) -> dict[str, object]:
    """The part of an encoder's configuration that is the backbone's own: arch, stem, width ..."""
    return {name: value for name, value in encoder.config.items() if name not in _OF_THE_HEAD}


class Portable(tf.Module):
    """embed(images): uint8 BxSxSx3 -> {"features": BxD, "projection": BxC of length one if there is a head}."""

    def __init__(self, subject: Loaded) -> None:
        super().__init__(name="encoder")
        network, size = subject.encoder, subject.image_size
        self.weights = [variable.value for variable in network.variables]  # what is saved
        # NumPy's arrays become constants of the graph.
        mean, std = (np.array(values, np.float32) for values in (subject.mean, subject.std))

        def embed(images: tf.Tensor) -> dict[str, tf.Tensor]:
            pooled = network.features((tf.cast(images, tf.float32) / 255.0 - mean) / std)
            if not network.head:
                return {"features": pooled}
            head = network.project(pooled)
            return {"features": pooled, "projection": tf.math.l2_normalize(head, axis=1, epsilon=1e-24)}

        self.embed = tf.function(
            embed, autograph=False, input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8, "images")]
        )


def portable_table(subject: Loaded) -> str:
    """Inputs and outputs of `Portable` as Markdown."""
    numbers, head = sizes(subject), subject.encoder.head
    rows = "\n| | name | shape |\n|---|---|---|\n| in | images | uint8 Bx{size}x{size}x3, RGB from 0 to 255 |\n"
    rows += "| out | features | Bx{D} |\n"
    rows += "| out | projection | Bx{C}, of length one, as the contrastive loss compares |\n" if head else ""
    return (rows + HOW_TO_RESIZE).format(resize=subject.resize, **numbers)
