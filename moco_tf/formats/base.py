"""What formats share."""

import importlib

import numpy as np
import tensorflow as tf

from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.errors import UserError
from moco_tf.evaluation import features
from moco_tf.networks.encoder import Encoder
from moco_tf.weights.load import Loaded

HOW_TO_RESIZE = """\

Images of other sizes are brought to {size} x {size} first: the short side to {resize}, bilinear and antialiased (as PIL
does), then the centre cut out.
"""


def need(name: str, packages: tuple[str, ...], extra: str) -> None:
    """Raises UserError where packages of an extra cannot be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # not only ImportError: one that was built for another NumPy raises anything
            raise UserError(
                f"--format={name} needs {', '.join(packages)}, and {package} cannot be imported ({one_line(error)}); "
                f"install them: pip install 'moco_tf[{extra}]'; or give --format=savedmodel"
            ) from None


def unconvertible(name: str, converter: str, error: Exception) -> UserError:
    """The error of a converter that fails."""
    return UserError(
        f"--format={name}: {converter} cannot convert this encoder with TensorFlow {tf.__version__} "
        f"({one_line(error)}); give --format=savedmodel, and convert that where versions fit"
    )


def one_line(error: Exception) -> str:
    """The beginning of an error's text."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def evaluate(encoder: Encoder, subject: Loaded, images: list[tf.Tensor]) -> dict[str, np.ndarray]:
    """Features and head outputs of prepared images, each 1xSxSx3 in [0, 1], by the evaluation's own path."""
    outputs = {}
    for name, feature in (("features", "backbone"), ("head", "head")):
        embed = features.embedder(encoder, feature, subject.mean, subject.std)
        outputs[name] = np.concatenate([embed(image) for image in images])
    return outputs


def in_unit_range(images: list[np.ndarray]) -> list[tf.Tensor]:
    """SxSx3 uint8 each to 1xSxSx3 in [0, 1]."""
    return [tf.constant(image[None], tf.float32) / 255.0 for image in images]


def normalisation_name(subject: Loaded) -> str | None:
    """What --normalise calls the encoder's normalisation."""
    return next((name for name, known in NORMALISATIONS.items() if known == (subject.mean, subject.std)), None)


def sizes(subject: Loaded) -> dict[str, int]:
    """Numbers that the texts about use need."""
    size, encoder = subject.image_size, subject.encoder
    numbers = {"size": size, "resize": round(size * 256 / 224)}
    return numbers | {"D": encoder.backbone.features, "C": encoder.config["feature_dim"]}
