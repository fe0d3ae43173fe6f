"""A small ViT's run folder in every program: knn, both probes, report with attention, table, show."""

import json

import numpy as np
import pytest
from support.programs import TINY, call, learnt

from moco_tf.reporting import attention
from moco_tf.reporting.examined import Attended
from moco_tf.training import device

VIT = {"arch": "vit_tiny", "width": 24, "depth": 1, "heads": 3, "patch": 4, "image_size": 16}


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run folder of four steps."""
    workdir = tmp_path_factory.mktemp("vit") / "run"
    values = {**TINY, **VIT, "dataset": "folder", "data_dir": photos, "steps": 4, "knn_every": 0}
    values |= {"method": "moco", "views": "cifar", "head": "mlp", "feature_dim": 8, "log_every": 1}
    values |= {"optimizer": "adamw", "learning_rate": 1e-3, "jit_compile": "false"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "configure", lambda *_: None)
        call("pretrain", workdir=workdir, **values)
    return workdir


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """TensorFlow of this process has chosen its threads already."""
    monkeypatch.setattr(device, "configure", lambda *_: None)


def test_evaluations(run, capsys):
    call("knn", load=run, k=5, batch_size=16)
    call("lincls", load=run, epochs=1, batch_size=16, learning_rate=0.1)
    for name in ("knn", "lincls"):
        assert 0 <= json.loads((run / name / "result.json").read_text())["top1"] <= 1
    call("table", workdir=run)
    call("show", load=run)
    said = capsys.readouterr().out
    assert "vit_tiny" in said and "patch" in said
    assert all(np.isfinite(line["loss"]) for line in learnt(run) if "loss" in line)


def test_report_shows_attention(run):
    call("report", workdir=run)
    page = (run / "report.html").read_text()
    assert 'href="#attention"' in page and page.count("<figcaption>head 3</figcaption>") == 8
    assert page.count("<figcaption>patch features</figcaption>") == 8


def test_pictures_of_attention():
    weights = np.zeros((2, 3, 4, 4), np.float32)
    weights[:, 1, 2, 3] = 1  # one head looks at one patch
    patches = np.random.default_rng(0).normal(size=(2, 4, 4, 5))
    patches[0, 0, 0], patches[1, 3, 3] = 100, 100  # two alike, far from the rest
    made = attention.section(Attended(np.zeros((2, 16, 16, 3), np.uint8), weights, patches), "test image")
    maps = dict(made["rows"][0]["maps"])
    assert list(maps) == ["mean of the heads", "patch features", "head 1", "head 2", "head 3"]
    assert maps["mean of the heads"] == maps["head 2"] != maps["head 1"] == maps["head 3"]
    colours = attention._colours(patches)
    assert colours.shape == (2, 4, 4, 3) and np.ptp(colours[..., 0]) == 255
    np.testing.assert_array_equal(colours[0, 0, 0], colours[1, 3, 3])
    assert attention.section(None, "test image") is None
