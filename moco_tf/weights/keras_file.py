"""Encoders as .keras files of Keras' own layers, which keras.models.load_model opens where this package is not.

    encoder = keras.models.load_model("encoder.keras")
    outputs = encoder(images)  # RGB from 0 to 255, BxSxSx3 -> {"features": BxD, "projection": BxC of length one}

Layers have torchvision's names. In inference outputs equal the encoder's; in training Keras' batch norm takes the whole
batch (no splits) and moves its running variance with the biased estimate.

Files are read without Keras: their configuration may name any class, and only the weights are wanted.
"""

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import keras
import numpy as np

from moco_tf.errors import UserError
from moco_tf.networks.backbones.resnet import Block, Conv2D
from moco_tf.networks.encoder import Encoder
from moco_tf.networks.norm import BatchNorm
from moco_tf.weights.torch_objects import show
from moco_tf.weights.torchvision import to_torch_layout

WEIGHTS, CONFIG, ABOUT = "model.weights.h5", "config.json", "moco_tf.json"
MAX_JSON_BYTES = 64 * 2**20
_PARTS = {1: ("weight",), 2: ("weight", "bias"), 4: ("weight", "bias", "running_mean", "running_var")}
_FIX = "expected what moco_tf.export --format=keras wrote, or Keras of such a model; write or copy the file again"
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, LookupError, RuntimeError, TypeError)
_DAMAGED += (NotImplementedError, AttributeError, OverflowError, MemoryError, RecursionError)  # h5py raises all kinds


def build(encoder: Encoder, mean: tuple[float, ...], std: tuple[float, ...]) -> keras.Model:
    """The encoder of Keras' own layers, float32: images BxHxWx3 from 0 to 255 -> features BxD, projection BxC.

    Args:
        encoder: of any precision and number of batch-norm splits.
        mean, std: what images in [0, 1] are normalised with, three numbers each.
    """
    images = keras.Input((None, None, 3), name="images")
    x = keras.layers.Normalization(
        mean=[255 * m for m in mean], variance=[(255 * s) ** 2 for s in std], name="normalise"
    )(images)
    backbone = encoder.backbone
    x = keras.layers.ReLU()(_norm("bn1")(_convolved(x, backbone.conv1, "conv1")))
    if backbone.stem == "imagenet":
        x = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))  # zeros: no maximum after a ReLU changes
    for stage, blocks in enumerate(backbone.stages(), start=1):
        for index, block in enumerate(blocks):
            x = _block(x, block, f"layer{stage}.{index}")
    outputs = {"features": keras.layers.GlobalAveragePooling2D(name="features")(x)}
    if encoder.head:
        head = _head(outputs["features"], encoder)
        outputs["projection"] = keras.layers.UnitNormalization(name="projection")(head)
    model = keras.Model(images, outputs, name="encoder")
    for name, layer in encoder.named_layers():
        model.get_layer(name).set_weights([np.asarray(v.value) for v in _in_keras_order(layer)])
    return model


def _convolved(x: keras.KerasTensor, conv: Conv2D, name: str) -> keras.KerasTensor:
    """A convolution with padding k // 2 on every side; with stride 2 Keras' "same" would pad one side only."""
    pad = conv.kernel_size // 2 if conv.strides > 1 else 0
    x = keras.layers.ZeroPadding2D(pad)(x) if pad else x
    padding = "valid" if conv.strides > 1 else "same"
    layer = keras.layers.Conv2D(conv.filters, conv.kernel_size, conv.strides, padding, use_bias=False, name=name)
    return layer(x)


def _norm(name: str) -> keras.layers.Layer:
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def _block(x: keras.KerasTensor, block: Block, name: str) -> keras.KerasTensor:
    shortcut = x
    if block.downsample:
        shortcut = _norm(f"{name}.downsample.1")(_convolved(x, block.downsample[0], f"{name}.downsample.0"))
    for n, (conv, _) in enumerate(block.convs(), start=1):
        x = _convolved(x if n == 1 else keras.layers.ReLU()(x), conv, f"{name}.conv{n}")
        x = _norm(f"{name}.bn{n}")(x)
    return keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))


def _head(x: keras.KerasTensor, encoder: Encoder) -> keras.KerasTensor:
    names = {id(layer): name for name, layer in encoder.named_layers()}
    for layer in getattr(encoder.head, "layers", [encoder.head]):
        if isinstance(layer, BatchNorm):
            x = _norm(names[id(layer)])(x)
        elif isinstance(layer, keras.layers.Dense):
            x = keras.layers.Dense(layer.units, use_bias=layer.use_bias, name=names[id(layer)])(x)
        else:
            x = keras.layers.ReLU()(x)
    return x


