"""A small ViT's run folder in every program: knn, both probes, report with attention, table, show."""

import json

import numpy as np
import pytest
from support.programs import call

from moco_tf.networks.encoder import Encoder
from moco_tf.reporting import attention
from moco_tf.reporting.examined import Attended
from moco_tf.training import checkpoint, device

VIT = {"arch": "vit_tiny", "width": 24, "depth": 1, "heads": 3, "patch": 4}


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run folder with one checkpoint of an encoder that has learnt nothing."""
    workdir = tmp_path_factory.mktemp("vit") / "run"
    encoder = Encoder(**VIT, head="mlp", feature_dim=8)
    state = {"query_encoder": {name: v.value for name, v in encoder.named_variables().items()}}
    about = {"encoder": dict(encoder.config), "image_size": 16, "mean": [0.4] * 3, "std": [0.2] * 3}
    checkpoint.save(workdir / "checkpoints", 4, state, about | {"method": "moco", "dataset": "folder"}, keep=1)
    flags = {**VIT, "image_size": 16, "dataset": "folder", "data_dir": photos, "method": "moco", "views": "cifar"}
    (workdir / "flags.cfg").write_text("".join(f"--{name}={value}\n" for name, value in flags.items()))
    (workdir / "metrics.jsonl").write_text('{"step": 4, "loss": 2.0}\n')
    return workdir


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """TensorFlow of this process has chosen its threads already."""
    monkeypatch.setattr(device, "configure", lambda *_: None)


def test_evaluations(run, tmp_path, capsys):
    for feature in ("backbone", "patches"):
        call("knn", load=run, k=5, batch_size=16, feature=feature)
        call("embed", load=run, split="test", feature=feature, output=tmp_path / f"{feature}.npy")
    call("embed", load=run, split="test", feature="dense", output=tmp_path / "dense.npy")
    call("lincls", load=run, epochs=1, batch_size=16, learning_rate=0.1, jit_compile="false")
    results = [json.loads((run / name / "result.json").read_text()) for name in ("knn", "knn-2", "lincls")]
    assert all(0 <= result["top1"] <= 1 for result in results) and results[1]["feature"] == "patches"
    dense, patches = (np.load(tmp_path / f"{name}.npy") for name in ("dense", "patches"))
    assert dense.shape == (24, 4, 4, 24)
    np.testing.assert_allclose(dense.mean(axis=(1, 2)), patches, atol=1e-5)
    call("table", workdir=run)
    call("show", load=run)
    said = capsys.readouterr().out
    assert "vit_tiny" in said and "patch" in said


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
