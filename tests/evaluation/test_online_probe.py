"""The probe that learns along: it leaves the pre-training alone to the last bit, and learns what it should."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from support import method_cases

from moco_tf.errors import UserError
from moco_tf.evaluation.online_probe import OnlineProbe
from moco_tf.training import checkpoint

BATCH = method_cases.BATCH


def batch(step):
    """A batch whose images all have labels."""
    images, labels, indices = method_cases.batch(step)
    return tuple(map(tf.constant, (images, np.abs(labels), indices)))


def steps(learner, numbers=range(2), traced=True):
    step = tf.function(learner.train_step, autograph=False) if traced else learner.train_step
    return [step(batch(number)) for number in numbers]


def check_untouched(build):
    """Every variable of the method is bit for bit that of a method without a probe, which has learnt something."""
    alone, probe = build(), OnlineProbe(build(), method_cases.CLASSES, BATCH)
    before = {name: v.numpy() for name, v in probe.classifiers.learnt().items()}
    found, expected = steps(probe), steps(alone)
    check_same(method_cases.arrays(probe.method), method_cases.arrays(alone))
    for mine, own in zip(found, expected):
        assert mine.keys() == own.keys() | {"probe_loss", "probe_train_top1"}
        assert all(mine[name].numpy() == value.numpy() for name, value in own.items())
    assert all(np.any(v.numpy() != before[name]) for name, v in probe.classifiers.learnt().items())
    return probe


CASES = {
    "simclr": ("simclr", {}),  # passes both views at once
    "micro-batches, computed again": ("moco", {}),
    "one compiled piece": ("moco", {"jit_compile": "all"}),
}


@pytest.mark.parametrize("case", CASES)
def test_no_bit_of_the_pre_training_changes(case):
    name, values = CASES[case]

    def build():
        method = method_cases.build(name, **values)
        if case.startswith("micro"):
            method.query_encoder.save_memory(micro_batches=2, recompute=True)
        return method

    check_untouched(build)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_first_step_by_hand(micro_batches):
    """The features are those of the training pass; then Adam's first step from the gradient of the cross entropy."""
    method = method_cases.build("moco", splits=micro_batches if micro_batches == 1 else 1)
    method.query_encoder.save_memory(micro_batches)
    probe = OnlineProbe(method, method_cases.CLASSES, BATCH)
    twin = method_cases.build("moco", splits=micro_batches)
    images, labels, _ = batch(0)
    x = twin.query_encoder.features(twin.view(images, 0), training=True).numpy().astype(np.float64)
    kernel, bias = (v.numpy().astype(np.float64) for v in probe.classifiers.variables())
    logits = x @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    of_logits = (p - np.eye(method_cases.CLASSES)[labels]) / BATCH
    (metrics,) = steps(probe, range(1), traced=False)
    assert float(metrics["probe_loss"]) == pytest.approx(-np.log(p[np.arange(BATCH), labels]).mean(), rel=1e-5)
    assert float(metrics["probe_train_top1"]) == pytest.approx((logits.argmax(1) == labels.numpy()).mean())
    for v, before, gradient in zip(probe.classifiers.variables(), (kernel, bias), (x.T @ of_logits, of_logits.sum(0))):
        expected = before - gradient / x.shape[1] / (np.abs(gradient) + 1e-8)  # m / (1 - b1) over sqrt(v / (1 - b2))
        np.testing.assert_allclose(v.numpy(), expected, rtol=1e-4, atol=2e-6)


def test_what_is_not_finite_stays_outside():
    """A broken step of the encoder is the method's matter: the probe's numbers stay finite."""
    probe = OnlineProbe(method_cases.build("moco"), method_cases.CLASSES, BATCH)
    steps(probe, range(1), traced=False)
    kept = [v.numpy() for v in probe.classifiers.variables()]
    weights = next(iter(probe.method.query_encoder.named_parameters().values()))
    weights.assign(weights * np.inf)
    (metrics,) = steps(probe, range(1, 2), traced=False)
    assert not np.isfinite(metrics["probe_loss"])
    for v, before in zip(probe.classifiers.variables(), kept):
        np.testing.assert_array_equal(v.numpy(), before)


def test_a_checkpoint_with_a_probe_goes_on_with_and_without_it(tmp_path):
    """With it bit for bit; a training that had none starts one, and the other way round, with the method as it was."""
    build = functools.partial(method_cases.build, "moco")

    def probed():
        return OnlineProbe(build(), method_cases.CLASSES, BATCH)

    first = probed()
    steps(first, range(2), traced=False)
    path = checkpoint.save(tmp_path / "probed", 2, first.state(), {}, 1)
    saved = method_cases.leaves(first.state())
    again, without = probed(), build()
    steps(again, range(7, 8), traced=False)
    checkpoint.restore(path, again.state())
    for learner in (first, again):
        steps(learner, range(2, 4), traced=False)
    check_same(method_cases.leaves(again.state()), method_cases.leaves(first.state()))
    checkpoint.restore(path, without.state())
    plain = checkpoint.save(tmp_path / "plain", 2, without.state(), {}, 1)
    late = probed()
    fresh = method_cases.leaves(late.probe_state())
    checkpoint.restore(plain, late.state())
    check_same(method_cases.leaves(late.state()), saved | fresh)


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_method_that_hides_its_features_is_refused():
    method = method_cases.build("moco")
    method.train_step = lambda data: {"loss": tf.constant(0.0)}
    with pytest.raises(UserError, match="--monitor=probe came with MoCo, whose step does not call .*; leave probe out"):
        OnlineProbe(method, 4, BATCH).train_step(batch(0))
