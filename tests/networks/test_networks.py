"""ResNets equal torchvision's on the parity cases, in inference and training mode, running statistics included."""

import numpy as np
import pytest
import tensorflow as tf
from support import parity_cases, parity_files, parity_weights

from moco_tf.formats.torchvision import get_weights, set_weights
from moco_tf.networks import conv
from moco_tf.networks.conv import max_pool_by_slices
from moco_tf.networks.encoder import Encoder
from moco_tf.networks.heads import HEADS
from moco_tf.networks.norm import BatchNorm

FORWARD = [
    "forward_resnet18_cifar_split1",
    "forward_resnet18_cifar_split4",
    "forward_resnet18_linear",
    "forward_resnet18_mlp",
    "forward_resnet34_linear",
    "forward_resnet50_linear",
    "forward_resnet50_mlp",
]


def load(name, mode):
    case = np.load(parity_files.path(f"float64/{name}.npz"))
    arch, stem, head = (str(case[key]) for key in ("arch", "stem", "head"))
    splits = int(case["bn_splits"]) if "bn_splits" in case else 1
    dtype = "float64" if mode == "float64" else "float32"
    encoder = Encoder(arch, stem=stem, bn_splits=splits, head=head, feature_dim=int(case["dim"]), dtype=dtype)
    if mode == "compiled":  # as a method does
        encoder.prepare_for_xla()
    else:
        encoder.prepare_for_cpu()
    set_weights(encoder, parity_weights.state_dict(arch, int(case["weights_seed"]), stem, head, int(case["dim"])))
    images = parity_weights.images(int(case["images_seed"]), int(case["n"]), int(case["size"]))
    tolerance = 1e-12 if mode == "float64" else 1e-5 if stem == "cifar" else 2e-4
    return case, encoder, np.ascontiguousarray(images.transpose(0, 2, 3, 1)).astype(dtype), tolerance


def assert_near(got, expected, tolerance):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def check_pooled(case, phase, pooled, tolerance):
    if f"{phase}_pooled" in case:  # the CIFAR demo's cases hold the head's output only
        assert_near(pooled, case[f"{phase}_pooled"], tolerance)


# Float64 runs eagerly and proves all cases; other modes take each backbone once, with the larger head or the splits.
IN_GRAPHS = [name for name in FORWARD if name not in ("forward_resnet18_linear", "forward_resnet50_linear")]
MODES = [(name, "float64") for name in FORWARD] + [(name, "graph") for name in IN_GRAPHS]
MODES += [(name, "compiled") for name in IN_GRAPHS if "split1" not in name]


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_forward_equals_torchvision(name, mode):
    case, encoder, images, tolerance = load(name, mode)

    def forward(x, training):
        features = encoder.features(x, training=training)
        return features, encoder.project(features, training=training)

    if mode != "float64":
        forward = tf.function(forward, jit_compile=mode == "compiled")
    pooled, output = forward(tf.constant(images), False)
    check_pooled(case, "eval", pooled, tolerance)
    assert_near(output, case["eval_output"], tolerance)
    pooled, output = forward(tf.constant(images), True)
    check_pooled(case, "train", pooled, tolerance)
    assert_near(output, case["train_output"], tolerance)
    for key, value in get_weights(encoder).items():
        parity_cases.check_tensor(value, case[f"stats_after_train/{key}"], tolerance, key)


def test_split_batch_norm_is_batch_norm_of_each_strided_split():
    x = np.random.default_rng(0).normal(2.0, 3.0, (12, 5, 5, 7)).astype(np.float32)
    split, plain = BatchNorm(splits=3), BatchNorm()
    y = split(x, training=True).numpy()
    plain.build(x.shape)
    means, variances = [], []
    for s in range(3):
        part = x[s::3].astype(np.float64)
        expected = (part - part.mean((0, 1, 2))) / np.sqrt(part.var((0, 1, 2)) + 1e-5)
        np.testing.assert_allclose(y[s::3], expected, atol=2e-5)
        means.append(part.mean((0, 1, 2)))
        variances.append(part.var((0, 1, 2), ddof=1))
    np.testing.assert_allclose(split.running_mean.numpy(), 0.1 * np.mean(means, axis=0), rtol=1e-5)
    np.testing.assert_allclose(split.running_variance.numpy(), 0.9 + 0.1 * np.mean(variances, axis=0), rtol=1e-5)


@pytest.mark.parametrize("splits", [1, 4])
def test_batch_norm_of_xla(splits):
    """Values, gradients and running statistics in float32 against float64, means ten times the deviations."""
    rng = np.random.default_rng(3)
    images, up = 10 + rng.normal(size=(8, 5, 3, 6)), rng.normal(size=(8, 5, 3, 6))
    found = []
    for dtype, compiles in (("float64", False), ("float32", True)):
        layer = BatchNorm(splits=splits, dtype=dtype)
        layer.for_xla = compiles
        x, layer_up = tf.constant(images, dtype), tf.constant(up, dtype)
        layer.build(x.shape)
        layer.gamma.assign(rng.normal(size=6) if dtype == "float64" else found[0][-1])

        def both(x, layer=layer, layer_up=layer_up):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
            return y, *tape.gradient(y, [x, layer.gamma.value, layer.beta.value], layer_up)

        values = tf.function(both, jit_compile=compiles)(x)
        found.append([*values, layer.running_mean.value, layer.running_variance.value, layer.gamma.value])
    for exact, value in zip(*found):
        assert_near(value.numpy(), exact.numpy(), 2e-6)


