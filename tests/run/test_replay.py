"""A run that breaks: what it keeps, and that moco_tf.debug finds the value that was the first, in another process."""

import json

import numpy as np
import pytest
import tensorflow as tf
from support import planted
from support.programs import TINY, arguments, call, start
from support.ranks import TESTS, horovodrun

from moco_tf.data.order import epoch_order
from moco_tf.data.sets import folder
from moco_tf.errors import UserError
from moco_tf.methods.moco import MoCo
from moco_tf.networks.encoder import Encoder
from moco_tf.run import broken
from moco_tf.run.watch import Watch
from moco_tf.training import checkpoint, optimizers, runlog

SMALL = {**TINY, "width": 4, "knn_every": 0, "checkpoint_every": 0, "jit_compile": "false", "epochs": 4, "steps": 12}
WEIGHT = f"query_encoder/{planted.WEIGHT}"


def breaks(photos, run, words, **values):
    """Pre-trains until the run stops."""
    values = {**SMALL, "dataset": "folder", "data_dir": photos, "workdir": run, **values}
    with pytest.raises(UserError, match=words) as caught:
        call("pretrain", "debug/pretrain.cfg", **values)
    runlog.close_all()
    assert str(caught.value).endswith(f"; python -m moco_tf.debug --load={run} says which value was the first")


def replayed(run):
    call("debug", load=run)
    return json.loads((run / "broken" / "replay.json").read_text())


def first(found, step=0):
    """(number of the step, part of it, name, numbers that are not finite) of what was the first in a replay's step."""
    one = found["steps"][step]
    return one["number"], *(one["found"][0][name] for name in ("part", "name", "count"))


def test_planted_weight_in_another_process(photos, tmp_path, monkeypatch):
    """A weight set to inf at step 7, the first of a call of two; one command finds it, and that all else was sound."""
    planted.plant(monkeypatch, 7)
    run = tmp_path / "run"
    breaks(photos, run, "of step 7 is not finite", steps_per_call=2, checkpoint_steps=5)
    about = checkpoint.describe(run / "broken" / "step-00000007")
    assert (about["found"], about["left_out"], about["ranks"], about["broken_rank"]) == (8, 2, 1, 0)
    done = start("debug", load=run)
    out, error = done.communicate(timeout=300)
    assert done.returncode == 0, error
    assert f"the first is before the step {WEIGHT} (1 of 288 numbers)" in out
    assert "steps 6 to 7 are finite when they are computed again" in out
    found = json.loads((run / "broken" / "replay.json").read_text())
    assert first(found) == (7, "state", WEIGHT, 1) and found["steps"][0]["loss"] is None
    outputs = [each["name"] for each in found["steps"][0]["found"] if each["part"] == "output"]
    assert outputs[0] == f"key_encoder/{planted.WEIGHT.removesuffix('.weight')}"
    assert [(step["number"], step["found"]) for step in found["steps"][1:]] == [(6, []), (7, [])]
    check_batch(run, photos)


def check_batch(run, photos):
    """The images that are kept are those of the data set at the places of step 7, which is the second of epoch 1."""
    images, labels, indices = broken.read(run / "broken" / "batch.npz", 7)
    source = folder.load("train", str(photos))
    assert indices.tolist() == epoch_order(0, 1, 90)[16:32].tolist()
    assert labels.tolist() == source.labels[indices].tolist() and images[0].shape == (16, 24, 24, 3)
    with pytest.raises(UserError, match="expected the batch of step 8"):
        broken.read(run / "broken" / "batch.npz", 8)


def test_weights_that_an_update_breaks(photos, tmp_path):
    """Loss and gradients of step 1 are finite, its update is not: the replay comes there from the start of the run."""
    values = {"learning_rate": 1e20, "weight_decay": 1e30, "checkpoint_steps": 1}
    breaks(photos, tmp_path / "run", "^after step 1 query_encoder/", **values)
    found = replayed(tmp_path / "run")
    assert [first(found, i)[:3] for i in range(2)] == [(1, "update", "query_encoder/conv1.weight")] * 2
    assert found["steps"][1]["start"] == "the start of the run" and found["steps"][1]["loss"] > 0


def test_no_broken_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags, words in (
        ({}, "--load is missing"),
        ({"load": "runs/x"}, "is no folder"),
        ({"load": "."}, "no broken/"),
    ):
        with pytest.raises(UserError, match=words):
            call("debug", **flags)


def test_layer_whose_output_overflows():
    """The values of a step op by op, in the order of the computation: the layer's output, what follows, the loss."""
    encoders = [Encoder("resnet10", stem="cifar", width=2, feature_dim=4) for _ in range(2)]
    method = MoCo(*encoders, queue_size=16)
    method.compile(optimizers.SGD(0.1))
    watch = Watch(method, 8, 1)
    watch.step(tf.ones([8, 8, 8, 3]))
    assert watch.found == [] and watch.loss > 0
    for encoder in encoders:
        kernel = encoder.named_variables()["layer3.0.conv2.weight"]
        kernel.assign(tf.fill(kernel.shape, 3e38))
    watch.step(tf.random.stateless_uniform([8, 8, 8, 3], [0, 1]))
    assert watch.found[0].part == "output" and watch.found[0].name == "key_encoder/layer3.0.conv2"
    assert [each.name for each in watch.found if each.part == "metric"][0] == "loss" and watch.loss is None


def test_a_rank_whose_memory_fails(photos, tmp_path):
    """Rank 1's weight alone is infinite: its value is kept, and the rank is named."""
    run = tmp_path / "run"
    flags = arguments("debug/pretrain.cfg", **SMALL, dataset="folder", data_dir=photos, workdir=run)
    horovodrun(2, TESTS / "workers" / "planted.py", *flags)
    about = checkpoint.describe(run / "broken" / "step-00000002")
    assert (about["ranks"], about["broken_rank"]) == (2, 1)
    found = replayed(run)
    assert first(found) == (2, "state", WEIGHT, 1) and found["ranks"] == 2
    assert found["steps"][-1]["found"] == []


def test_ranks_of_rows():
    """Two ranks' batches of 3 in the order of the global batch; what the second one's last row holds."""
    rows = np.arange(12.0).reshape(6, 2)  # rank 0 has the first three
    assert broken._in_order(rows, 2)[:, 0].tolist() == [0, 6, 2, 8, 4, 10]
    watch = Watch(None, 6, 2)
    watch.see("output", "conv1", np.where(rows == 11, np.nan, rows))
    watch.see("output", "fc", np.full([6], np.inf))
    watch.see("output", "bn1", rows)
    assert [(f.name, f.count, f.size, f.ranks) for f in watch.found] == [("conv1", 1, 12, (1,)), ("fc", 6, 6, (0, 1))]
