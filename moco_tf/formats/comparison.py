"""Compares what was written with the encoder that it was made of, on images."""

import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from moco_tf.config import define
from moco_tf.data import sample_images
from moco_tf.data.sources import ArraySource
from moco_tf.errors import UserError
from moco_tf.evaluation import features
from moco_tf.formats import base
from moco_tf.formats.base import Loaded
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint

TOLERANCE = 1e-5  # of the largest value: float32 sums in another order
COMPARED = 4  # images of the data set; two of noise besides


def images(dataset: str | None, data_dir: str | None, subject: Loaded) -> tuple[list[np.ndarray], str]:
    """Images to compare on, uint8 HxWx3, and in words where they are from.

    Some are of the data set, or of the one that the encoder was trained on, or of Fashion-MNIST if one of these is
    here; others are noise of the network's size.

    Raises:
        UserError: the data set that was given cannot be read.
    """
    size = subject.image_size
    noise = list(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8))
    for name, folder in [(dataset, data_dir)] if dataset else _trained_on(subject.path):
        if dataset or sample_images.is_here(name, folder):
            try:
                real = sample_images.images(name, folder, COMPARED)
                return [*real, *noise], f"{len(real)} of {name}, {len(noise)} of noise"
            except UserError:
                if dataset:  # it was asked for
                    raise
    print("no data set is here (--dataset and --data_dir name one): comparing on random images only", flush=True)
    return noise, "all of noise"


def _trained_on(path: str) -> Iterator[tuple[str, str | None]]:
    """(data set, its folder) to try, the checkpoint's own first."""
    place = pathlib.Path(path)
    if (place / checkpoint.DESCRIPTION).is_file() and checkpoint.describe(place).get("dataset"):
        data_dir = define.texts_of(RunFolder.around(place).flags).get("data_dir")
        yield str(checkpoint.describe(place)["dataset"]), data_dir
    yield "fashion_mnist", None


def at_network_size(image: np.ndarray, size: int) -> np.ndarray:
    """An image of any size prepared as in tests and rounded, uint8 SxSx3."""
    return np.round(255.0 * np.clip(_prepared(image, size)[0], 0.0, 1.0)).astype(np.uint8)


def _prepared(image: np.ndarray, size: int) -> tf.Tensor:
    return features.prepare_batch(tf.constant(image[None]), features.test_geometry(ArraySource("", image[None]), size))


def reference(subject: Loaded, given: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What the encoder gives by the evaluation's own path: {"features": NxD, "head": NxC}. Raises UserError on NaN."""
    outputs = base.evaluate(subject.encoder, subject, [_prepared(image, subject.image_size) for image in given])
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise UserError(f"{subject.path}: features are not finite, expected numbers; export an earlier checkpoint")
    return outputs


def compare(found: dict[str, dict[str, np.ndarray]], wanted: dict[str, np.ndarray]) -> float:
    """The largest difference, as a share of the largest value. Raises UserError when it is above TOLERANCE."""
    wanted = {**wanted, "projection": features.normalised(wanted["head"])}
    largest = 0.0
    for what, outputs in found.items():
        for name, values in outputs.items():
            expected = wanted[name]
            same_shape = values.shape == expected.shape
            scale = max(np.abs(expected).max(), np.finfo(np.float32).tiny)
            difference = np.abs(values - expected).max() / scale if same_shape else np.inf
            if not difference <= TOLERANCE:  # NaN is not either
                raise UserError(
                    f"what was written does not give back the encoder: {name} of {what} differ by {difference:.2g} of "
                    f"the largest value, expected at most {TOLERANCE:g}; nothing was left; please report it"
                )
            largest = max(largest, float(difference))
    return largest
