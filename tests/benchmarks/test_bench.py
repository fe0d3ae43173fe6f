"""moco_tf.bench on the debug recipe: all figures, bytes counted by hand, two ranks, PyTorch beside it."""

import json
import os
import re
import subprocess
import sys

import compare
import convolutions
import details
import numpy as np
import pil_views
import pytest
import views as view_rates
from PIL import Image
from support import ranks
from support.programs import arguments, call, make_photos, parse

from moco_tf import bench
from moco_tf.config import find
from moco_tf.data.views import recipes as views
from moco_tf.data.views.ops import call as call_piece
from moco_tf.errors import UserError
from moco_tf.methods.base import forward_passes
from moco_tf.run import measure, prepare
from moco_tf.run.measure import sent
from moco_tf.training import device
from moco_tf.training.collectives import SingleProcess

TORCH_PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)  # another Python may be the one with PyTorch
SHORT = {"bench_steps": 2, "repeats": 2, "warmup_steps": 1, "batch_size": 16, "queue_size": 64}
TINY = {**SHORT, "image_size": 24, "precision": "float32", "jit_compile": "false"}
METRICS = 7  # loss, contrast_top1, contrast_top5, feature_std, queue_random, and two wishes to stop


def parameters_of_debug_recipe(width=8):
    """ResNet-10 with the CIFAR stem, MLP head to 32: kernels, scale and offset of each norm, the head."""
    kernels, normed = 9 * (3 * width + 2 * width * width), 3 * width
    for channels in (2 * width, 4 * width, 8 * width):
        kernels += 9 * (channels // 2 * channels + channels * channels) + channels // 2 * channels
        normed += 3 * channels
    features = 8 * width
    return kernels + 2 * normed + (features * features + features) + (features * 32 + 32)


def bytes_by_hand(batch):
    """Of uint8 crops of 24 px, float32 keys of 32 dimensions, float32 gradients and metrics."""
    return {
        "alltoall": batch * 24 * 24 * 3,
        "allgather": batch * 32 * 4,
        "allreduce": (parameters_of_debug_recipe() + METRICS) * 4,
    }


def check_positive(figures, zero=()):
    """Every number below a name that is not in `zero` is positive; None, words and flags are passed over."""
    for name, value in figures.items() if isinstance(figures, dict) else enumerate(figures):
        if isinstance(value, dict | list):
            check_positive(value, zero)
        elif isinstance(value, int | float) and not isinstance(value, bool) and name not in zero:
            assert value > 0, name


@pytest.fixture
def bare_python(tmp_path):
    """A Python that sees no installed package."""
    python = tmp_path / "bare_python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


def test_all_figures(folder, bare_python, tmp_path, capsys):
    """A data set of many sizes, cropped by the pipeline; without PyTorch, which one line says."""
    path, rival = tmp_path / "figures.json", {"compare": "torch", "torch_python": bare_python}
    call("bench", "debug/pretrain.cfg", dataset="folder", data_dir=folder, json=path, **rival, **TINY)
    figures = json.loads(path.read_text())
    assert str(tmp_path) not in path.read_text()
    measured = {"step", "input", "both", "peak_memory_bytes", "collectives", "torch"}
    assert figures.keys() == measured | {"recipe", "bench", "flags", "machine", "versions"}
    assert figures["torch"] is None
    assert figures["step"].keys() == {"views", "prepared"}
    check_positive(figures, zero=["sent_bytes", "horovod", "data_on_device"])
    for rates in (*figures["step"].values(), figures["input"], figures["both"]):
        for part in ("ms", "images_per_second"):
            assert rates[part]["min"] <= rates[part]["median"] <= rates[part]["max"]
        assert rates["images_per_second"]["max"] == pytest.approx(16 / (rates["ms"]["min"] / 1000))
    assert 0 < figures["both"]["input_wait"]["max"] < 1
    given = {name: row["bytes"] for name, row in figures["collectives"].items()}
    assert given == bytes_by_hand(16)
    assert [row["sent_bytes"] for row in figures["collectives"].values()] == [0, 0, 0]
    out = capsys.readouterr().out
    check_table(out, rows=4)
    assert out.count("no comparison: ") == 1 and "No module named 'torch'" in out


def check_table(out, rows):
    lines = [line for line in out.splitlines() if line.startswith("| ") and line.count("|") == 4]
    assert len(lines) == 1 + rows
    for wanted in ("images/s", "peak memory: ", "alltoall: 1 a step"):
        assert out.count(wanted) == 1


@pytest.mark.horovod
def test_two_ranks(tmp_path):
    """One rank writes; bytes of a rank are half, and some leave it."""
    path = tmp_path / "figures.json"
    flags = arguments("debug/pretrain.cfg", dataset="photos", fake="true", json=path, **TINY)
    out = ranks.horovodrun(2, "-m", "moco_tf.bench", *flags).stdout
    check_table(re.sub(r"^\[.*?\]<stdout>:", "", out, flags=re.MULTILINE), rows=2)
    figures = json.loads(path.read_text())
    assert figures["input"] is figures["both"] is None
    assert figures["recipe"]["horovod"] and figures["recipe"]["ranks"] == 2
    check_positive(figures, zero=["data_on_device"])
    given = {name: row["bytes"] for name, row in figures["collectives"].items()}
    assert given == bytes_by_hand(8)
    half, same = figures["collectives"]["alltoall"]["sent_bytes"], figures["collectives"]["allreduce"]["sent_bytes"]
    assert (half, same) == (given["alltoall"] // 2, given["allreduce"])
    assert figures["versions"].keys() >= {"tensorflow", "keras", "horovod"}


@pytest.mark.parametrize("more", [{}, {"precision": "bfloat16", "bn_splits": 2, "head": "mlp_bn", "stem": "imagenet"}])
def test_beside_pytorch(more, tmp_path, capsys):
    """Width 16: with 8 channels PyTorch 2.13's channels_last convolutions crash on some CPUs."""
    if subprocess.run([TORCH_PYTHON, "-c", "import torch"], capture_output=True).returncode:
        pytest.skip(f"{TORCH_PYTHON} has no PyTorch; name one that has in TORCH_PYTHON")
    path, rival = tmp_path / "figures.json", {"compare": "torch", "torch_python": TORCH_PYTHON}
    call("bench", "debug/pretrain.cfg", fake="true", json=path, width=16, **rival, **{**TINY, **more})
    figures = json.loads(path.read_text())
    torch = figures["torch"]
    check_positive(torch)
    if not more:
        assert torch["parameters"] == parameters_of_debug_recipe(width=16)
    speed = torch["ms"]["median"] / figures["step"]["prepared"]["ms"]["median"]
    assert torch["speed_ratio"]["median"] == pytest.approx(speed)
    speed = torch["with_views"]["ms"]["median"] / figures["step"]["views"]["ms"]["median"]
    assert torch["with_views"]["speed_ratio"]["median"] == pytest.approx(speed)
    assert torch["speed_ratio"]["min"] <= torch["speed_ratio"]["max"]
    out = capsys.readouterr().out
    assert out.count(" times as fast as PyTorch ") == out.count("\nwith views: ") == 1
    check_table(out, rows=4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"compare": "torch", "method": "simclr"}, "--method=simclr, expected moco"),
        ({"compare": "torch", "symmetric": "true"}, "--symmetric=True, expected False"),
        ({"compare": "torch", "torch_python": "/nowhere/python"}, "--torch_python=/nowhere/python is no program"),
        ({"init": "/some/run"}, "--init=/some/run came, expected none"),
        ({"json": "/nowhere/figures.json"}, "--json=/nowhere/figures.json is in a folder that is not there"),
        ({"batch_size": 512, "queue_size": 64}, "expected at most --queue_size=64"),
    ],
)
def test_refused_before_anything_runs(values, message):
    with pytest.raises(UserError, match=message):
        call("bench", "debug/pretrain.cfg", fake="true", **values)