def _in_keras_order(layer: keras.layers.Layer) -> list[keras.Variable]:
    if isinstance(layer, BatchNorm):
        return [layer.gamma, layer.beta, layer.running_mean, layer.running_variance]
    return layer.variables


def save(model: keras.Model, path: str | os.PathLike, about: Mapping[str, Any]) -> None:
    """Writes a model of `build`, and besides moco_tf.json (which Keras ignores) with what `read` gives back."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(ABOUT, json.dumps(dict(about), indent=1))


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(weights by layers' names in PyTorch's layout, float32; what moco_tf.json says) of a .keras file.

    mean and std are those of the layer `normalise`; optimizer says whether the state of one is there.

    Raises:
        UserError: damaged, or without weights of named layers. Nothing in the file is executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = os.path.getsize(path)
            config = json.loads(_entry(archive, CONFIG, MAX_JSON_BYTES))
            there = ABOUT in archive.namelist()
            about = json.loads(_entry(archive, ABOUT, MAX_JSON_BYTES)) if there else {}
            weights = _entry(archive, WEIGHTS, size)
        if config["class_name"] != "Functional":
            raise UserError(f"its model is a {show(str(config['class_name']))}, no model of layers; {_FIX}")
        with h5py.File(io.BytesIO(weights), "r") as file:
            state, optimizer = dict(_weights(file, len(weights))), "optimizer" in file
        return state, {**(about if isinstance(about, dict) else {}), **_normalisation(config), "optimizer": optimizer}
    except UserError as e:
        raise UserError(f"{show(str(path), 300)}: {e}") from e.__cause__
    except _DAMAGED as e:
        raise UserError(f"{show(str(path), 300)}: no readable .keras file ({show(str(e))}); {_FIX}") from e


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """An entry's bytes, stored plainly as Keras does (no decompression bombs), and within the limit."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise UserError(f"the entry {show(name)} is compressed or encrypted; {_FIX}")
    if info.file_size != info.compress_size or info.file_size > limit:
        raise UserError(f"the entry {show(name)} claims {info.file_size} bytes, more than the file allows; {_FIX}")
    return archive.read(info)


def _weights(file: h5py.File, budget: int) -> Iterator[tuple[str, np.ndarray]]:
    """(torchvision's name, array) of every layer of convolution, batch norm or full connection."""
    layers = _group(file, "layers")
    for key in layers:
        variables = _group(_group(layers, key), "vars")
        name, parts = variables.attrs.get("name"), _PARTS.get(len(variables))
        if not isinstance(name, str) or parts is None:
            continue  # without variables, or none of these layers
        for index, part in enumerate(parts):
            array = _array(variables, str(index), budget)
            budget -= array.nbytes
            yield f"{name}.{part}", to_torch_layout(array)


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    found = parent.get(name) if isinstance(parent.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Group):
        raise UserError(f"its weights have no group {show(name)}; {_FIX}")
    return found


def _array(parent: h5py.Group, name: str, budget: int) -> np.ndarray:
    """A plain dataset of the file itself: no link, no other file's bytes, no larger than the file."""
    data = parent.get(name) if isinstance(parent.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external or data.dtype.kind != "f":
        raise UserError(f"its weights are no plain floating-point arrays; {_FIX}")
    if math.prod(data.shape) * data.dtype.itemsize > budget:
        raise UserError(f"an array claims the shape {data.shape}, more than the file holds; {_FIX}")
    return np.asarray(data[()], np.float32)


def _normalisation(config: Any) -> dict[str, tuple[float, ...]]:
    """mean and std of the layer `normalise` in a model's configuration, of images in [0, 1]."""
    for layer in config["config"].get("layers", []):
        if layer.get("class_name") == "Normalization" and layer["config"].get("name") == "normalise":
            mean, variance = (np.ravel(layer["config"][key]).astype(float) for key in ("mean", "variance"))
            if len(mean) == len(variance) == 3 and np.isfinite([*mean, *variance]).all() and min(variance) > 0:
                return {"mean": tuple((mean / 255).tolist()), "std": tuple((np.sqrt(variance) / 255).tolist())}
            raise UserError(f"its layer `normalise` has mean {mean} and variance {variance}; expected three numbers")
    return {}