def test_batch_norm_of_one_number():
    """A split of one pixel has the variance 0, as the kernel says: 0.9 of the running one is left."""
    x = np.random.default_rng(4).normal(size=(4, 1, 1, 6))
    for dtype, compiles in (("float64", False), ("float32", False), ("float32", True)):
        layer = BatchNorm(splits=4, dtype=dtype)
        layer.for_xla = compiles
        np.testing.assert_allclose(layer(tf.constant(x, dtype), training=True), 0, atol=1e-6)
        np.testing.assert_allclose(layer.running_variance.numpy(), 0.9, rtol=1e-6)


def test_batch_norm_of_vectors_and_of_bfloat16():
    x = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(BatchNorm()(x, training=True), expected, atol=1e-5)
    layer = BatchNorm(dtype="mixed_bfloat16")
    y = layer(tf.cast(x, tf.bfloat16), training=True)
    assert y.dtype == tf.bfloat16 and layer.running_mean.dtype == "float32"
    np.testing.assert_allclose(tf.cast(y, tf.float32), expected, atol=0.05)


def test_parameter_count_of_the_heads():
    def count(**kwargs):
        return sum(int(np.prod(v.shape)) for v in Encoder(**kwargs).parameters())

    assert count(arch="resnet18", head="none") == 11_176_512  # torchvision's resnet18 without its classifier
    assert count(arch="resnet18", head="linear") == 11_176_512 + 513 * 128
    assert count(arch="resnet18", head="mlp") == 11_176_512 + 513 * 512 + 513 * 128
    assert count(arch="resnet18", head="mlp_bn", hidden_dim=64) == 11_176_512 + 512 * 64 + 2 * 64 + 65 * 128


@pytest.mark.parametrize(
    ("pooled", "layers", "count"), [(2048, 2, 9_445_376), (384, 3, 19_415_040), (768, 3, 20_987_904)]
)
def test_parameter_count_of_moco_v3s_projectors(pooled, layers, count):
    """Of a ResNet-50, ViT-Small and ViT-Base; the last batch norm has running statistics alone."""
    head = HEADS[f"mlp_bn{layers}"]((pooled, 4096, 256), init="torch", dtype="float32", bn_splits=1)
    assert sum(int(np.prod(v.shape)) for v in head.named_parameters().values()) == count
    *_, last = head.named_variables()
    assert last == f"{3 * layers - 2}.running_var" and f"{3 * layers - 2}.weight" not in head.named_variables()


def test_blocks_that_start_as_the_identity():
    encoder = Encoder("resnet18", stem="cifar", width=4, head="none", zero_init_residual=True)
    scales = {
        name: v.numpy().max() for name, v in encoder.named_variables().items() if "bn" in name and ".weight" in name
    }
    assert {name for name, scale in scales.items() if scale == 0} == {
        f"layer{stage}.{block}.bn2.weight" for stage in (1, 2, 3, 4) for block in (0, 1)
    }


def test_encoder_survives_a_config_round_trip():
    encoder = Encoder("resnet10", stem="cifar", width=8, head="mlp", hidden_dim=12, feature_dim=5)
    again = Encoder.from_config(encoder.get_config())
    set_weights(again, get_weights(encoder))
    x = np.random.default_rng(2).normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(encoder(x), again(x))


@pytest.mark.parametrize("size", [8, 9, 11])
def test_max_pool_by_slices(size):
    """As TensorFlow's, gradients too; many equal values, as after a ReLU."""
    x = tf.nn.relu(tf.round(2 * tf.random.stateless_normal([2, size, size, 3], [1, 2])))
    up = tf.random.stateless_normal([2, (size - 3) // 2 + 1, (size - 3) // 2 + 1, 3], [3, 4])
    found = []
    for pool in (max_pool_by_slices, lambda x: tf.nn.max_pool2d(x, 3, 2, "VALID")):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = pool(x)
        found.append((y.numpy(), tape.gradient(y, x, up).numpy()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-6)


def test_max_pool_of_deterministic_runs(monkeypatch):
    """By slices on a GPU alone: there XLA has no deterministic gradient of max-pooling."""
    called = []
    monkeypatch.setattr(conv, "max_pool_by_slices", lambda x: called.append(x.shape))
    for gpu, exact in ((False, True), (True, False), (True, True)):
        monkeypatch.setattr(conv.device, "has_gpu", lambda gpu=gpu: gpu)
        monkeypatch.setattr(conv.device, "is_deterministic", lambda exact=exact: exact)
        conv.max_pool(tf.zeros([1, 6, 6, 2]))
    assert called == [(1, 8, 8, 2)]
