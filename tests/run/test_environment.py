"""environment.json: an entry a start, bounded, with what differs from the recipe; its section of the report."""

import json
import subprocess
import sys

import pytest
from support.programs import ROOT, parse

from moco_tf.reporting import sections
from moco_tf.reporting.results import RunRecord
from moco_tf.run import environment
from moco_tf.run.folder import Metrics, RunFolder
from moco_tf.run.pretraining import peak_rate
from moco_tf.training import device
from moco_tf.training.stop import Signals

RECIPE = str(ROOT / "flags" / "pretrain" / "cifar10_moco.cfg")


@pytest.fixture
def started(monkeypatch):
    """The options of a command, as a program has them."""

    def start(*flags):
        argv = ["moco_tf.pretrain", *flags]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(Signals, "in_program", True)
        return parse("pretrain", *flags)

    return start


def test_what_differs_from_the_recipe(started, tmp_path):
    """By hand: the recipe has 200 epochs and queue 4096; places are no difference."""
    o = started(f"--flagfile={RECIPE}", "--epochs=5", "--queue_size=8192", "--batch_size=512", f"--workdir={tmp_path}")
    entry = environment.current(o, 2, 7)
    assert entry["changed"] == {"epochs": ["200", "5"], "queue_size": ["4096", "8192"]}
    assert (entry["recipe"], entry["step"], entry["ranks"]) == (RECIPE, 7, 2)
    assert entry["command"][1:3] == [f"--flagfile={RECIPE}", "--epochs=5"]
    assert entry["versions"]["python"] == ".".join(map(str, sys.version_info[:3])) and "tensorflow" in entry["versions"]
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert (entry["git"] or {}).get("commit", "") == commit
    assert entry["machine"]["cores"] == device.cores() and entry["driver"] is None


def test_without_a_recipe(started, monkeypatch):
    entry = environment.current(started("--epochs=5", "--method=simclr"), 1, 0)
    assert entry["recipe"] is None and entry["changed"]["epochs"] == ["200", "5"]
    assert entry["changed"]["method"] == ["moco", "simclr"] and entry["changed"]["temperature"] == ["0.2", "0.5"]
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert environment.git_state() is None


def test_first_and_newest_starts_are_kept(started, tmp_path):
    folder, o = RunFolder(tmp_path), started("--epochs=5")
    for step in range(22):
        environment.note(folder, o, 1, step)
    assert [entry["step"] for entry in folder.read_environment()] == [0, *range(3, 22)]
    folder.environment.write_text("{")
    assert folder.read_environment() == []


def test_section(started, tmp_path):
    """What a reader sees; nothing of what the file holds is trusted, and no path of the command is shown."""
    run = RunRecord("first", RunFolder(tmp_path), Metrics([], []), {}, [])
    assert "earlier version" in sections.environment([run])
    environment.note(run.folder, started(f"--flagfile={RECIPE}", "--epochs=5", f"--data_dir={tmp_path}"), 1, 0)
    section = sections.environment([run, run])
    rows = {name: values for name, (values,) in section["rows"]}
    assert rows["differs from the recipe"] == "epochs 200 to 5" and rows["tensorflow"].startswith("2.")
    assert str(tmp_path) not in json.dumps(section) and section["says"] == ""
    run.folder.environment.write_text(json.dumps([1, {"changed": 3, "git": [], "machine": "x", "step": None}]))
    assert dict(sections.environment([run])["rows"]) == {"changed": ["3"], "git": ["[]"], "machine": ["x"]}


def test_utilisation(monkeypatch):
    """By hand: 4 passes of 2 x 3 million operations an image; a device of 240e6 a second does 10 images."""
    encoder = type("Encoder", (), {"compute_dtype": "bfloat16"})()
    method = type("Method", (), {"query_encoder": encoder, "key_encoder": None, "num_views": 2})()
    run = type("Run", (), {"method": method, "size": 32})()
    monkeypatch.setattr("moco_tf.run.pretraining.cost", lambda *_: type("Cost", (), {"multiply_adds": 3_000_000})())
    assert peak_rate(run) is None  # a CPU's peak is not known
    monkeypatch.setattr(device, "peak_flops", lambda name, dtype: 240e6)
    assert peak_rate(run) == 10.0
