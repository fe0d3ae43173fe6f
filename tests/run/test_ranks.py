"""The real programs on several ranks: the losses of one process with as many splits, output once, evaluation."""

import json

import pytest
from support.marks import needs_fashion_mnist
from support.programs import call, losses, make_photos, metrics
from support.ranks import launch

SMALL = {
    **{"views": "moco_v2", "precision": "float32", "batch_size": 32, "queue_size": 128},
    **{"epochs": 5, "log_every": 1},
    # Small: rounding moves activations across zero, and from there float32 runs part, the faster the larger the steps.
    **{"steps": 10, "learning_rate": 3e-4},
}


@pytest.fixture(scope="module")
def data(request, tmp_path_factory):
    """Flags of the data set that the parameter names."""
    if request.param == "folder":
        photos = make_photos(tmp_path_factory.mktemp("photos"))
        monitor = {"monitor": "probe,rankme,lidar", "knn_every": 5}
        return {"dataset": "folder", "data_dir": photos, "image_size": 24, "jit_compile": "false", **monitor}
    return {"dataset": "fashion_mnist", "jit_compile": "false", "knn_every": 0}


@pytest.fixture(scope="module")
def of_two_ranks(data, tmp_path_factory):
    """(flags of the data, run folder, output) of pre-training on two ranks, each with two splits."""
    run = tmp_path_factory.mktemp("runs") / "two"
    return data, run, launch(2, "pretrain", "debug/pretrain.cfg", workdir=run, bn_splits=2, **SMALL, **data)


fashion_mnist = pytest.param("fashion_mnist", marks=needs_fashion_mnist)
each_data = pytest.mark.parametrize("data", ["folder", fashion_mnist], indirect=True)


@pytest.mark.horovod
@each_data
def test_two_ranks_are_one_process_with_as_many_splits(of_two_ranks, tmp_path, monkeypatch):
    """Same order, views, shuffles, statistics and gradients: the same losses, each line written once."""
    data, run, out = of_two_ranks
    assert out.count("done:") == out.count("the loss rises to about") == 1
    call("pretrain", "debug/pretrain.cfg", workdir=tmp_path / "one", bn_splits=4, **SMALL, **data)
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, 11))
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    top5 = [[line["contrast_top5"] for line in metrics(folder) if "loss" in line] for folder in (run, tmp_path / "one")]
    assert top5[0] == pytest.approx(top5[1], abs=1.01 / 32)  # an image on the border may fall on either side
    if "monitor" in data:
        check_monitor(*(metrics(folder) for folder in (run, tmp_path / "one")))


def check_monitor(lines, expected):
    """The probe learns from the images of all ranks; what is measured on the way is the same, but for rounding."""
    for mine, its in zip(lines, expected, strict=True):
        assert mine.keys() == its.keys()
        assert mine.get("probe_loss", 0) == pytest.approx(its.get("probe_loss", 0), rel=1e-3)
    assert mine["probe_top1"] == pytest.approx(its["probe_top1"], abs=1.01 / 24)
    assert [mine[name] for name in ("rankme", "lidar")] == pytest.approx([its["rankme"], its["lidar"]], rel=1e-2)


@pytest.mark.horovod
@pytest.mark.system
@pytest.mark.parametrize("data", [fashion_mnist], indirect=True)
def test_four_ranks_are_two_with_two_splits(of_two_ranks, tmp_path):
    data, run, _ = of_two_ranks
    launch(4, "pretrain", "debug/pretrain.cfg", workdir=tmp_path / "four", **SMALL, **data)
    assert losses(tmp_path / "four") == pytest.approx(losses(run), rel=1e-4)


@pytest.mark.horovod
@pytest.mark.parametrize("data", [fashion_mnist], indirect=True)
def test_probe_on_two_ranks(of_two_ranks, tmp_path):
    """Pre-training and linear probe on a real data set."""
    data, run, _ = of_two_ranks
    data = {name: value for name, value in data.items() if name != "knn_every"}
    out = launch(2, "lincls", "debug/lincls.cfg", load=run, workdir=tmp_path / "out", **data)
    assert out.count("written to ") == 1
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert 0.15 < result["top1"] < result["top5"] < 1  # chance is 0.1
    assert result["steps"] == 20
