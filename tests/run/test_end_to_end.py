"""The debug recipe of every method on Fashion-MNIST, from pre-training to export, on 1 and 2 ranks.

Losses and norms of all state are compared with those of tests/golden: see golden_losses.py, and how to renew them.
"""

import json

import numpy as np
import pytest
import tensorflow as tf
from support import end_to_end, golden_losses, method_cases, ranks
from support.marks import needs_fashion_mnist
from support.programs import call, metrics, steps_kept

from moco_tf.config import find
from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.formats import pth as torch_file
from moco_tf.formats.load import load
from moco_tf.formats.torchvision import get_weights


@pytest.fixture
def update(request):
    return request.config.getoption("--update-golden")


def check_golden(run, case, ranks, update):
    flags = " ".join(f"--{name}={value}" for name, value in end_to_end.flags(case).items())
    golden_losses.check(run, case, ranks, f"flags/debug/pretrain.cfg {flags}", update)


def check_run(run, case):
    """A run folder of `end_to_end.run`: all ten steps, healthy metrics, both checkpoints, a probe."""
    lines = [line for line in metrics(run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 11))
    name = end_to_end.CASES[case]["method"]
    kind = find.find("method", name)
    expected = {"train_top1", "train_top5"} if kind.classifies else {"contrast_top1", "contrast_top5", "feature_std"}
    expected |= {"queue_random"} if "queue_size" in method_cases.takes(name) else set()
    expected |= {"bank_random"} if name == "npid" else set()
    assert all(line.pop("model_flop_utilisation") is None for line in lines)  # of a CPU no peak is known
    assert all(expected <= line.keys() and np.isfinite(list(line.values())).all() for line in lines)
    assert steps_kept(run) == [5, 10]
    assert (run / "lincls").exists() == (case in end_to_end.PROBED)
    if case not in end_to_end.PROBED:
        return
    result = json.loads((run / "lincls" / "result.json").read_text())
    assert 0 < result["top1"] < result["top5"] <= 1 and result["steps"] == 4
    assert result["parameters"] > 70_000 and result["multiply_adds"] > 3e6


# These take half a minute each and would show little more: the losses are suploss', and the symmetric step is moco's.
LATER = ("supcon_in", "supcon_out", "moco_symmetric")


def cases(names):
    return [pytest.param(name, marks=[pytest.mark.system] * (name in LATER)) for name in names]


@needs_fashion_mnist
@pytest.mark.parametrize("name", cases(method_cases.METHODS))
def test_end_to_end(name, tmp_path, update):
    """Pre-train, checkpoint, resume, export in one process; the export is that checkpoint's encoder."""
    run = tmp_path / "run"
    end_to_end.run(name, run)
    check_run(run, name)
    check_golden(run, name, 1, update)
    if name not in end_to_end.PROBED:
        return
    call("export", load=run, output=tmp_path / "encoder", dataset="fashion_mnist")
    call("show", load=run)
    encoder = load(str(run)).encoder
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    exported = tf.saved_model.load(str(tmp_path / "encoder"))
    (mean, std), x = NORMALISATIONS["fashion_mnist"], images / np.float32(255)
    expected = encoder.features(tf.constant((x - np.float32(mean)) / np.float32(std))).numpy()
    np.testing.assert_allclose(exported.embed(images), expected, atol=1e-5 * np.abs(expected).max())


@needs_fashion_mnist
def test_symmetric(tmp_path, update):
    """What of --symmetric is not plain moco's: the losses and the state."""
    end_to_end.run("moco_symmetric", tmp_path / "run")
    check_run(tmp_path / "run", "moco_symmetric")
    check_golden(tmp_path / "run", "moco_symmetric", 1, update)


@pytest.fixture(scope="module")
def runs_of_two_ranks(request, tmp_path_factory):
    """Folder with a run folder of every case that is tested, from one launch of two ranks."""
    out = tmp_path_factory.mktemp("runs")
    chosen = [
        item.callspec.params["case"] for item in request.session.items if "runs_of_two_ranks" in item.fixturenames
    ]
    done = ranks.horovodrun(2, ranks.TESTS / "workers" / "programs.py", out, *chosen)
    assert all(done.stdout.count(f"finished {case}\n") == 2 for case in chosen)
    return out


@pytest.mark.horovod
@needs_fashion_mnist
@pytest.mark.parametrize("case", cases(end_to_end.CASES))
def test_end_to_end_on_two_ranks(case, runs_of_two_ranks, tmp_path, update):
    run = runs_of_two_ranks / case
    check_run(run, case)
    check_golden(run, case, 2, update)
    if case not in end_to_end.PROBED:
        return
    call("export", load=run, output=tmp_path / "encoder.pth", format="pth", dataset="fashion_mnist")
    written, encoder = torch_file.read(str(tmp_path / "encoder.pth")), load(str(run)).encoder
    weights = get_weights(encoder)
    assert written.keys() == weights.keys()
    assert all(np.array_equal(written[key], weights[key]) for key in weights)
