"""TensorFlow's SavedModel: serves images of any size and JPEG or PNG files, and can be fine-tuned."""

import pathlib

import numpy as np
import tensorflow as tf

from moco_tf.formats import base
from moco_tf.weights import savedmodel
from moco_tf.weights.load import Loaded

SUFFIX, ANY_SIZE = "", True

_USE = """\
    encoder = tf.saved_model.load("{name}")  # needs TensorFlow only
    features = encoder.embed(images)  # uint8 BxHxWx3 of any size -> Bx{D} float32
    tuned = encoder.features(encoder.prepare(images), training=True)  # to learn encoder.trainable_variables

| signature | in | out |
|---|---|---|
| serving_default | image_bytes: B JPEG or PNG files | features: Bx{D} |
| embed | images: uint8 BxHxWx3 | features: Bx{D} |
"""
_PROJECT = "| project | images: uint8 BxHxWx3 | projection: Bx{C}, of length one, as the contrastive loss compares |\n"


def check() -> None:
    """TensorFlow is always there."""


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the folder."""
    savedmodel.save(subject.encoder, path, subject.image_size, subject.mean, subject.std)


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of every signature and function that serves."""
    exported = tf.saved_model.load(str(path))
    served = exported.signatures["serving_default"](tf.stack([tf.io.encode_png(image) for image in images]))
    found = {"serving_default": {"features": served["features"].numpy()}}
    found["embed"] = {"features": np.concatenate([exported.embed(image[None]) for image in images])}
    if hasattr(exported, "project"):
        found["project"] = {"projection": np.concatenate([exported.project(image[None]) for image in images])}
    return found


def use(subject: Loaded, name: str) -> str:
    """How to serve and tune it."""
    template = _USE + (_PROJECT if subject.encoder.head else "")
    return template.format(name=name, **base.sizes(subject))
