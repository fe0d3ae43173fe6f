"""Checkpoints of a user's backbone: loaded by their description, shown, and exported in formats that hold them."""

import json
import sys

import numpy as np
import pytest
from support.programs import call

from moco_tf.errors import UserError
from moco_tf.formats import pth
from moco_tf.formats.contents import contents
from moco_tf.formats.load import load
from moco_tf.formats.torchvision import get_weights
from moco_tf.networks.encoder import Encoder
from moco_tf.training import checkpoint

BACKBONE = """
import keras
import tensorflow as tf
from moco_tf.networks.backbone import Backbone


class Patches(Backbone):
    def __init__(self, width: int = 6, patch: int = 4, **kwargs):
        super().__init__(**kwargs)
        self.patches = keras.layers.Conv2D(width, patch, patch, dtype=self.dtype_policy)
        self.mix = keras.layers.DepthwiseConv2D(3, padding="same", dtype=self.dtype_policy)
        self.norm = keras.layers.LayerNormalization(dtype=self.dtype_policy)
        self.features = width

    def call(self, images, training=False):
        x = tf.nn.relu(self.norm(self.mix(self.patches(images))))
        return tf.cast(tf.reduce_mean(x, axis=[1, 2]), self.variable_dtype)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a checkpoint of the user's backbone."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "of_a_user").mkdir()
    (folder / "of_a_user" / "patches.py").write_text(BACKBONE)
    sys.path.insert(0, str(folder))
    encoder = Encoder("of_a_user.patches", head="mlp", feature_dim=3, width=5)
    state = {"query_encoder": {name: v.value for name, v in encoder.named_variables().items()}}
    about = {"encoder": dict(encoder.config), "image_size": 16, "mean": [0.1] * 3, "std": [0.2] * 3}
    checkpoint.save(folder / "run" / "checkpoints", 7, state, about, keep=1)
    yield folder / "run", encoder
    sys.path.remove(str(folder))


def test_load(run):
    folder, encoder = run
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    loaded = load(str(folder)).encoder
    np.testing.assert_array_equal(loaded(x), encoder(x))
    assert loaded.config == encoder.config


def test_show(run, capsys):
    folder, encoder = run
    expected = {"arch": "of_a_user.patches", "width": 5, "patch": 4, "pooled_dim": 5, "head": "mlp", "hidden_dim": 5}
    expected |= {"feature_dim": 3, "parameters": sum(int(np.prod(v.shape)) for v in encoder.parameters())}
    assert contents(str(folder)) | expected == contents(str(folder))
    call("show", load=folder, json="true")
    assert json.loads(capsys.readouterr().out)["patch"] == 4


def test_a_larger_network_than_the_weights_is_not_built(run, tmp_path):
    folder, encoder = run
    state = {"query_encoder": {name: v.value for name, v in encoder.named_variables().items()}}
    about = {"image_size": 16, "mean": [0.1] * 3, "std": [0.2] * 3}
    for change, words in [({"width": 10**7}, "larger than its weights"), ({"patch": 3}, "of another shape: patches")]:
        about["encoder"] = {**encoder.config, **change}
        place = checkpoint.save(tmp_path / "checkpoints", 7, state, about, keep=1)
        with pytest.raises(UserError, match=words):
            load(str(place))


def test_all_formats_but_those_of_resnets(run, tmp_path, capsys):
    folder, encoder = run
    call("export", load=folder, format="all", output=tmp_path / "out")
    out = capsys.readouterr().out
    assert all(f"left out: --format={name} holds ResNets only" in out for name in ("keras", "detectron2"))
    assert {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".md"} == {
        *("encoder.onnx", "encoder.pth", "encoder.tflite", "savedmodel")
    }
    assert pth.read(tmp_path / "out" / "encoder.pth").keys() == get_weights(encoder).keys()
    assert "moco_tf reads ResNets and ViTs from a .pth" in (tmp_path / "out" / "encoder.pth.md").read_text()
    card = (tmp_path / "out" / "savedmodel" / "README.md").read_text()
    assert "| architecture | of_a_user.patches, width 5, patch 4 |" in card
    for name, suffix in (("keras", ".keras"), ("detectron2", ".pkl")):
        with pytest.raises(UserError, match="holds ResNets only"):
            call("export", load=folder, format=name, output=tmp_path / f"encoder{suffix}")
    with pytest.raises(UserError, match="conv1.weight"):
        load(str(tmp_path / "out" / "encoder.pth"))


def test_a_wrong_format_says_what_there_is(run, tmp_path):
    with pytest.raises(UserError, match="--format=onx came, expected one of .*did you mean onnx"):
        call("export", load=run[0], format="onx", output=tmp_path / "x")
