"""The programs from end to end on a small folder of images: run folders, evaluations, resuming, model.fit."""

import json
import shutil
import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.programs import (
    TINY,
    call,
    losses,
    metrics,
    start,
    steps_kept,
)

from moco_tf.methods.moco import MoCo
from moco_tf.networks.encoder import Encoder
from moco_tf.training import optimizers


@pytest.fixture(scope="session")
def debug(photos):
    """Flags of the debug recipe that make it tiny."""
    return {"dataset": "folder", "data_dir": photos, **TINY}


@pytest.fixture(scope="session")
def run(debug, tmp_path_factory):
    """A run folder of the debug recipe."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    call("pretrain", "debug/pretrain.cfg", workdir=workdir, checkpoint_steps=2, keep=2, jit_compile="false", **debug)
    return workdir


def test_run_folder(run):
    """What the run folder's contract says."""
    lines = metrics(run)
    keys = {"step", "epoch", "loss", "contrast_top1", "contrast_top5", "learning_rate", "images_per_second"}
    assert set().union(*lines) >= keys | {"knn_top1", "knn_top5"}
    trained = [line for line in lines if keys <= line.keys()]
    assert [line["step"] for line in trained] == [2, 4, 6]
    assert trained[-1]["epoch"] == pytest.approx(6 / 5)
    assert all(line.pop("model_flop_utilisation") is None for line in trained)  # of a CPU no peak is known
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert steps_kept(run) == [5, 6]  # of 2, 4, the epoch's end 5, and the end 6
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(run.glob("unreadable*"))


def test_flags_cfg_runs_again(run, tmp_path):
    """The recorded flags are a flagfile of the same run, in a process of its own."""
    again = start("pretrain", run / "flags.cfg", workdir=tmp_path / "again")
    out, error = again.communicate()
    assert again.returncode == 0, error
    assert out.count("done:") == 1
    at_the_end = out.rpartition("done:")[2].splitlines()[1:]
    assert at_the_end[0].startswith("verdict: too short to tell (") and at_the_end[1].startswith("figures: spread ")
    assert at_the_end[2:] == [
        f"next: python -m moco_tf.lincls --load={tmp_path / 'again'}",
        f"report: python -m moco_tf.report --workdir={tmp_path / 'again'} (report.html there)",
    ]
    here, there = (set((folder / "flags.cfg").read_text().splitlines()) for folder in (run, tmp_path / "again"))
    assert here ^ there == {f"--workdir={run}", f"--workdir={tmp_path / 'again'}"}
    assert losses(tmp_path / "again") == pytest.approx(losses(run), rel=1e-3)


@pytest.mark.parametrize("place", ["", "checkpoints/step-00000006"])
def test_knn_of_what_is_loaded(place, run, photos, tmp_path, capsys):
    call("knn", load=run / place, dataset="folder", data_dir=photos, k=5, batch_size=16, workdir=tmp_path / "knn")
    result = json.loads((tmp_path / "knn" / "result.json").read_text())
    assert result["subject"] == str(run / "checkpoints/step-00000006")
    assert 0 <= result["top1"] <= result["top5"] == 1  # of three classes, one is among any five
    assert f"top-1 {result['top1']:.2%}" in capsys.readouterr().out


@pytest.mark.parametrize("cached", [True, False])
def test_lincls(cached, run, photos, tmp_path):
    small = {"dataset": "folder", "data_dir": photos, "batch_size": 16, "steps": 4, "log_every": 2}
    call("lincls", "debug/lincls.cfg", load=run, workdir=tmp_path, cache_features=cached, standardise=cached, **small)
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0 <= result["top1"] <= result["top5"] == 1
    assert result["steps"] == 4
    assert list(losses(tmp_path)) == [2, 4]
    assert (tmp_path / "flags.cfg").exists()


def test_baselines_and_table(run, photos, tmp_path, capsys):
    """Results without --workdir go into the run folder, where the table finds them."""
    copy = shutil.copytree(run, tmp_path / "run")
    data = {"dataset": "folder", "data_dir": photos, "batch_size": 16}
    call("knn", load=copy, k=5, **data)
    call("knn", load=copy, k=5, baseline="untrained", **data)
    probe = {"cache_features": True, "image_size": 24, "steps": 4}
    call("lincls", "debug/lincls.cfg", load=copy, baseline="raw_pixels", **data, **probe)
    capsys.readouterr()
    call("table", workdir=copy)
    table = capsys.readouterr().out
    title, _, *lines = table.splitlines()
    assert title == f"on folder ({photos}), 24 test images:"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0] == ["features", "kNN top-1", "linear top-1"]
    filled = {row[0]: [cell != "-" for cell in row[1:]] for row in rows[2:]}
    assert filled == {"pre-trained": [True, False], "untrained encoder": [True, False], "raw pixels": [False, True]}
    raw = json.loads((copy / "lincls_raw_pixels" / "result.json").read_text())
    assert rows[4][2] == f"{100 * raw['top1']:.2f}"


