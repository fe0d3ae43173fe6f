"""Backbones of a user's: their names, config, memory, and what they cannot do; heads and predictors."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from moco_tf.contrast.momentum import momentum_update, start_as_copy
from moco_tf.errors import UserError
from moco_tf.methods.moco import MoCo
from moco_tf.networks import heads
from moco_tf.networks.encoder import Encoder
from moco_tf.training.optimizers import SGD

BACKBONE = '''
import keras
import tensorflow as tf
from moco_tf.networks.backbone import Backbone
from moco_tf.networks.naming import Composite
from moco_tf.networks.norm import BatchNorm


class Stage(Composite):
    def __init__(self, width, splits, norm, **kwargs):
        super().__init__(**kwargs)
        self.depthwise = keras.layers.DepthwiseConv2D(3, padding="same", dtype=self.dtype_policy)
        self.norm = BatchNorm(splits=splits, dtype=self.dtype_policy) if norm == "own" else (
            keras.layers.BatchNormalization(dtype=self.dtype_policy))
        self.pointwise = keras.layers.Dense(width, dtype=self.dtype_policy)

    def call(self, x, training=False):
        return tf.nn.relu(self.pointwise(self.norm(self.depthwise(x), training=training)))


class Tiny(Backbone):
    """Depthwise stages.

    Args:
        width: channels.
        norm: whose batch norm.
    """

    build_size = 8

    def __init__(self, width: int = 6, norm: str = "own", bn_splits: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.stem = keras.layers.Conv2D(width, 2, 2, dtype=self.dtype_policy)
        self.stages = [[Stage(width, bn_splits, norm, dtype=self.dtype_policy)] for _ in range(2)]
        self._last = keras.layers.LayerNormalization(dtype=self.dtype_policy)
        self.scale = self.add_weight(shape=(width,), initializer="ones", name="scale")
        self.features = width

    def call(self, images, training=False):
        x = self.stem(images)
        for stage in self.stages:
            x = self.through(stage, x, training)
        return tf.cast(tf.reduce_mean(self._last(x), axis=[1, 2]), self.variable_dtype) * self.scale
'''
PLAIN = """
import keras
from moco_tf.networks.backbone import Backbone


class Plain(Backbone):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.net = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
        self.attention = keras.layers.MultiHeadAttention(2, 3)
        self.features = 4

    def call(self, images, training=False):
        x = self.net(images[:, :2, :2])[:, None]
        return self.attention(x, x)[:, 0]
