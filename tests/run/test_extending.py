"""The modules of docs/extending.md, outside the package: every program works with them, on one rank and on two."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from support.programs import ROOT, call, losses, steps_kept
from support.ranks import horovodrun

pytestmark = [pytest.mark.slow]

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"^## [^\n]*: mine/(\w+)\.py$.*?^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
FLAGS = {
    **{"method": "mine.simsiam", "arch": "mine.convnet", "views": "mine.grey", "dataset": "mine.birds"},
    **{"optimizer": "mine.signed", "learning_rate": 0.002, "feature_dim": 8, "predictor_dim": 4, "width": 4},
    **{"batch_size": 16, "steps": 8, "log_every": 1, "checkpoint_steps": 1, "k": 5, "precision": "float32"},
    **{"jit_compile": "false"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the package `mine` and data/: three classes of noise around three colours, 16 pixels."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").touch()
    for name, text in MODULES.items():
        (folder / "mine" / f"{name}.py").write_text(text)
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 24)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 120, (count, 16, 16, 3)) + 120 * np.eye(3, dtype=int)[labels][:, None, None]
        np.savez(folder / "data" / f"birds_{split}.npz", images=images.astype(np.uint8), labels=labels)
    return folder


def command(program, **values):
    return [sys.executable, "-m", f"moco_tf.{program}", *(f"--{name}={value}" for name, value in values.items())]


def environment(place):
    return {**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def trained(place):
    """A run of this process that nothing disturbed."""
    sys.path.insert(0, str(place))
    call("pretrain", data_dir=place / "data", workdir=place / "runs" / "mine", **FLAGS)
    yield place / "runs" / "mine"
    sys.path.remove(str(place))


def test_the_page_has_short_modules():
    assert set(MODULES) == {"simsiam", "convnet", "grey", "birds", "signed"}
    assert all(len(text.splitlines()) < 50 for text in MODULES.values())
    code = {name: [line for line in text.splitlines() if line.strip()] for name, text in MODULES.items()}
    assert all(len(lines) < 40 for lines in code.values()), {name: len(lines) for name, lines in code.items()}


def test_pretraining_moves_the_predictor_and_its_state_is_kept(trained):
    found = losses(trained)
    assert sorted(found) == list(range(1, 9)) and all(-1 <= loss <= 1 for loss in found.values())
    newest = trained / "checkpoints" / f"step-{steps_kept(trained)[-1]:08d}"
    names = {name.split("/.ATTRIBUTES")[0] for name, _ in tf.train.list_variables(str(newest / "variables"))}
    assert {"query_encoder/convs..0..weight", "optimizer/momentum.Spredictor..0..weight"} <= names
    assert json.loads((newest / "checkpoint.json").read_text())["encoder"]["arch"] == "mine.convnet"


def test_one_compiled_piece(place, trained):
    """Four steps a call of the whole step, the method's and the optimizer's own code included."""
    workdir = place / "runs" / "compiled"
    several = {"jit_compile": "true", "steps_per_call": 4, "log_every": 4, "checkpoint_steps": 4}
    call("pretrain", data_dir=place / "data", workdir=workdir, **{**FLAGS, **several})
    single = losses(trained)
    means = {last: np.mean([single[step] for step in range(last - 3, last + 1)]) for last in (4, 8)}
    assert losses(workdir) == pytest.approx(means, abs=1e-2)


def test_help_shows_the_modules_flags(place):
    done = subprocess.run(
        command("pretrain", method="mine.simsiam", arch="mine.convnet") + ["--help"],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=60,
    )
    text = " ".join(done.stdout.split())
    assert "--predictor_dim" in text and "hidden width of the predictor" in text and "mine.simsiam: 16" in text


def test_resumes_after_a_kill_bit_for_bit(place, trained):
    workdir = place / "runs" / "killed"
    process = subprocess.Popen(
        command("pretrain", data_dir=place / "data", workdir=workdir, **FLAGS), cwd=place, env=environment(place)
    )
    until = time.monotonic() + 200
    while not (workdir / "checkpoints").is_dir() or not any((workdir / "checkpoints").glob("step-*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    call("pretrain", data_dir=place / "data", workdir=workdir, **FLAGS)
    assert losses(workdir) == losses(trained)
    newest = [path / "checkpoints" / f"step-{8:08d}" / "variables" for path in (workdir, trained)]
    readers = [tf.train.load_checkpoint(str(path)) for path in newest]
    for name in readers[0].get_variable_to_shape_map():
        if not name.startswith("_"):
            np.testing.assert_array_equal(*(reader.get_tensor(name) for reader in readers), err_msg=name)


@pytest.mark.horovod
def test_two_ranks_pretrain(place):
    values = {**FLAGS, "data_dir": place / "data", "steps": 4}
    arguments = [f"--{name}={value}" for name, value in values.items()]
    horovodrun(
        2, "-m", "moco_tf.pretrain", *arguments, f"--workdir={place}/runs/two", env={"PYTHONPATH": f"{place}:{ROOT}"}
    )
    assert sorted(losses(place / "runs" / "two")) == [1, 2, 3, 4]
    assert all(np.isfinite(list(losses(place / "runs" / "two").values())))


def test_the_other_programs(place, trained):
    data = {"load": trained, "dataset": "mine.birds", "data_dir": place / "data"}
    call("knn", k=5, **data)
    call("lincls", epochs=20, batch_size=16, learning_rate=1, jit_compile="false", **data)
    for name in ("knn", "lincls"):
        result = json.loads((trained / name / "result.json").read_text())
        assert result["top1"] > 0.9, "three colours are easy to tell apart"
    call("export", output=place / "encoder", **data)
    served = tf.saved_model.load(str(place / "encoder"))
    assert served.embed(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 16)
    call("report", workdir=trained)
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "mine.simsiam" in page and "crow" in page
