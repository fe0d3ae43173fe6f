"""The run log: metrics.jsonl without gaps or doubles after a restart, TensorBoard's curves, silence off rank 0."""

import json

import pytest
import tensorflow as tf

from moco_tf.training import runlog
from moco_tf.training.runlog import RunLog


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def written(folder, *steps, start=0):
    log = RunLog(folder, True, 10, start)
    for step in steps:
        log.advance()
        log.show(loss=1.0 / step)
        log.write(step, loss=1.0 / step)
    log.close()
    return [line["step"] for line in lines(folder)]


def curve(folder, tag):
    """{step: value} of one TensorBoard curve."""
    events = [
        event for path in folder.glob("tensorboard/events*") for event in tf.compat.v1.train.summary_iterator(str(path))
    ]
    return {e.step: float(tf.make_ndarray(v.tensor)) for e in events for v in e.summary.value if v.tag == tag}


def test_metrics_and_curves(tmp_path, capsys):
    assert written(tmp_path, 1, 2, 4) == [1, 2, 4]
    assert lines(tmp_path)[1]["loss"] == 0.5
    assert all(line["time"] >= 0 for line in lines(tmp_path))
    assert curve(tmp_path, "loss") == {1: 1.0, 2: 0.5, 4: 0.25}
    assert "0.25" in capsys.readouterr().err


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    written(tmp_path, 1, 2, 3, 4, 5)
    assert written(tmp_path, 4, 5, 6, start=3) == [1, 2, 3, 4, 5, 6]
    assert written(tmp_path, 1) == [1]
    assert not list(tmp_path.glob("*.draft"))


@pytest.mark.parametrize(
    "end",
    ['{"step": 3, "lo', '{"step"', "{", "3", '"3"', "[]", "{}", '{"step": "3"}', '{"step": null}', "\udcff"],
)
def test_cut_last_line_is_dropped(end, tmp_path):
    written(tmp_path, 1, 2)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(end)
    assert written(tmp_path, 3, start=2) == [1, 2, 3]


def test_other_ranks_write_nothing(tmp_path, capfd):
    log = RunLog(tmp_path / "run", False, 10)
    log.advance()
    log.show(loss=1.0)
    log.write(1, loss=1.0)
    log.say("hello")
    log.close()
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_program_that_stops_early_finishes_its_logs(tmp_path, capfd):
    """The error's line does not stand behind the progress bar, and TensorBoard gets what came before."""
    log = RunLog(tmp_path, True, 10)
    log.advance()
    log.write(1, loss=1.0)
    runlog.close_all()
    assert capfd.readouterr().err.endswith("\n")
    assert curve(tmp_path, "loss") == {1: 1.0}
    log.close()
    runlog.close_all()


def test_messages_stand_above_the_bar(tmp_path, capfd):
    log = RunLog(tmp_path, True, 10)
    log.say("epoch 1: kNN top-1 50%")
    log.close()
    assert "epoch 1: kNN top-1 50%\n" in capfd.readouterr().out
