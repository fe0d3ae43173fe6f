"""Micro-batches and recomputation change what is held in memory, not what is computed."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from moco_tf.methods.moco import MoCo
from moco_tf.methods.simclr import SimCLR
from moco_tf.networks.encoder import Encoder
from moco_tf.training.optimizers import SGD

IMAGES = np.random.default_rng(0).random((2, 8, 16, 16, 3))


def encoder(splits=1, dtype="float64", **save):
    tf.keras.utils.set_random_seed(0)
    built = Encoder("resnet10", stem="cifar", width=8, bn_splits=splits, head="mlp_bn", feature_dim=16, dtype=dtype)
    built.save_memory(**save)
    return built


def method(kind, splits=1, jit_compile="none", **save):
    if kind == "simclr":
        built = SimCLR(encoder(splits, "float32", **save))
    else:
        # The order of a shuffle decides which keys share a batch norm: without it splits are micro-batches.
        pair = [encoder(splits, **save) for _ in range(2)]
        built = MoCo(*pair, queue_size=16, key_momentum=0.5, bn="split", jit_compile=jit_compile)
    built.compile(SGD(0.05))
    return built


@functools.cache
def losses_and_state(kind, **how):
    """Of three steps; what several tests compare with is computed once."""
    built = method(kind, **how)
    step = tf.function(built.train_step)
    images = tuple(tf.constant(IMAGES, built.query_encoder.variable_dtype))
    losses = [float(step((images, None))["loss"]) for _ in range(3)]
    return losses, {name: v.numpy() for name, v in built.query_encoder.named_variables().items()}


def assert_equal(got, expected, but=(), tolerance=1e-9):
    np.testing.assert_allclose(got[0], expected[0], rtol=tolerance)
    for name, value in expected[1].items():
        if not any(part in name for part in but):
            np.testing.assert_allclose(got[1][name], value, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("kind", ["moco", "simclr"])
def test_micro_batches_are_splits_of_the_batch_norms(kind):
    got, expected = (losses_and_state(kind, **how) for how in ({"micro_batches": 4}, {"splits": 4}))
    # The losses of In, Out and SimCLR are float32.
    assert_equal(got, expected, but=("running",), tolerance=2e-5 if kind == "simclr" else 1e-9)


def test_micro_batches_move_the_statistics_once_each():
    built, images = encoder(micro_batches=2), tf.constant(IMAGES[0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(built(images, training=True))
    tape.gradient(loss, [v.value for v in built.parameters()])
    one_by_one = encoder()
    for i in range(2):
        one_by_one(images[i::2], training=True)
    for a, b in zip(built.running_statistics(), one_by_one.running_statistics(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-12)


@pytest.mark.parametrize("how", [{}, {"micro_batches": 2}])
def test_recomputation_changes_nothing(how):
    assert_equal(losses_and_state("moco", recompute=True, **how), losses_and_state("moco", **how))


def test_compiled_micro_batches_equal_those_of_the_graph():
    how = {"recompute": True, "micro_batches": 2}
    assert_equal(losses_and_state("moco", jit_compile="all", **how), losses_and_state("moco", **how))


def test_a_head_on_a_backbone_without_norms_sees_the_whole_batch():
    """A step of MoCo v3 with a ViT is exact in micro-batches: outputs, gradients and statistics of the head."""
    found, size = [], {"width": 24, "depth": 2, "heads": 3, "patch": 8}
    original = Encoder("vit_tiny", head="mlp_bn3", hidden_dim=16, feature_dim=8, dtype="float64", **size)
    for micro_batches in (1, 4):
        built = original.copied()
        built.save_memory(micro_batches, recompute=micro_batches > 1)
        with tf.GradientTape() as tape:
            y = built(tf.constant(IMAGES[0]), training=True)
            loss = tf.reduce_sum(y**3)
        gradients = tape.gradient(loss, [v.value for v in built.parameters()])
        found.append([y, *gradients, *(v.numpy() for v in built.running_statistics())])
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))


def test_micro_batches_in_bfloat16():
    """Inside of a call Keras gives variables as tensors of 16 bits, which have no mark of what is learnt."""
    built = encoder(dtype="mixed_bfloat16", micro_batches=2)
    assert built(tf.constant(IMAGES[0], tf.float32), training=True).shape == (8, 16)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        encoder(micro_batches=3)(tf.constant(IMAGES[0]), training=True)
