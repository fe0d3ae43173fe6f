"""One compiled piece and several steps a call against single steps as a graph: losses, state, checkpoints, stops."""

import os
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from support import golden_losses, method_cases, noise
from support.checkpoints import state_at
from support.programs import metrics

from moco_tf.config.options import CheckpointOptions, Pretrain, TrainingDeviceOptions
from moco_tf.data.pipeline import TrainBatches
from moco_tf.data.sources import ArraySource
from moco_tf.errors import UserError
from moco_tf.run import calls, loop, prepare
from moco_tf.run.folder import RunFolder
from moco_tf.run.learner import TrainingTask
from moco_tf.training import checkpoint, device, stop
from moco_tf.training.collectives import SingleProcess

CASES = {name: {"name": name} for name in method_cases.METHODS}
CASES |= {"moco_after": {"name": "moco", "key_update": "after"}, "moco_symmetric": {"name": "moco", "symmetric": True}}
CASES |= {"moco_accumulated": {"name": "moco"}}  # in two micro-batches, and every gradient is checked
TOTAL, SAVED = 7, 5  # steps, which 4 a call do not divide, nor the 3 of an epoch; the step of a checkpoint on the way


class Training:
    """A tiny method, built once, that can be trained in any folder; its program is compiled once."""

    def __init__(self, case, jit_compile, steps_per_call, on_device=False):
        self.method = method_cases.build(**CASES[case], jit_compile=jit_compile, arch="support.tiny_net")
        if case == "moco_accumulated":
            self.method.query_encoder.save_memory(2)
            self.method.guard.every_gradient = True
        self.steps_per_call, self.call = steps_per_call, None
        self.batches = TrainBatches(noise.load("train", None), method_cases.BATCH, 0)
        if on_device:
            self.batches.keep_on_device()

    def set_rates(self, rates):
        self.method.optimizer.learning_rate.assign(rates[0])

    def train(self, folder, total=TOTAL, **limits):
        """Trains in a run folder up to a step; returns the folder."""
        options = CheckpointOptions(checkpoint_every=0, checkpoint_steps=SAVED, **limits)
        task = TrainingTask(
            options=Pretrain(checkpoints=options),
            folder=RunFolder.of(folder),
            learner=self.method,
            batches=self.batches,
            batch_size=method_cases.BATCH,
            total=total,
            collectives=SingleProcess(),
            checkpoints=options,
            log_every=100,
            rates=lambda step: [0.005 + 0.001 * step],
            set_rates=self.set_rates,
            about=dict,
            steps_per_call=self.steps_per_call,
        )
        self.call = self.call or calls.caller(task)
        with pytest.MonkeyPatch.context() as patch, stop.signals() as received:
            patch.setattr(calls, "caller", lambda _: self.call)
            loop.train(task, "test", received, lambda step: None)
        return folder


def of_steps(run):
    """The metrics of each step up to SAVED, as its checkpoint keeps them for the line of metrics to come."""
    return checkpoint.describe(run / "checkpoints" / f"step-{SAVED:08d}")["pending"]


def same_state(run, other):
    found, want = state_at(run, TOTAL), state_at(other, TOTAL)
    return found.keys() == want.keys() and [name for name in want if not np.array_equal(found[name], want[name])] == []


@pytest.mark.parametrize("case", CASES)
def test_one_piece_and_several_steps_a_call(case, tmp_path):
    """Calls of 4, 1 and 2 steps; with a stop after step 3, of 3, 2 and 2: the same bits."""
    plain = Training(case, "none", 1).train(tmp_path / "plain")
    single = Training(case, "all", 1).train(tmp_path / "single")
    several = Training(case, "all", 4, on_device=True)
    several.train(tmp_path / "several")
    for run in (single, tmp_path / "several"):
        assert golden_losses.differences(golden_losses.measured(run), golden_losses.measured(plain)) == []
        expected = of_steps(plain)
        assert of_steps(run).keys() == expected.keys() and len(expected["loss"]) == SAVED
        np.testing.assert_allclose(of_steps(run)["loss"], expected["loss"], rtol=1e-4)
    anew = Training(case, "none", 1).method.state()
    tf.nest.map_structure(lambda variable, value: variable.assign(value), several.method.state(), anew)
    several.train(tmp_path / "resumed", total=3)
    for variable in tf.nest.flatten(several.method.state()):
        variable.assign(tf.ones_like(variable))
    several.train(tmp_path / "resumed")
    assert same_state(tmp_path / "resumed", tmp_path / "several")
    assert of_steps(tmp_path / "resumed")["loss"] == of_steps(tmp_path / "several")["loss"][3:]


