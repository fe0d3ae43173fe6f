"""Signals: noted by the loop, passed on to all ranks, and nothing of a run changes by a stop."""

import os
import shutil
import signal
import threading

import numpy as np
import pytest
import tensorflow as tf
from support.checkpoints import state_at
from support.programs import TINY, call, learnt, make_photos, metrics

from moco_tf.run import loop
from moco_tf.training import stop


@pytest.mark.parametrize(
    "numbers, status",
    [
        ([signal.SIGTERM], 75),
        ([signal.SIGUSR1], 75),
        ([signal.SIGINT], 130),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1], 75),
        ([signal.SIGTERM, signal.SIGINT], 130),
        ([signal.SIGINT, signal.SIGTERM], 130),
    ],
)
def test_signals_are_noted(numbers, status):
    before = signal.getsignal(signal.SIGTERM)
    with stop.signals() as received, received.deferred():
        assert received.status == 0
        for number in numbers:
            os.kill(os.getpid(), number)
        assert received.status == status
    assert signal.getsignal(signal.SIGTERM) == before


def test_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), stop.signals() as received, received.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_before_the_first_step_a_signal_stops_at_once():
    with pytest.raises(stop.Stopped, match="SIGUSR1 outside of the steps") as caught, stop.signals():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert caught.value.status == 75
    with pytest.raises(KeyboardInterrupt), stop.signals():
        os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_receives_no_signals():
    """Python allows handlers in the main thread alone; elsewhere there are none, and no error."""
    found = []

    def run():
        with stop.signals() as received:
            found.append(received.status)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [0]


@pytest.mark.parametrize(
    "asked, status", [([], 0), ([75], 75), ([130], 130), ([0, 75, 0, 0], 75), ([75, 130, 0], 130), ([75] * 1024, 75)]
)
def test_agreement(asked, status):
    """The mean over ranks of what each was asked for, in the least precise type that it may travel in."""
    requests = [stop.StopRequest() for _ in asked or [0]]
    for request, wish in zip(requests, asked):
        if wish:
            request.ask(wish)
    mean = np.mean([request.asked.numpy() for request in requests], axis=0).astype(np.float16)
    requests[0].agreed.assign(mean.astype(np.float32))
    assert requests[0].status() == status


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    photos = make_photos(tmp_path_factory.mktemp("photos"))
    small = {**TINY, "width": 4, "steps": 6, "log_every": 4, "knn_every": 0, "checkpoint_every": 0}
    return {"dataset": "folder", "data_dir": photos, **small, "precision": "float32", "jit_compile": "false"}


def test_horovodruns_ctrl_c_is_named(monkeypatch):
    """Its ranks get SIGTERM then."""
    monkeypatch.delenv("HOROVOD_RANK", raising=False)
    assert stop.reason(75) == "stopped by SIGTERM or SIGUSR1" and stop.reason(130) == "interrupted"
    monkeypatch.setenv("HOROVOD_RANK", "1")
    assert stop.reason(75) == "stopped by Ctrl-C at horovodrun, SIGTERM or SIGUSR1"


def stopped_at(step, monkeypatch):
    """A signal arrives while a step is prepared."""
    steps = loop.steps

    def interrupted(*args):
        for number, batch in steps(*args):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield number, batch

    monkeypatch.setattr(loop, "steps", interrupted)


def test_a_run_that_stops_and_goes_on_is_the_same_run(recipe, tmp_path, monkeypatch):
    """Stopped after step 3, where nothing was due: the metrics of step 4 are the means of all four steps."""
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    call("pretrain", "debug/pretrain.cfg", workdir=straight, **recipe)
    with monkeypatch.context() as patch:
        stopped_at(3, patch)
        with pytest.raises(stop.Stopped, match="checkpoint written after step 3 of 6; .* goes on") as caught:
            call("pretrain", "debug/pretrain.cfg", workdir=halted, **recipe)
    assert caught.value.status == 75
    assert not (halted / "metrics.jsonl").read_text()
    shutil.copytree(halted, tmp_path / "moved")
    call("pretrain", "debug/pretrain.cfg", workdir=tmp_path / "moved", **recipe)
    assert [line["step"] for line in metrics(straight)] == [4, 6]
    assert learnt(tmp_path / "moved") == learnt(straight)
    found, want = state_at(tmp_path / "moved", 6), state_at(straight, 6)
    assert [name for name in want if not np.array_equal(found[name], want[name])] == []


def test_a_signal_in_the_last_step_changes_nothing(recipe, tmp_path, monkeypatch, capsys):
    stopped_at(1, monkeypatch)
    call("pretrain", "debug/pretrain.cfg", workdir=tmp_path / "run", **{**recipe, "steps": 1})
    assert "done: 1 steps" in capsys.readouterr().out


def test_signal_while_a_graph_is_traced():
    """AutoGraph makes errors of its own of the exceptions that it meets, but for those that end a process."""
    with pytest.raises(stop.Stopped), stop.signals():
        tf.function(lambda: os.kill(os.getpid(), signal.SIGTERM))()
