"""The debug recipe of every method on Fashion-MNIST, from pre-training to export, on 1 and 2 ranks."""

import json

import numpy as np
import pytest
import tensorflow as tf
from support import end_to_end, method_cases, ranks
from support.marks import needs_fashion_mnist
from support.programs import call, metrics, steps_kept

from moco_tf.config import find
from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.formats import pth as torch_file
from moco_tf.formats.load import load
from moco_tf.formats.torchvision import get_weights

each_method = pytest.mark.parametrize("name", method_cases.METHODS)


def check_run(run, name, kept):
    """A run folder of `end_to_end.run`: all four steps, healthy metrics, the checkpoints of the calls, a probe."""
    lines = [line for line in metrics(run) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    kind = find.find("method", name)
    expected = {"train_top1", "train_top5"} if kind.classifies else {"contrast_top1", "contrast_top5", "feature_std"}
    expected |= {"queue_random"} if "queue_size" in method_cases.takes(name) else set()
    expected |= {"bank_random"} if name == "npid" else set()
    assert all(expected <= line.keys() and np.isfinite(list(line.values())).all() for line in lines)
    assert steps_kept(run) == kept
    assert (run / "lincls").exists() == (name in end_to_end.PROBED)
    if name not in end_to_end.PROBED:
        return
    result = json.loads((run / "lincls" / "result.json").read_text())
    assert 0 < result["top1"] < result["top5"] <= 1 and result["steps"] == 4
    assert result["parameters"] > 70_000 and result["multiply_adds"] > 3e6


@needs_fashion_mnist
@each_method
def test_end_to_end(name, tmp_path):
    """Pre-train, checkpoint, resume, export in one process; the export is that checkpoint's encoder."""
    run = tmp_path / "run"
    end_to_end.run(name, run)
    check_run(run, name, kept=[2, 4])
    call("export", load=run, output=tmp_path / "encoder", dataset="fashion_mnist")
    call("show", load=run)
    encoder = load(str(run)).encoder
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    exported = tf.saved_model.load(str(tmp_path / "encoder"))
    (mean, std), x = NORMALISATIONS["fashion_mnist"], images / np.float32(255)
    expected = encoder.features(tf.constant((x - np.float32(mean)) / np.float32(std))).numpy()
    np.testing.assert_allclose(exported.embed(images), expected, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def runs_of_two_ranks(tmp_path_factory):
    """Folder with a run folder of every method, from one launch of two ranks."""
    out = tmp_path_factory.mktemp("runs")
    done = ranks.horovodrun(2, ranks.TESTS / "workers" / "programs.py", out, *method_cases.METHODS)
    assert all(done.stdout.count(f"finished {name}\n") == 2 for name in method_cases.METHODS)
    return out


@pytest.mark.horovod
@needs_fashion_mnist
@each_method
def test_end_to_end_on_two_ranks(name, runs_of_two_ranks, tmp_path):
    run = runs_of_two_ranks / name
    check_run(run, name, kept=[2, 4] if name in end_to_end.STATEFUL else [4])
    call("export", load=run, output=tmp_path / "encoder.pth", format="pth", dataset="fashion_mnist")
    written, encoder = torch_file.read(str(tmp_path / "encoder.pth")), load(str(run)).encoder
    weights = get_weights(encoder)
    assert written.keys() == weights.keys()
    assert all(np.array_equal(written[key], weights[key]) for key in weights)