def test_compare_needs_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "moco_tf" / "bench.py"))
    with pytest.raises(UserError, match="--compare=torch came, expected a clone of the project"):
        call("bench", "debug/pretrain.cfg", fake="true", compare="torch")


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_step_is_that_of_pretrain(policy, precision, folder):
    """Its guard too: it looks at every gradient on a CPU, and with --nan_policy=skip, unless the loss is scaled."""
    values = {"dataset": "folder", "data_dir": folder, "nan_policy": policy, "precision": precision, "knn_every": 0}
    flags = arguments("debug/pretrain.cfg", batch_size=16, image_size=24, **values)
    theirs = prepare.pretraining(parse("pretrain", *flags), SingleProcess()).method
    ours = measure.Bench(parse("bench", *flags), SingleProcess()).method
    assert ours.guard.every_gradient is theirs.guard.every_gradient is (precision == "float32")


def test_several_steps_a_call_on_images_that_the_device_holds():
    """Seven steps are calls of 3, 3 and 1; prepared images go through the same loop."""
    values = {**TINY, "dataset": "mnist", "fake": "true", "steps_per_call": 3, "data_on_device": "true"}
    found = measure.Bench(parse("bench", *arguments("debug/pretrain.cfg", **values)), SingleProcess())
    assert found.data["views"][0].dtype == "int64" and found.recipe()["steps_per_call"] == 3
    sizes = []
    several, found._several = found._several, lambda group, rates: sizes.append(len(group)) or several(group, rates)
    for kind in ("views", "prepared"):
        found.start(kind, steps=7)
    assert sizes == [3, 3, 1] * 2 and int(found.method.steps_done) == 14
    assert found.turn("views") > 0 and found.with_input(trains=True)["images_per_second"]["min"] > 0


