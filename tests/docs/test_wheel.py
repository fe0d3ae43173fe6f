"""What `pip wheel .` makes works away from the repository: the command, the recipes, a run."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv

import numpy as np
import pytest
from support.programs import ROOT, TINY, metrics

from moco_tf.config import recipes
from moco_tf.config.options import PROGRAMS


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project: a build writes into it."""
    place = tmp_path_factory.mktemp("source") / "moco_tf"
    hidden = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "runs", "__pycache__")
    return shutil.copytree(ROOT, place, ignore=hidden)


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    """moco-tf of the wheel, in an environment of its own that borrows the packages it needs."""
    place = tmp_path_factory.mktemp("environment")
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", place, source], check=True)
    venv.create(place / "env", symlinks=True)
    python = place / "env" / "bin" / "python"
    wheel = next(place.glob("*.whl"))
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    return python.with_name("moco-tf")


def run(command, *arguments, cwd):
    packages = os.path.dirname(os.path.dirname(np.__file__))  # in PYTHONPATH: an editable moco_tf there does not count
    return subprocess.run(
        [command, *arguments], cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": packages}
    )


def test_command(installed, tmp_path):
    done = run(installed, "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "moco_tf 0.1.0\n"), done.stderr
    listed = run(installed, cwd=tmp_path).stdout
    assert all(f"\n{name} " in listed for name in PROGRAMS) and max(map(len, listed.splitlines())) <= 80
    listed = run(installed, "recipes", cwd=tmp_path).stdout.splitlines()
    for program in PROGRAMS:
        assert [f"{program} --flagfile={name}" for name in recipes.names([program])] == [
            line for line in listed if line.startswith(f"{program} ")
        ]
    assert max(map(len, listed)) <= 80
    done = run(installed, "pretain", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean pretrain?" in done.stderr and done.stderr.count("\n") == 1


def test_recipe_by_name(installed, photos, tmp_path):
    """Three steps of the debug recipe, away from the repository."""
    flags = {**TINY, "steps": 3, "log_every": 1, "dataset": "folder", "data_dir": photos, "jit_compile": "false"}
    words = ["--flagfile=debug/pretrain", "--workdir=run", *(f"--{name}={value}" for name, value in flags.items())]
    done = run(installed, "pretrain", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3]


def test_source_distribution(source, tmp_path):
    """It holds what the repository does."""
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    here = {name for name in tracked.splitlines() if not name.startswith(".") and (ROOT / name).exists()}
    assert here - held == set()
