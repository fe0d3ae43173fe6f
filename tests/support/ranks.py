"""Starts a script or module under horovodrun and waits for it."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from support.programs import arguments

TESTS = pathlib.Path(__file__).resolve().parents[1]


def horovodrun(ranks, *command, timeout=600, check=True, env=None):
    """Runs `horovodrun -np ranks python command...`; returns the finished process with its output as text."""
    program = pathlib.Path(sys.executable).with_name("horovodrun")
    if not program.exists():
        pytest.skip("horovodrun is not installed beside this Python; launch/test.sh builds it")
    one_thread = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    env = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", **one_thread, **(env or {})}
    done = subprocess.run(
        [str(program), "-np", str(ranks), sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
    )
    assert not check or done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def available():
    return pathlib.Path(sys.executable).with_name("horovodrun").exists() or shutil.which("horovodrun") is not None


def launch(count, program, *files, timeout=300, **values):
    """What a program on several ranks prints on standard output."""
    return horovodrun(count, "-m", f"moco_tf.{program}", *arguments(*files, **values), timeout=timeout).stdout