@pytest.mark.parametrize("more", [{}, {"bn": "sync", "compression": "float16"}])
def test_details(more, tmp_path, capsys):
    """Start-up, Python around the step, operations a second; the exchanges' bytes as counted by hand."""
    values = {"dataset": "photos", "fake": "true", "json": tmp_path / "json", **TINY, **more}
    details.main(parse("bench", *arguments("debug/pretrain.cfg", **values)))
    figures = json.loads((tmp_path / "json").read_text())
    check_positive(figures, zero=["sent_bytes"])
    assert figures.keys() == {"start_up_seconds", "python_overhead_ms", "multiply_adds", "step", "exchanges"}
    flops = 2 * figures["multiply_adds"] / figures["step"]["views"]["ms"]["median"] * 1000
    assert figures["step"]["views"]["flops_per_second"] == pytest.approx(flops)
    given = {name: row["bytes"] for name, row in figures["exchanges"].items()}
    images, gradients = bytes_by_hand(16)["alltoall"], parameters_of_debug_recipe() * 4
    shuffles = {"alltoall": images, "allgather": images}
    assert given == ({"gradients": gradients // 2} if more else {"gradients": gradients, **shuffles})
    out = capsys.readouterr().out
    for wanted in ("Python around the step: ", "end of its first step: ", "gradients, by itself: ", "TFLOP/s"):
        assert wanted in out


def test_bench_counts_what_compression_and_bn_send(tmp_path):
    """Gradients in half the bytes and metrics as they are; no image is sent without a shuffle."""
    figures = {}
    values = {"fake": "true", "dataset": "cifar10", "views": "none", "batch_size": 8, "queue_size": 64, "epochs": 1}
    values |= {"bench_steps": 1, "repeats": 1, "warmup_steps": 1, "precision": "float32", "jit_compile": "false"}
    for name, more in {"plain": {}, "small": {"compression": "float16", "bn": "sync"}}.items():
        call("bench", "debug/pretrain.cfg", json=tmp_path / name, **values, **more)
        figures[name] = json.loads((tmp_path / name).read_text())
    plain, small = (figures[name]["collectives"] for name in ("plain", "small"))
    assert plain["alltoall"] == {"calls": 1, "bytes": 8 * 32 * 32 * 3, "sent_bytes": 0} and "alltoall" not in small
    metrics = (5 + 2) * 4  # two of them are wishes to stop
    assert small["allreduce"]["bytes"] - metrics == (plain["allreduce"]["bytes"] - metrics) / 2
    assert small["allreduce"]["calls"] == plain["allreduce"]["calls"] + 1 == 2
    assert small["allgather"] == plain["allgather"]


def test_bytes_sent_by_a_ring():
    """Of 4 ranks, each with 300 bytes."""
    assert [sent(name, 300, 4) for name in ("alltoall", "allgather", "allreduce")] == [225, 900, 450]


@pytest.mark.parametrize(
    ("method", "passes"), [("moco", 4), ("supcon_in", 4), ("simclr", 6), ("npid", 3), ("supervised", 3), ("moco_v3", 8)]
)
def test_forward_passes(method, passes):
    kind = find.find("method", method)
    stub = type("Stub", (), {name: getattr(kind, name) for name in ("num_views", "symmetric") if hasattr(kind, name)})()
    if "key_encoder" in kind.given():
        stub.key_encoder = None
    assert forward_passes(stub) == passes
    stub.symmetric = True
    assert forward_passes(stub) == (8 if passes == 4 else passes)


@pytest.mark.parametrize("name", ["cifar", "cifar_mild", "crop_flip", "moco_v1", "moco_v2", "none", "simclr_cifar"])
def test_pil_makes_the_same_views(name):
    """Those whose operations come in PyTorch's order; their probabilities and ranges are ours."""
    given = compare.pil_view(views.view(name, 16), 16)
    if name in ("none", "moco_v1"):
        assert given is None
        return
    made = pil_views.View(**given)(Image.fromarray(view_rates.photos(1, 40, 30)[0]))
    assert made.shape == (3, 16, 16) and made.dtype == np.float32 and 0 <= made.min() < made.max() <= 1
    assert given.get("jitter_p", 0) == (0.8 if name != "crop_flip" else 0)
    assert given.get("blur_p", 0) == (0.5 if name == "moco_v2" else 0)


def test_pil_views_hold_to_their_draws(monkeypatch):
    """Without crop, jitter and blur a view is the image or its mirror, grey or not; the boxes lie inside."""
    boxes = [pil_views.crop_box(50, 40, (0.08, 1.0)) for _ in range(200)]
    image = view_rates.photos(1, 12, 12)[0]
    view = pil_views.View(12, (1.0, 1.0), gray_p=0.5)
    monkeypatch.setattr(pil_views, "crop_box", lambda width, height, scale: (0, 0, width, height))
    made = [view(Image.fromarray(image)).transpose(1, 2, 0) * 255 for _ in range(40)]
    coloured = [x for x in made if np.ptp(x, axis=2).max() > 0.5]
    assert 5 < len(coloured) < 35
    straight = [np.allclose(x, image, atol=1e-3) for x in coloured]
    assert 0 < sum(straight) < len(straight)
    assert all(np.allclose(x[:, ::-1], image, atol=1e-3) for x, same in zip(coloured, straight) if not same)
    for left, top, width, height in boxes:
        assert 0 <= left <= 50 - width and 0 <= top <= 40 - height and 0.05 <= width * height / 2000 <= 1


def test_views_benchmark(tmp_path, monkeypatch):
    """Both tables, as quickly as they can be made: nothing is compiled."""
    monkeypatch.setattr(views, "Compiled", lambda: call_piece)
    text = view_rates.report(seconds=0.0, rounds=1, batches={32: 4, 224: 1}, folder=str(tmp_path))
    rows = [line for line in text.splitlines() if line.startswith(("| 32", "| 224", "| 500"))]
    assert [row.count("|") for row in rows] == [7] * 4 + [4] * 2
    assert "one core" in text and "--fast_views against exact" in text


def test_convolutions_benchmark():
    rows = convolutions.report([(2, 4, 3, 5, 3, 1), (2, 2, 3, 5, 1, 2)], turns=1).splitlines()[4:]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| 2, {shape}", dtype]
        for shape in ("4x4, 3 to 5, 3x3", "2x2, 3 to 5, 1x1, stride 2")
        for dtype in ("bfloat16", "float32")
    ]


def test_peaks_by_name():
    assert device.peak_flops("NVIDIA A100-SXM4-40GB", "bfloat16") == 312e12
    assert device.peak_flops("NVIDIA H100 80GB HBM3", "float32") == 494.7e12
    assert device.peak_flops("Tesla V100-SXM2-16GB", "float32") == 15.7e12
    assert device.peak_flops("Tesla T4", "float16") == 65e12
    for name, dtype in [("NVIDIA A10G", "float32"), ("", "bfloat16"), ("Tesla T4", "bfloat16")]:
        assert device.peak_flops(name, dtype) is None
