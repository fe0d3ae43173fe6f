"""Means and deviations of data sets, of RGB in [0, 1]: published ones, and measured ones where there are none."""

import json
import os
import pathlib
import re

import numpy as np
import tensorflow as tf

from moco_tf.config.find import listed
from moco_tf.data.pipeline import eval_batches
from moco_tf.data.records import BadImages
from moco_tf.data.sets import fashion_mnist, find, tfds
from moco_tf.data.sets.tfds import Normalisation
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.training.files import one_line, write_whole, writing

NORMALISATIONS: dict[str, Normalisation] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": tfds.IMAGENET,
    **tfds.NORMALISATIONS,
    "fashion_mnist": fashion_mnist.NORMALISATION,
}
MIN_STD = 0.01  # 2.5 grey levels: images of one colour would be divided by 0


def known(name: str, dataset: str) -> Normalisation | None:
    """(mean, deviation) of the named normalisation; None when it is "auto" and the data set's own must be measured."""
    if name != "auto":
        if name not in NORMALISATIONS:
            raise UserError(f"--normalise={name} came, expected {listed(name, ['auto', *NORMALISATIONS])}")
        return NORMALISATIONS[name]
    own = find.module(re.split("[/:]", dataset)[0])  # without TFDS's configuration and version
    return getattr(own, "NORMALISATION", None) if own else tfds.normalisation(dataset)


def normalisation(name: str, dataset: str) -> Normalisation:
    """(mean, deviation) of the named normalisation; "auto" is the data set's own, ImageNet's where it has none here."""
    return known(name, dataset) or NORMALISATIONS["imagenet"]


def found(path: str | os.PathLike, source: Source) -> Normalisation:
    """(mean, deviation) of the source from the JSON file, or measured where there is none; nothing is written.

    All ranks measure the same. Raises UserError when the file holds something else, or is of another data set.
    """
    path = pathlib.Path(path)
    return _read(path, source.name) if path.exists() else measure(source)


def keep(path: str | os.PathLike, source: Source, values: Normalisation) -> None:
    """Writes (mean, deviation) for `found` to read; a file that is there stays as it is."""
    path = pathlib.Path(path)
    if path.exists():
        return
    about = {"dataset": source.name, "mean": values[0], "std": values[1]}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(about, indent=1) + "\n")


def measure(source: Source, count: int = 2000, seed: int = 0) -> Normalisation:
    """(mean, deviation) of each channel over the pixels of a sample; the same seed takes the same images.

        mean = E_images[E_pixels[x]],  std = max(sqrt(E_images[E_pixels[x^2]] - mean^2), MIN_STD)

    So each image has the same weight, however large it is. Of 2,000 images the mean is good to about 0.01. Unreadable
    images of the sample are left out.

    Args:
        source: training images.
        count: images in the sample; all are taken where there are no more.
        seed: of the sample.

    Raises:
        UserError: none of the sample can be read.
    """
    if source.num_examples > count:
        chosen = np.random.default_rng(seed).choice(source.num_examples, count, replace=False)
        source = source.subset(np.sort(chosen))  # sorted: files are read in their order
    with tf.device("/CPU:0"):
        if source.fixed_size:
            parts = [_moments(images).numpy() for images, *_ in eval_batches(source, 64)]
        else:
            batches = eval_batches(
                source, 64, prepare_one=_moments, bad_images=BadImages(source.num_examples, reported=False)
            )
            parts = [np.asarray(moments) for moments, *_ in batches]
    mean, mean_square = np.concatenate(parts).mean(axis=0)  # 3 each
    std = np.sqrt(np.maximum(mean_square - mean**2, MIN_STD**2))
    return tuple(mean.tolist()), tuple(std.tolist())


def _moments(images: tf.Tensor) -> tf.Tensor:
    """Means of x and of x^2 over the pixels: uint8 ...xHxWx3 to float64 ...x2x3, x in [0, 1]."""
    x = tf.cast(images, tf.float64) / 255.0
    return tf.stack([tf.reduce_mean(x, [-3, -2]), tf.reduce_mean(x * x, [-3, -2])], axis=-2)


def _read(path: pathlib.Path, dataset: str) -> Normalisation:
    fix = "remove it to measure again"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        mean, std = tuple(map(float, about["mean"])), tuple(map(float, about["std"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}), expected JSON with mean and std; {fix}") from None
    if about.get("dataset") != dataset:
        raise UserError(f"{path} is of the data set {about.get('dataset')!r}, expected {dataset!r}; {fix}")
    numbers = all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)
    if len(mean) != 3 or len(std) != 3 or not numbers:
        raise UserError(
            f"{path} holds mean {list(mean)} and std {list(std)}, expected three numbers from 0 to 1 each, std not 0; "
            f"{fix}"
        )
    return mean, std
