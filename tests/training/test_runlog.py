"""The run log: metrics.jsonl without gaps or doubles after a restart, TensorBoard's curves, silence off rank 0."""

import fcntl
import json
import os
import pty
import struct
import termios
import threading

import pytest
import tensorflow as tf

from moco_tf.run import loop
from moco_tf.training import runlog
from moco_tf.training.runlog import RunLog


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def written(folder, *steps, start=0):
    log = RunLog(folder, True, 10, start)
    for step in steps:
        log.advance()
        log.show(f"loss {1.0 / step}")
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
    log.show("loss 1")
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


def test_bar_of_80_columns(tmp_path, monkeypatch):
    """A long run's bar on a terminal of 80 columns: the bar itself, steps, the time left, loss, images a second."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: shown.extend(iter(lambda: os.read(ours, 4096), b"\x04")))
    reader.start()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        log = RunLog(tmp_path, True, 1_000_000, 123_456)
        log._bar.start_t -= 100 * 3600  # as if it had run for days
        log.show(loop.shown({"loss": 12.3456, "images_per_second": 12345.6, "contrast_top1": 0.5}))
        log._bar.update(200_000)
        log._bar.refresh()
        log.close()
        terminal.write("\x04")
        terminal.flush()
        reader.join(10)
    os.close(ours)
    lines = b"".join(shown).decode().replace("\r", "\n").split("\n")
    last = [line for line in lines if "323456/1000000" in line][-1]
    assert len(last) <= 80 and last.startswith(" 32%|") and last.count("\u2588") >= 4
    assert last.rstrip().endswith("loss 12.35, 12,346 images/s") and " left, " in last