def test_signal_in_the_middle_of_a_call(tmp_path, monkeypatch):
    """Calls end at 4, 5 and 7: what comes while step 3 is prepared stops after step 4."""
    straight = Training("moco", "none", 4).train(tmp_path / "straight")
    steps = loop.steps

    def interrupted(*arguments):
        for number, batch in steps(*arguments):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield number, batch

    with monkeypatch.context() as patch, pytest.raises(stop.Stopped, match="checkpoint written after step 4 of 7"):
        patch.setattr(loop, "steps", interrupted)
        Training("moco", "none", 4).train(tmp_path / "halted")
    shutil.copytree(tmp_path / "halted", tmp_path / "moved")
    Training("moco", "none", 4).train(tmp_path / "moved")
    assert same_state(tmp_path / "moved", straight) and metrics(tmp_path / "moved")[-1]["step"] == TOTAL
    assert of_steps(tmp_path / "moved") == of_steps(straight)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_step_in_a_call_that_is_not_finite(policy, tmp_path, capfd):
    """The third and the fourth of a call of four: what is said and kept is what single steps say and keep."""
    said = []
    for most in (1, 4):
        training = Training("supervised", "none", most)
        broken(training.method, steps=(3, 4))
        if policy == "stop":
            with pytest.raises(UserError, match="the loss or a gradient of step 3 is not finite") as caught:
                training.train(tmp_path / str(most))
            said.append(re.sub(r"parameters: .*; of", "", str(caught.value)))  # those of a later step
        else:
            training.train(tmp_path / str(most), nan_policy="skip")
            said.append(
                re.findall(r"warning: (\d) steps left out: the loss or a gradient of step (\d)", capfd.readouterr().out)
            )
    if policy == "stop":
        assert said[0] == said[1] and not (tmp_path / "4" / "checkpoints").exists()
    else:
        assert said == [[("1", "3"), ("1", "4")], [("2", "3")]]
        assert same_state(tmp_path / "1", tmp_path / "4")


def broken(method, steps):
    """Its losses of these steps are NaN."""
    apply = method.apply

    def changed(gradients, found):
        wrong = tf.reduce_any(method.steps_done + 1 == tf.constant(steps, tf.int64))
        return apply(gradients, {**found, "loss": tf.where(wrong, np.nan, found["loss"])})

    method.apply = changed


def test_every_step_of_a_call_has_its_own_rates():
    """To the last bit of float32 and float64, as when they are set one by one."""
    rate, momentum = tf.Variable(0.0), tf.Variable(0.0, dtype=tf.float64)
    task = SimpleNamespace(
        learner=SimpleNamespace(train_step=lambda batch: {"rate": rate + 0, "momentum": momentum + 0}, one_piece=True),
        batches=SimpleNamespace(fetch=lambda batch: batch),
        set_rates=lambda values: (rate.assign(tf.cast(values[0], tf.float32)), momentum.assign(values[1])),
        steps_per_call=4,
    )
    rates = np.random.default_rng(0).random((3, 2))
    found = calls.caller(task)([(np.zeros(2),)] * 3, rates)
    np.testing.assert_array_equal(found["rate"][:3], rates[:, 0].astype(np.float32))
    np.testing.assert_array_equal(found["momentum"][:3], rates[:, 1])


def test_calls_end_where_something_is_due():
    found = list(calls.grouped(((step, -step) for step in range(3, 13)), 4, lambda step: step in (5, 6, 12)))
    assert found == [(5, [-3, -4, -5]), (6, [-6]), (10, [-7, -8, -9, -10]), (12, [-11, -12])]


def test_images_on_the_device_are_the_same_in_the_same_order():
    near, far = (TrainBatches(noise.load("train", None), 8, seed=4) for _ in range(2))
    near.keep_on_device()
    assert near.on_device and not far.on_device
    for epoch, start in ((0, 0), (3, 2)):
        pairs = list(zip(near.batches(epoch, start), far.batches(epoch, start), strict=True))
        assert len(pairs) == 6 - start
        for indices, batch in pairs:
            for found, want in zip(near.fetch(indices), far.fetch(batch), strict=True):
                np.testing.assert_array_equal(found, want)


def test_what_auto_chooses(monkeypatch):
    """On a GPU images of 2 GB at most, and 10 steps a call with them when all is one piece; nothing on a CPU."""
    options, small = TrainingDeviceOptions(), TrainBatches(noise.load("train", None), 8, 0)
    large = TrainBatches(ArraySource("large", np.broadcast_to(np.uint8(0), (5000, 400, 400, 3))), 8, 0)
    assert not prepare.placed(small, options).on_device and prepare.steps_per_call(options, True, True, 100) == 1
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(TrainBatches, "keep_on_device", lambda self: setattr(self, "_images", self.source.name))
    assert prepare.placed(small, options).on_device and not prepare.placed(large, options).on_device
    cases = [(True, True, 100), (True, False, 100), (False, True, 100), (True, True, 7)]  # no call goes past a log line
    assert [prepare.steps_per_call(options, *case) for case in cases] == [10, 1, 1, 7]
    asked = TrainingDeviceOptions(steps_per_call=3, data_on_device="true")
    assert prepare.placed(large, asked).on_device and prepare.steps_per_call(asked, False, False, 100) == 3


def test_refusals():
    with pytest.raises(UserError, match="^--steps_per_call=2 came on 4 ranks, expected 0 or 1"):
        prepare.check_calls(TrainingDeviceOptions(steps_per_call=2), SimpleNamespace(size=4))
    photos = SimpleNamespace(source=SimpleNamespace(name="photos"))
    with pytest.raises(UserError, match="^--data_on_device=true came, but the images of photos are read from files"):
        prepare.placed(photos, TrainingDeviceOptions(data_on_device="true"))
