"""Loss scaling (the scale's rule, steps left out, float16 training equal to float32's), means in float16."""

import numpy as np
import pytest
import tensorflow as tf
from support import method_cases

from moco_tf.training.update import LossScale


def test_scale_is_halved_on_overflow_and_doubled_after_the_interval():
    scale = LossScale(initial=8.0, interval=3)
    seen = []
    for finite in (True, True, True, True, False, True, True, True, False, False, False, False, False, False):
        scale.update(tf.constant(finite))
        seen.append(float(scale.scale))
    assert seen == [8, 8, 16, 16, 8, 8, 8, 16, 8, 4, 2, 1, 1, 1]


def test_unscaled_gradients_and_whether_they_are_finite():
    scale = LossScale(initial=4.0)
    gradients, finite = scale.unscale([tf.constant([8.0, -2.0]), tf.constant([[1.0]])])
    assert bool(finite) and [g.numpy().tolist() for g in gradients] == [[2.0, -0.5], [[0.25]]]
    assert not bool(scale.unscale([tf.constant([1.0]), tf.constant([np.inf])])[1])
    assert not bool(scale.unscale([tf.constant([np.nan])])[1])


@pytest.mark.parametrize("name", ["moco", "simclr", "npid"])
def test_float16_takes_nearly_the_step_of_float32(name):
    exact, half = method_cases.build(name), method_cases.build(name, dtype="mixed_float16")
    start = method_cases.arrays(exact)
    parameters = [key for key in start if key.startswith("query_encoder") and ".running_" not in key]
    losses, moves = [], []
    for method in (exact, half):
        losses.append(method_cases.run(method, steps=[0], eager=name != "moco")["metric loss"][0])
        after = method_cases.arrays(method)
        moves.append(np.concatenate([(after[key] - start[key]).ravel() for key in parameters]))
    assert losses[1] == pytest.approx(losses[0], rel=3e-3)
    lengths = [np.linalg.norm(move) for move in moves]
    assert moves[0] @ moves[1] / lengths[0] / lengths[1] > 0.99
    assert lengths[1] == pytest.approx(lengths[0], rel=0.03)  # the scale is taken out again
    assert {"loss_scale", "loss_scale_good_steps"} <= method_cases.arrays(half).keys() - start.keys()


def test_a_step_that_overflows_is_left_out():
    method = method_cases.build("moco", dtype="mixed_float16")
    method.loss_scale.scale.assign(2.0**40)
    before = method_cases.arrays(method)
    method_cases.run(method, steps=[0])
    after = method_cases.arrays(method)
    parameters = [k for k in before if k.startswith("query_encoder") and ".running_" not in k]
    assert all(np.array_equal(before[k], after[k]) for k in parameters)
    assert after["loss_scale"] == 2.0**39 and after["steps_done"] == 1
