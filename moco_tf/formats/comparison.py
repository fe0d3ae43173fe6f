"""Compares what was written with the encoder that it was made of, on images."""

import numpy as np
import tensorflow as tf

from moco_tf.data import sample_images
from moco_tf.data.sources import ArraySource
from moco_tf.errors import UserError
from moco_tf.evaluation import features
from moco_tf.formats import base, origin
from moco_tf.formats.base import Loaded

TOLERANCE = 1e-5  # of the largest value: float32 sums in another order
COMPARED = 4  # images of the data set; two of noise besides


def images(dataset: str | None, data_dir: str | None, subject: Loaded) -> tuple[list[np.ndarray], str]:
    """Images to compare on, uint8 HxWx3, and in words where they are from.

    Some are of the data set, or of the one that the encoder was trained on if it is here; others are noise of the
    network's size.

    Raises:
        UserError: the data set or folder that was given cannot be read.
    """
    size = subject.image_size
    noise = list(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8))
    own = origin.trained_on(subject.path)
    name = dataset or (own.dataset if own else None)
    place = data_dir or (own.data_dir if own and own.dataset == name else None)
    missing = f"{subject.path} does not say which images it was trained on"
    if name:
        where = f"--dataset={name}" + (f" --data_dir={place}" if place else "")
        try:
            if dataset or data_dir or sample_images.is_here(name, place):
                real = sample_images.images(name, place, COMPARED)
                return [*real, *noise], f"{len(real)} of {where}, {len(noise)} of noise"
            missing = f"{where}, which it was trained on, is not here"
        except UserError as error:
            if dataset or data_dir:  # it was asked for
                raise
            missing = str(error)
    print(f"comparing on random images alone: {missing}; --dataset and --data_dir name others", flush=True)
    return noise, "all of noise"


def at_network_size(image: np.ndarray, subject: Loaded) -> np.ndarray:
    """An image of any size prepared as in tests and rounded, uint8 SxSx3."""
    return np.round(255.0 * np.clip(_prepared(image, subject)[0], 0.0, 1.0)).astype(np.uint8)


def _prepared(image: np.ndarray, subject: Loaded) -> tf.Tensor:
    geometry = features.test_geometry(ArraySource("", image[None]), subject.image_size, subject.test_resize)
    return features.prepare_batch(tf.constant(image[None]), geometry)


def reference(subject: Loaded, given: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What the encoder gives by the evaluation's own path: {"features": NxD, "head": NxC}. Raises UserError on NaN."""
    outputs = base.evaluate(subject.encoder, subject, [_prepared(image, subject) for image in given])
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