"""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "users_backbones").mkdir()
    (folder / "users_backbones" / "__init__.py").touch()
    (folder / "users_backbones" / "tiny.py").write_text(BACKBONE)
    (folder / "users_backbones" / "plain.py").write_text(PLAIN)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def tiny(**options):
    tf.keras.utils.set_random_seed(0)
    return Encoder("users_backbones.tiny", **{"head": "mlp", "feature_dim": 3} | options)


def images(batch=8, side=16):
    return tf.constant(np.random.default_rng(0).random((batch, side, side, 3)), tf.float32)


def test_names_are_those_of_attributes():
    norm = [f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    stage = ["depthwise.weight", "depthwise.bias", *norm, "pointwise.weight", "pointwise.bias"]
    expected = ["scale", "stem.weight", "stem.bias"]
    expected += [f"stages.{i}.0.{name}" for i in range(2) for name in stage]
    expected += ["last.weight", "last.bias", "fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"]
    encoder = tiny()
    assert list(encoder.named_variables()) == expected
    assert list(tiny(norm="keras").named_variables()) == expected
    assert list(encoder.named_parameters()) == [name for name in expected if ".running_" not in name]
    assert [name for name, _ in encoder.named_layers()] == list(dict.fromkeys(n.rpartition(".")[0] for n in expected))


def test_what_is_frozen_is_learnt_all_the_same():
    encoder = tiny()
    count = len(encoder.parameters()), len(encoder.running_statistics())
    encoder.trainable = False
    assert (len(encoder.parameters()), len(encoder.running_statistics())) == count == (21, 4)


def test_layers_of_keras_that_hold_layers_have_names():
    names = [list(Encoder("users_backbones.plain", head="linear").named_variables()) for _ in range(2)]
    inner = [f"attention.{part}_dense" for part in ("query", "key", "value", "output")]
    expected = [f"{name}.{part}" for name in ("net.1", *inner, "fc") for part in ("weight", "bias")]
    assert names == [expected, expected]  # the second one's layers have other numbers in Keras


def test_config_rebuilds_it():
    encoder = tiny(width=5, bn_splits=2)
    assert encoder.config == {
        **{"arch": "users_backbones.tiny", "width": 5, "norm": "own", "bn_splits": 2},
        **{"head": "mlp", "feature_dim": 3, "hidden_dim": 0, "head_init": "torch"},
    }
    again = start_as_copy(Encoder(**encoder.config), encoder)
    np.testing.assert_array_equal(again(images()), encoder(images()))
    assert again.backbone.features == 5


def losses_and_state(**save):
    pair = [tiny(dtype="float64") for _ in range(2)]
    for encoder in pair:
        encoder.save_memory(**save)
    method = MoCo(*pair, queue_size=16, key_momentum=0.5, bn="split")
    method.compile(SGD(0.05))
    step = tf.function(method.train_step)
    losses = [float(step((tf.cast(images(), tf.float64), None))["loss"]) for _ in range(3)]
    variables = tf.nest.flatten([method.state()[group] for group in ("query_encoder", "key_encoder")])
    return losses, [v.numpy() for v in variables]


def test_recomputation_changes_nothing():
    (losses, state), (expected, expected_state) = losses_and_state(recompute=True), losses_and_state()
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    for value, other in zip(state, expected_state, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-12)


def test_batch_norms_of_keras_are_refused_where_they_would_be_wrong():
    encoder = tiny(norm="keras")
    encoder.save_memory()
    for refused in (lambda: encoder.save_memory(2), lambda: encoder.synchronise_norms(None)):
        with pytest.raises(
            ValueError, match="stages.0.0.norm is a BatchNormalization; expected networks.norm.BatchNorm"
        ):
            refused()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="has no option stem; expected width, norm"):
        tiny(stem="cifar")
    with pytest.raises(UserError, match="users_backbones.plain does not split batches; expected 1"):
        Encoder("users_backbones.plain", bn_splits=2)
    with pytest.raises(UserError, match="expected one of resnet10, resnet18"):
        Encoder("moco_tf.networks.backbones.resnet")
    with pytest.raises(UserError, match="did you mean resnet50"):
        Encoder("resnet5")
    with pytest.raises(ValueError, match="head is 'mpl'"):
        tiny(head="mpl")


def test_a_key_encoder_follows_by_structure():
    query, key = tiny(), start_as_copy(tiny(), tiny())
    before = [v.numpy() for v in key.parameters()]
    for v in query.parameters():
        v.assign_add(tf.ones_like(v))
    momentum_update(query, key, 0.75)
    for k, q, old in zip(key.parameters(), query.parameters(), before, strict=True):
        np.testing.assert_allclose(k.numpy(), 0.75 * old + 0.25 * q.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="has scale where the query encoder has scale; build both alike"):
        start_as_copy(tiny(width=5), tiny())
    with pytest.raises(ValueError, match="has nothing where the query encoder has fc.0.weight"):
        start_as_copy(tiny(head="none"), tiny())


def test_a_predictor():
    predictor = heads.mlp((3, 5, 3), norm=True)
    names = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias"]
    assert list(predictor.named_variables("predictor")) == [f"predictor.{name}" for name in names]
    assert list(predictor.named_parameters()) == [name for name in names if "running" not in name]
    assert predictor(tf.ones([4, 3]), training=True).shape == (4, 3)
    assert [len(heads.mlp((3, 5, 6, 2)).layers), len(heads.mlp((3, 2)).layers)] == [5, 1]
