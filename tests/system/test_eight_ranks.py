"""The debug recipe and the bare commands on eight ranks; tests/run/test_ranks.py compares runs of one, two and four."""

import json

import numpy as np
import pytest
from support.marks import needs_fashion_mnist
from support.programs import losses, metrics
from support.ranks import horovodrun, launch
from support.tfds_sets import examples, image_and_label, prepare


@pytest.mark.system
@pytest.mark.horovod
@needs_fashion_mnist
def test_debug_recipe_on_eight_ranks(tmp_path):
    out = launch(8, "pretrain", "debug/pretrain.cfg", workdir=tmp_path, steps=10, timeout=900)
    assert out.count("done: 10 steps") == 1
    assert sorted(losses(tmp_path)) == [5, 10]
    assert 0.1 < metrics(tmp_path)[-1]["knn_top1"] <= 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


@pytest.mark.system
@pytest.mark.horovod
def test_bare_commands_on_eight_ranks(tmp_path, monkeypatch):
    """As they stand: on a Fashion-MNIST of 256 and 64 images, two steps an epoch."""
    splits = {"train": examples(256, (28, 28, 1)), "test": examples(64, (28, 28, 1))}
    prepare(tmp_path / "data", "fashion_mnist", image_and_label((28, 28, 1)), version="3.0.1", **splits)
    monkeypatch.chdir(tmp_path)
    out = {}
    for command in (["pretrain"], ["lincls", "--load"], ["export", "--load"]):
        program, *words = command
        place = {"TFDS_DATA_DIR": str(tmp_path / "data")}
        done = horovodrun(8, "-m", f"moco_tf.{program}", *words, timeout=1800, env=place)
        out[program] = done.stdout + done.stderr
    run = tmp_path / "runs" / "fashion_mnist_moco"
    assert out["pretrain"].count("taking --flagfile=fashion_mnist_moco") == 1
    assert out["pretrain"].count("done: 30 steps") == 1 and "batch 128 = 8 ranks x 16" in out["pretrain"]
    assert list(losses(run)) == [30] and np.isfinite(losses(run)[30])
    for name in ("lincls", "export"):
        assert f"--load={run}" in out[name] and out[name].count(", the newest run in runs/") == 1
    result = json.loads((run / "lincls" / "result.json").read_text())
    assert 0 <= result["top1"] <= 1 and (run / "encoder" / "saved_model.pb").is_file()
