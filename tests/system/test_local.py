"""launch/local.sh in the environment that the tests run in."""

import os
import pathlib
import subprocess
import sys

import pytest
from support.jobs import ENDLESS
from support.programs import arguments, losses, make_photos

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [pytest.mark.system, pytest.mark.horovod]


def local(*arguments, **options):
    return subprocess.run([ROOT / "launch/local.sh", *arguments], capture_output=True, text=True, **options)


def test_two_ranks_from_another_folder(tmp_path):
    if pathlib.Path(sys.prefix) != ROOT / ".venv":
        pytest.skip(f"these tests run in {sys.prefix}, not in the environment that launch/local.sh makes")
    values = {**ENDLESS, "data_dir": make_photos(tmp_path / "photos"), "workdir": "run", "steps": 3}
    flags = arguments("debug/pretrain.cfg", **values)
    done = local("2", "pretrain", *flags, cwd=tmp_path, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    assert "batch 12 = 2 ranks x 6" in done.stdout
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]


@pytest.mark.parametrize(
    "given, word",
    [
        ([], "0 arguments came"),
        (["2"], "1 arguments came"),
        (["two", "pretrain"], "two ranks came"),
        (["0", "pretrain"], "0 ranks came"),
        (["2", "../x"], "the program '../x' came"),
        (["2", "pretrian"], "the program 'pretrian' came"),
    ],
)
def test_mistakes(given, word):
    done = local(*given)
    assert done.returncode == 2
    assert word in done.stderr and "usage: launch/local.sh" in done.stderr
