"""Convolutions for CPUs against TensorFlow's in float64, and how far both are from it in float32."""

import numpy as np
import pytest
import tensorflow as tf

from moco_tf.formats.torchvision import get_weights, set_weights
from moco_tf.networks import cpu
from moco_tf.networks.conv import Conv2D
from moco_tf.networks.encoder import Encoder


def direct(x, kernel):
    return tf.nn.conv2d(x, kernel, 1, "SAME")


def draw(shape, filters, dtype=tf.float64):
    random = np.random.default_rng(0)
    shapes = (shape, (3, 3, shape[-1], filters), (*shape[:-1], filters))
    return [tf.constant(random.normal(size=s), dtype) for s in shapes]


def with_gradients(convolution, x, kernel, dy):
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = convolution(x, kernel)
    return [y, *tape.gradient(y, [x, kernel], dy)]


@pytest.mark.parametrize(("shape", "filters"), [((2, 4, 4, 3), 5), ((3, 6, 8, 4), 2), ((1, 2, 2, 1), 1)])
@pytest.mark.parametrize("function", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_output_and_gradients_in_float64(shape, filters, function):
    arguments = draw(shape, filters)
    for got, expected in zip(
        with_gradients(function(cpu.winograd), *arguments), with_gradients(direct, *arguments), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-13)


def test_errors_in_float32():
    """Of outputs and gradients by inputs smaller than the direct form's; of kernels larger, but below the others'."""
    arguments = draw((16, 8, 8, 256), 256, tf.float32)
    exact = with_gradients(direct, *(tf.cast(a, tf.float64) for a in arguments))

    def errors(convolution):
        got = with_gradients(convolution, *arguments)
        return [np.std(g.numpy() - e.numpy()) / np.std(e) for g, e in zip(got, exact, strict=True)]

    own, theirs = errors(cpu.winograd), errors(direct)
    assert max(own) < 6e-7, own
    assert max(own) < max(theirs), (own, theirs)


@pytest.mark.parametrize(
    ("shape", "dtype", "size", "strides", "taken"),
    [
        ((64, 8, 8, 256), "float32", 3, 1, True),
        ((64, 8, 8, 256), "bfloat16", 3, 1, False),  # rounds what it sums before the products
        ((64, 8, 8, 256), "float32", 3, 2, False),
        ((64, 8, 8, 256), "float32", 1, 1, False),
        ((64, 7, 7, 512), "float32", 3, 1, False),  # odd
        ((64, 8, 8, 64), "float32", 3, 1, False),  # slower there
        ((4, 4, 4, 512), "float32", 3, 1, False),
        ((None, 8, 8, 256), "float32", 3, 1, False),
    ],
)
def test_which_convolutions_take_it(shape, dtype, size, strides, taken):
    x = tf.keras.Input(shape[1:], shape[0], dtype=dtype)
    kernel = tf.TensorSpec([size, size, shape[-1], 256], dtype)
    assert cpu.winograd_is_faster(x, kernel, strides) == taken


def test_a_convolution_that_may_use_products_takes_it():
    x = draw((16, 8, 8, 256), 256, tf.float32)[0]
    layer = Conv2D(256, 3)
    plain = layer(x)
    layer.may_use_products = True
    taken = layer(x)
    np.testing.assert_array_equal(taken, cpu.winograd(x, layer.kernel.value))
    assert np.any(taken != plain)
    exact = direct(tf.cast(x, tf.float64), tf.cast(layer.kernel.value, tf.float64))
    np.testing.assert_allclose(taken, exact, atol=1e-5 * np.std(exact))


@pytest.mark.parametrize(("side", "size", "strides"), [(4, 3, 1), (8, 3, 2), (8, 1, 2), (4, 1, 1)])
def test_kernel_gradient_by_products_is_the_convolutions(side, size, strides):
    random = np.random.default_rng(0)
    x, pad = tf.constant(random.normal(size=(6, side, side, 5))), size // 2
    layer = Conv2D(7, size, strides, dtype="float64")
    layer(x)
    with tf.GradientTape() as tape:
        y = layer(x)
        dy = tf.constant(random.normal(size=y.shape))
        loss = tf.reduce_sum(y * dy)
    expected = tape.gradient(loss, layer.kernel.value)
    padded = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) if strides > 1 else x
    padding = "SAME" if strides == 1 else "VALID"
    np.testing.assert_allclose(cpu.kernel_gradient(padded, dy, size, strides, padding), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_gradients_of_a_training_pass_prepared_for_a_cpu(dtype):
    images = tf.random.stateless_normal([4, 32, 32, 3], [0, 1])
    prepared, plain = (Encoder("resnet10", stem="cifar", width=8, dtype=dtype) for _ in range(2))
    prepared.prepare_for_cpu()
    set_weights(plain, get_weights(prepared))
    norms = []
    for encoder in (prepared, plain):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(encoder(images, training=True) ** 2)
        norms.append(tape.gradient(loss, [v.value for v in encoder.parameters()]))
    for got, expected in zip(*norms, strict=True):
        np.testing.assert_allclose(got, expected, atol=(1e-5 if dtype == "float32" else 2e-2) * np.abs(expected).max())
