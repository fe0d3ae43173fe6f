"""Runs that are killed or asked to stop at any moment end as one that was left alone, bit for bit."""

import json
import random
import signal
import time

import numpy as np
import pytest
from support.checkpoints import state_at
from support.processes import pretraining, wait, wait_for
from support.programs import TINY, learnt, make_photos, metrics

STEPS = 72  # of ten kills; fewer kills need fewer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Flags of a run of 72 steps on 90 photos, 5 steps an epoch, with a checkpoint every third step."""
    photos = make_photos(tmp_path_factory.mktemp("photos"))
    small = {**TINY, "width": 4, "steps": STEPS, "epochs": 20, "log_every": 1, "knn_every": 0, "learning_rate": 3e-3}
    often = {"checkpoint_every": 0, "checkpoint_steps": 3, "keep": 2, "keep_steps": 30}
    exact = {"precision": "float32", "threads": 1, "jit_compile": "false"}
    return {"dataset": "folder", "data_dir": photos, **small, **often, **exact}


def steps_logged(run):
    """The last step in metrics.jsonl."""
    try:
        return max([json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()], default=0)
    except (OSError, ValueError):
        return 0


def is_writing(run):
    return any((run / "checkpoints").glob(".draft-*"))


def check_equal(run, straight, step):
    assert [line["step"] for line in metrics(run)] == list(range(1, step + 1))
    assert learnt(run) == learnt(straight)
    found, want = state_at(run, step), state_at(straight, step)
    assert found.keys() == want.keys() and any("queue" in name for name in found)
    different = [name for name in want if not np.array_equal(found[name], want[name])]
    assert different == []


def kill_somewhere(run, processes, rng, in_checkpoint):
    """Kills both ranks some steps on, or in the middle of writing a checkpoint; returns where."""
    seen = steps_logged(run)
    target = seen + rng.randrange(1, 8)
    wait_for(lambda: steps_logged(run) >= target, processes)
    time.sleep(rng.random() * 0.02)
    wait_for(lambda: is_writing(run) == in_checkpoint, processes)
    for process in rng.sample(processes, len(processes)):
        process.send_signal(signal.SIGKILL)
    assert wait(processes) == [-signal.SIGKILL] * len(processes)
    return steps_logged(run), "writing" if is_writing(run) else "training"


@pytest.mark.horovod
@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.system)])
def test_two_ranks_killed_again_and_again_end_as_if_left_alone(kills, recipe, tmp_path):
    """SIGKILL at random moments of training and of writing checkpoints; the same command each time.

    Every second one is --deterministic, which changes nothing on a CPU.
    """
    killed, straight, rng, log = tmp_path / "killed", tmp_path / "straight", random.Random(0), tmp_path / "log"
    steps = STEPS if kills > 4 else 30
    recipe = {**recipe, "steps": steps}
    moments = []
    for number in range(kills):
        with pretraining(2, log, workdir=killed, deterministic=number % 2 == 1, **recipe) as processes:
            moments.append(kill_somewhere(killed, processes, rng, in_checkpoint=number % 3 > 0))
    for run in (killed, straight):
        with pretraining(2, log, workdir=run, **recipe) as processes:
            assert wait(processes) == [0, 0], log.read_text()[-3000:]
    print(f"killed after steps {moments}")
    assert log.read_text().count("resuming from") >= kills * 3 // 4  # the first kill may come before a checkpoint
    # A checkpoint may begin or end between the look and the kill: of few kills those in training may all be such.
    assert {where for _, where in moments} >= ({"writing", "training"} if kills > 4 else {"writing"})
    check_equal(killed, straight, steps)
    statistics = state_at(killed, steps)["rank_statistics/.ATTRIBUTES/VARIABLE_VALUE"]
    assert len(statistics) == 2 and np.any(statistics[0] != statistics[1])  # each rank's own


@pytest.mark.horovod
@pytest.mark.slow
@pytest.mark.parametrize(
    "number, status, ranks, values, ends, said",
    [
        (signal.SIGUSR1, 75, 2, {"width": 8}, [1, 1], "has --width=4 and came with --width=8, which"),
        (
            signal.SIGINT,
            130,
            1,
            {},
            [0],
            "changed: 1 ranks (were 2) share the same global batch of 16, 16 images a rank",
        ),
    ],
)
def test_one_rank_is_asked_and_both_stop_after_the_same_step(
    number, status, ranks, values, ends, said, recipe, tmp_path
):
    """The second command, on other ranks or with other flags, is told so once."""
    run, log = tmp_path / "run", tmp_path / "log"
    recipe = {**recipe, "steps": 60}
    with pretraining(2, log, workdir=run, **recipe) as processes:
        wait_for(lambda: steps_logged(run) >= 4, processes)
        processes[1].send_signal(number)
        assert wait(processes) == [status] * 2, log.read_text()[-3000:]
    step = steps_logged(run)
    assert sorted((run / "checkpoints").iterdir())[-1].name == f"step-{step:08}"
    with pretraining(ranks, log, workdir=run, **{**recipe, **values}) as processes:
        assert wait(processes) == ends, log.read_text()[-3000:]
    text = log.read_text()
    assert text.count(f"checkpoint written after step {step} of 60; the same command goes on from there") == 1
    assert text.count(said) == 1 and "Traceback" not in text


def test_exit_status_of_a_process_that_is_asked_to_stop(recipe, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    with pretraining(1, log, workdir=run, **{**recipe, "epochs": 10**6, "steps": 10**6}) as processes:
        wait_for(lambda: steps_logged(run) >= 1, processes)
        processes[0].send_signal(signal.SIGTERM)
        assert wait(processes) == [75]
    assert "Traceback" not in log.read_text()
    assert state_at(run, steps_logged(run))["steps_done/.ATTRIBUTES/VARIABLE_VALUE"] == steps_logged(run)