def test_unreadable_images_are_skipped_and_listed(photos, tmp_path):
    data = tmp_path / "data"
    for number, path in enumerate(sorted((photos / "train").rglob("*.png"))[:40]):
        (data / "train" / "all").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, data / "train" / "all" / f"{number:02}.png")
    bad = [data / "train" / "all" / f"{number:02}.png" for number in (3, 17, 31)]
    for path in bad:
        path.write_bytes(b"no image")
    tiny = {**TINY, "batch_size": 20, "steps": 2, "epochs": 1, "knn_every": 0}
    values = {"dataset": "folder", "data_dir": data, "workdir": tmp_path / "run", "jit_compile": "false"}
    call("pretrain", "debug/pretrain.cfg", **{**values, **tiny})
    listed = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in listed) == [str(path) for path in bad]
    assert list(losses(tmp_path / "run")) == [2]


def test_killed_run_resumes_bit_for_bit(debug, tmp_path):
    """A run killed with SIGKILL and started again ends as one that was left alone."""
    more = {"steps": 20, "epochs": 4, "checkpoint_steps": 4, "checkpoint_every": 0, "knn_every": 0, "keep": 2}
    values = {**debug, **more, "log_every": 1, "precision": "float32", "threads": 1, "jit_compile": "false"}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    broken_off = start("pretrain", "debug/pretrain.cfg", workdir=killed, **values)
    while broken_off.poll() is None and not (killed / "checkpoints/step-00000008").exists():
        time.sleep(0.01)
    broken_off.send_signal(signal.SIGKILL)
    broken_off.communicate()
    assert broken_off.returncode == -signal.SIGKILL, "the run was over before it was killed"
    whole = start("pretrain", "debug/pretrain.cfg", workdir=straight, **values)
    resumed = start("pretrain", "debug/pretrain.cfg", workdir=killed, **values)
    out, error = resumed.communicate()
    whole.communicate()
    assert resumed.returncode == whole.returncode == 0, error
    assert "resuming from " in out and "done: 20 steps" in out
    assert [line["step"] for line in metrics(killed)] == list(range(1, 21))
    assert losses(killed) == losses(straight)
    states = [tf.train.load_checkpoint(str(r / "checkpoints/step-00000020/variables")) for r in (killed, straight)]
    for name in states[0].get_variable_to_shape_map():
        values = [state.get_tensor(name) for state in states]
        assert name.startswith("_CHECKPOINTABLE") or np.array_equal(*values), name


def test_finished_run_with_fewer_steps_stops_at_once(run, debug, tmp_path, capsys):
    """A run folder that is further than --steps trains no more."""
    copy = shutil.copytree(run, tmp_path / "run")
    fewer = {**debug, "steps": 3, "jit_compile": "false"}
    call("pretrain", "debug/pretrain.cfg", workdir=copy, **fewer)
    out = capsys.readouterr().out
    assert f"the run in {copy} has 6 steps already, more than the 3 asked for" in out and "done: 6 steps" in out
    assert metrics(copy) == metrics(run)
    assert steps_kept(copy) == [5, 6]
    assert (copy / "flags.cfg").read_text() == (run / "flags.cfg").read_text()


def test_model_fit_with_callbacks():
    """A method is a Keras model: compile, fit, callbacks."""
    encoders = [Encoder("resnet10", stem="cifar", width=4, feature_dim=8) for _ in range(2)]
    method = MoCo(*encoders, queue_size=32)
    method.compile(optimizers.SGD(0.01))
    images = np.random.default_rng(0).random((24, 16, 16, 3), np.float32)
    data = tf.data.Dataset.from_tensor_slices(images).repeat().batch(8, drop_remainder=True)
    seen = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["loss"]))
    slower = keras.callbacks.LearningRateScheduler(lambda epoch: 0.005)
    history = method.fit(data, steps_per_epoch=3, epochs=2, verbose=0, callbacks=[note, slower])
    assert len(seen) == 6 and np.isfinite(seen).all()
    assert np.isfinite(history.history["loss"]).all() and len(history.history["loss"]) == 2
    assert int(method.steps_done) == 6
    assert float(method.optimizer.learning_rate) == pytest.approx(0.005)
