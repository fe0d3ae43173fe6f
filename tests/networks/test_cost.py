"""Parameters and multiply-adds: published numbers, a count by hand, nested functions, what is not counted."""

import keras
import pytest
import tensorflow as tf

from moco_tf.networks.cost import Cost, cost
from moco_tf.networks.encoder import Encoder


def giga(count):
    return f"{count / 1e9:.2f}"


def mega(count):
    return f"{count / 1e6:.2f}"


@pytest.fixture(scope="module")
def cifar_encoder():
    return Encoder("resnet50", stem="cifar", head="mlp_bn", hidden_dim=512)


def test_pre_training_of_leftthomas(cifar_encoder):
    """leftthomas/MoCo, README: 24.62 M parameters, 1.31 G operations as thop counts them."""
    counted = cost(cifar_encoder, 32)
    assert counted.parameters == 24_615_616 and mega(counted.parameters) == "24.62"
    assert counted.multiply_adds == 1_298_923_520 and giga(counted.multiply_adds) == "1.30"
    assert giga(counted.thop) == "1.31"
    assert str(counted) == "24.62 M parameters, 1.30 G multiply-adds at 32 px (1.31 G as thop counts)"


def test_linear_evaluation_of_leftthomas(cifar_encoder):
    """The same README: 23.52 M parameters, 1.30 G operations."""
    classifier = keras.layers.Dense(10)
    counted = cost(lambda images: classifier(cifar_encoder.features(images)), 32)
    assert counted.parameters == 23_520_842 and mega(counted.parameters) == "23.52"
    assert counted.multiply_adds == 1_297_829_888 and giga(counted.multiply_adds) == "1.30"
    assert giga(counted.thop) == "1.30"


@pytest.mark.parametrize(
    ("arch", "parameters", "multiply_adds"),
    [("resnet50", 25_557_032, "4.09"), ("resnet18", 11_689_512, "1.81")],
)
def test_torchvision(arch, parameters, multiply_adds):
    """Torchvision's model pages: num_params and GFLOPS (multiply-adds) of the ImageNet classifiers at 224."""
    counted = cost(Encoder(arch, head="linear", feature_dim=1000), 224)
    assert counted.parameters == parameters
    assert giga(counted.multiply_adds) == multiply_adds


def small(**kwargs):
    return Encoder("resnet10", stem="cifar", width=2, head="linear", feature_dim=3, **kwargs)


def by_hand(side):
    """(multiply-adds, outputs of batch norms) of `small`: (output side, kernel, channels in, out) of each conv."""
    half, quarter, eighth = side // 2, side // 4, side // 8
    convs = [(side, 3, 3, 2), (side, 3, 2, 2), (side, 3, 2, 2)]
    for out, channels in [(half, 2), (quarter, 4), (eighth, 8)]:
        convs += [
            (out, 3, channels, 2 * channels),
            (out, 3, 2 * channels, 2 * channels),
            (out, 1, channels, 2 * channels),
        ]
    return sum(s * s * k * k * i * o for s, k, i, o in convs) + 16 * 3, sum(s * s * o for s, _, _, o in convs)


@pytest.mark.parametrize("side", [16, 32])
def test_by_hand(side):
    encoder = small()
    multiply_adds, normalised = by_hand(side)
    parameters = sum(v.shape.num_elements() for v in (v.value for v in encoder.parameters()))
    assert cost(encoder, side) == Cost(parameters, multiply_adds, normalised, side)


def test_precision_splits_and_freezing_change_nothing():
    wanted = cost(small(), 16)
    frozen = small(bn_splits=2)
    frozen.trainable = False
    assert cost(frozen, 16) == cost(small(dtype="mixed_bfloat16"), 16) == wanted
    assert cost(small(dtype="float64"), 16) == Cost(wanted.parameters, wanted.multiply_adds, 0, 16)


def test_functions_inside_functions_are_counted_each_time():
    weights = tf.Variable(tf.ones([3, 5]))

    @tf.function(jit_compile=True)
    def product(x):
        return tf.matmul(weights, x, transpose_a=True, transpose_b=True)  # 5xN of Nx3

    @tf.function
    def twice(x):
        return product(x) + product(x)

    counted = cost(lambda images: twice(tf.reshape(images, [-1, 3])), 4)
    assert counted == Cost(15, 2 * 5 * 16 * 3, 0, 4)


def some_pixels(images):
    """Nx3, N known only once it runs."""
    return tf.boolean_mask(images, images[..., 0] > 0)


def test_convolutions_by_depth_and_products_of_batches():
    kernel, table = tf.Variable(tf.ones([3, 5, 3, 2])), tf.Variable(tf.ones([2, 7, 4]))

    def forward(images):
        x = tf.nn.depthwise_conv2d(images, kernel, [1, 2, 2, 1], "SAME")  # 1x4x4x6
        x = tf.reshape(x, [-1, 2, 8, 6])
        scores = tf.matmul(x, x, transpose_b=True)  # 1x2x8x8
        mixed = tf.matmul(scores, x, transpose_a=True)  # 1x2x8x6
        return tf.einsum("bhqc,hkd->bqkcd", mixed, table)

    by_hand = (4 * 4 * 6) * (3 * 5) + (2 * 8 * 8) * 6 + (2 * 8 * 6) * 8 + (2 * 8 * 6 * 7 * 4)
    assert cost(forward, 8) == Cost(90 + 56, by_hand, 0, 8)


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (lambda x: tf.einsum("bhwc->b", x), "Einsum bhwc->b"),
        (lambda x: tf.einsum("bhwc,bhwd->bd", x, x), "Einsum bhwc,bhwd->bd"),  # sums over c first
        (lambda x: tf.einsum("...c,...d->...cd", x, x), "Einsum ...c,...d->...cd"),
        (lambda x: tf.while_loop(lambda y: tf.reduce_sum(y) < 9.0, lambda y: y + 1.0, [x]), "StatelessWhile"),
        (lambda x: tf.matmul(y := some_pixels(x), y, transpose_b=True), "GatherV2 of shape (None, 3)"),
        (lambda x: tf.matmul(y := some_pixels(x), y, transpose_a=True), "GatherV2 of shape (None, 3)"),
    ],
)
def test_what_cannot_be_counted_is_said(forward, what):
    weight = tf.Variable(tf.ones([2]))
    counted = cost(lambda images: (forward(images), weight + 1.0), 4)
    assert (counted.parameters, counted.multiply_adds, counted.normalised, counted.thop) == (2, None, None, None)
    assert counted.not_counted.startswith(what)
    assert str(counted).startswith(f"2 parameters, multiply-adds not counted: {what}")


def test_a_size_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="image_size is 0"):
        cost(lambda images: images, 0)


def test_short_numbers():
    assert str(Cost(999, 12_340, 0, 8)) == "999 parameters, 12.34 k multiply-adds at 8 px (12.34 k as thop counts)"
