"""A .keras file of Keras' own layers: opened and fine-tuned without this package."""

import pathlib

import numpy as np
import tensorflow as tf
from keras.models import load_model

from moco_tf.formats import base
from moco_tf.weights import keras_file
from moco_tf.weights.load import Loaded, load

SUFFIX, ANY_SIZE = ".keras", False

_USE = """\
    encoder = keras.models.load_model("{name}")  # needs Keras only: layers have torchvision's names
    outputs = encoder(images)  # RGB from 0 to 255, BxSxSx3, S = {size} -> {outputs}
    classifier = keras.Model(encoder.input, keras.layers.Dense(10)(encoder.output["features"]))  # to be fine-tuned
"""
_SPLITS = """\

In training its batch norms take the whole batch; the encoder's took {bn_splits} splits of it.
"""


def check() -> None:
    """Keras is always there."""


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the file."""
    about = {"image_size": subject.image_size, "step": subject.step, "source": subject.source}
    keras_file.save(keras_file.build(subject.encoder, subject.mean, subject.std), path, about)


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of the model that Keras opens, and of an encoder with the file's weights."""
    model = load_model(path)
    given = model(tf.constant(np.stack(images)), training=False)
    again = base.evaluate(load(str(path)).encoder, subject, base.in_unit_range(images))
    return {"the model": {name: values.numpy() for name, values in given.items()}, "the file": again}


def use(subject: Loaded, name: str) -> str:
    """How to open it and to put a classifier on top."""
    config, numbers = subject.encoder.config, base.sizes(subject)
    shapes = f'{{"features": Bx{numbers["D"]}' + (
        f', "projection": Bx{numbers["C"]}}}' if config["head"] != "none" else "}"
    )
    template = _USE + (_SPLITS if config["bn_splits"] > 1 else "") + base.HOW_TO_RESIZE
    return template.format(name=name, outputs=shapes, bn_splits=config["bn_splits"], **numbers)
