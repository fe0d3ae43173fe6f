"""A .keras file of Keras' own layers: opened and fine-tuned without this package.

    encoder = keras.models.load_model("encoder.keras")
    outputs = encoder(images)  # RGB from 0 to 255, BxSxSx3 -> {"features": BxD, "projection": BxC of length one}

An image whose largest value is above 0 and at most 1 gives NaN: it has values from 0 to 1, almost black from 0 to 255.
Layers have torchvision's names, or timm's. In inference outputs equal the encoder's; in training Keras' batch norm
takes the whole batch (no splits) and moves its running variance with the biased estimate.
"""

import pathlib

import keras
import numpy as np
import tensorflow as tf
from keras.models import load_model

from moco_tf.formats import base, keras_vit
from moco_tf.formats.architecture import HEAD
from moco_tf.formats.base import Loaded
from moco_tf.formats.keras_layers import Layers, convolution, norm

SUFFIX, ANY_SIZE = ".keras", False

_USE = """\
    encoder = keras.models.load_model("{name}")  # needs Keras only: layers have the encoder's names
    outputs = encoder(images)  # RGB from 0 to 255, BxSxSx3, S = {size} -> {outputs}; from 0 to 1: NaN
    classifier = keras.Model(encoder.input, keras.layers.Dense(10)(encoder.output["features"]))  # to be fine-tuned
"""
_SPLITS = """\

In training its batch norms take the whole batch; the encoder's took {bn_splits} splits of it.
"""


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the file. Raises UnfitEncoder unless the encoder is a ResNet or a ViT."""
    if not base.is_vit(subject.encoder):
        base.check_resnet("keras", subject.encoder)
    _build(subject).save(path)


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of the model that Keras opens."""
    given = load_model(path)(tf.constant(np.stack(images)), training=False)
    return {"the model": {name: values.numpy() for name, values in given.items()}}


def use(subject: Loaded, name: str) -> str:
    """How to open it and to put a classifier on top."""
    config, numbers = subject.encoder.config, base.sizes(subject)
    shapes = f'{{"features": Bx{numbers["D"]}' + (
        f', "projection": Bx{numbers["C"]}}}' if config["head"] != "none" else "}"
    )
    template = _USE + (_SPLITS if config["bn_splits"] > 1 else "") + base.HOW_TO_RESIZE
    return template.format(name=name, outputs=shapes, bn_splits=config["bn_splits"], resize=subject.resize, **numbers)


def _build(subject: Loaded) -> keras.Model:
    """The encoder of Keras' own layers, float32: images BxHxWx3 from 0 to 255 -> features BxD, projection BxC."""
    encoder, vit, layers = subject.encoder, base.is_vit(subject.encoder), Layers()
    for name, variable in encoder.named_variables().items():
        layers.setdefault(name.rpartition(".")[0], []).append(np.asarray(variable.value))
    side = subject.image_size if vit else None
    images = keras.Input((side, side, 3), name="images")
    moments = {"mean": [255 * m for m in subject.mean], "variance": [(255 * s) ** 2 for s in subject.std]}
    brightest = keras.ops.max(images, axis=(1, 2, 3), keepdims=True, initial=0)  # which an empty batch needs
    x = keras.ops.where((brightest > 0) & (brightest <= 1), float("nan"), images)
    x = keras.layers.Normalization(**moments, name="normalise")(x)
    if vit:
        x = keras_vit.features(x, layers, encoder.config["heads"], base.fixed_positions(subject))
    else:
        x = _pooled(x, layers, encoder.config["stem"] == "imagenet")
    made = {"features": keras.layers.Identity(name="features")(x)}
    head = {name: values for name, values in layers.items() if f"{name}.".startswith(HEAD)}
    if head:
        made["projection"] = keras.layers.UnitNormalization(name="projection")(_head(made["features"], head))
    model = keras.Model(images, made, name="encoder")
    for name, values in layers.items():
        model.get_layer(name).set_weights(values)
    return model


def _pooled(x: keras.KerasTensor, layers: Layers, imagenet_stem: bool) -> keras.KerasTensor:
    x = keras.layers.ReLU()(norm(convolution(x, layers, "conv1", 2 if imagenet_stem else 1), "bn1"))
    if imagenet_stem:
        x = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))  # zeros: no maximum after a ReLU changes
    for block in dict.fromkeys(name.rpartition(".conv")[0] for name in layers if ".conv" in name):
        x = _block(x, layers, block)
    return keras.layers.GlobalAveragePooling2D()(x)


def _block(x: keras.KerasTensor, layers: Layers, name: str) -> keras.KerasTensor:
    """A residual block; the first one of the later stages has stride 2, in its 3x3 convolution (the first of two)."""
    strides = 2 if name.endswith(".0") and not name.startswith("layer1.") else 1
    strided = 2 if f"{name}.conv3" in layers else 1
    shortcut = x
    if f"{name}.downsample.0" in layers:
        shortcut = norm(convolution(x, layers, f"{name}.downsample.0", strides), f"{name}.downsample.1")
    for n in range(1, strided + 2):
        x = keras.layers.ReLU()(x) if n > 1 else x
        x = convolution(x, layers, f"{name}.conv{n}", strides if n == strided else 1)
        x = norm(x, f"{name}.bn{n}")
    return keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))


def _head(x: keras.KerasTensor, layers: Layers) -> keras.KerasTensor:
    """Linear layers with a ReLU before each but the first, and batch norms, whose variables are vectors."""
    for i, (name, values) in enumerate(layers.items()):
        if values[0].ndim == 1:
            x = norm(x, name, learnt=len(values) == 4)
        else:
            x = keras.layers.ReLU()(x) if i else x
            x = keras.layers.Dense(values[0].shape[1], use_bias=len(values) == 2, name=name)(x)
    return x
