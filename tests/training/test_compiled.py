"""XLA's compiled code is kept for the next start, and never trusted when it is not what was written."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from moco_tf.training import compiled, cuda

TESTS = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Eleven starts in processes of their own, see the worker; on a CPU, with a made-up GPU."""
    command = [sys.executable, TESTS / "workers" / "kept_code.py", tmp_path_factory.mktemp("cache")]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "TF_XLA_FLAGS", "CUDA_VISIBLE_DEVICES")
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    names = ["cold", "warm", "damaged", "again", "unloadable", "removed", "killed", "after"]
    names += ["crashed", "refused", "deterministic"]
    return dict(zip(names, json.loads(done.stdout), strict=True))


def test_second_start_compiles_nothing(starts):
    """Although it has traced other functions before: a run that resumes does."""
    assert [starts["cold"][:3], starts["warm"][:3]] == [[25.0, [0, 1], []], [25.0, [1, 0], []]]
    assert starts["cold"][3] == ", 1 pieces compiled by XLA that were not kept"
    assert starts["warm"][3] == ", no pieces compiled by XLA that were not kept"


def test_damaged_file_is_compiled_anew(starts):
    assert starts["damaged"][:3] == [25.0, [0, 1], []] and starts["again"][:3] == [25.0, [1, 0], []]


def test_what_cannot_be_loaded_is_removed(starts):
    """Read less bytes than requested: XLA's reader says so, in the first step."""
    result, _, (said,), *_ = starts["unloadable"]
    assert result == 0 and said.endswith(
        "(Read less bytes than requested) and is removed; start the same command again"
    )
    assert starts["removed"][:3] == [25.0, [0, 1], []]


def test_the_second_failure_ends_it(starts):
    result, counts, (said,), *_ = starts["refused"]
    assert starts["killed"] is None and starts["after"][:3] == [25.0, [1, 0], []]  # the code is not to blame
    assert starts["crashed"] is None and result == 25.0 and counts is None
    assert said.startswith("compiled code is not kept: a process crashed while it loaded it; remove /")
    assert said.endswith("/failures.txt to try again")


def test_folder_and_flags(starts):
    """Versions are in the name, and flags: deterministic operations have other code."""
    *_, folder, flags = starts["cold"]
    assert folder.startswith("x86_64_NVIDIA-H100-80GB-HBM3_tensorflow-2.21.0_driver-580.65.06_cudnn-")
    assert flags.startswith("--xla_gpu_per_fusion_autotune_cache_dir=/") and flags.endswith(f"{folder}/autotune")
    *_, other, exact = starts["deterministic"]
    assert other[:-8] == folder[:-8] and other != folder and starts["deterministic"][:2] == [25.0, [0, 1]]
    assert exact.startswith("--xla_gpu_exclude_nondeterministic_ops=true --xla_gpu_per_fusion_autotune_cache_dir=/")


ROWS = [["NVIDIA T4", "580.65.06", "15360 MiB"]]


@pytest.mark.parametrize(
    "rows, visible", [([], None), ([*ROWS, ["NVIDIA L4", "580.65.06", "1 MiB"]], None), (ROWS, "-1")]
)
def test_nothing_is_kept(rows, visible, monkeypatch):
    """Without a GPU, with GPUs of two kinds, and where the user shows none."""
    monkeypatch.setattr(cuda, "nvidia_smi", lambda: rows)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible) if visible else monkeypatch.delenv(
        "CUDA_VISIBLE_DEVICES", False
    )
    assert compiled.folder() is None


def test_each_rank_has_its_own_in_deterministic_runs(monkeypatch):
    monkeypatch.setattr(cuda, "nvidia_smi", lambda: ROWS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    folders = []
    for rank in ("0", "1"):
        monkeypatch.setenv("HOROVOD_RANK", rank)
        folders += [compiled.folder(), compiled.folder(deterministic=True)]
    assert folders[0] == folders[2] and len(set(folders)) == 3


def test_a_users_flags_stand(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_per_fusion_autotune_cache_dir=/mine --xla_gpu_autotune_level=2")
    compiled._add("XLA_FLAGS", "xla_gpu_per_fusion_autotune_cache_dir", "/ours")
    compiled._add("XLA_FLAGS", "xla_gpu_exclude_nondeterministic_ops", "true")
    assert os.environ["XLA_FLAGS"] == (
        "--xla_gpu_per_fusion_autotune_cache_dir=/mine --xla_gpu_autotune_level=2 "
        "--xla_gpu_exclude_nondeterministic_ops=true"
    )


def test_the_oldest_of_too_many_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_MOST", 2500)
    (tmp_path / "code").mkdir()
    for number in range(3):
        data = bytes([number]) * 1000
        path = tmp_path / "code" / f"{hashlib.sha256(data).hexdigest()}-{number}.pb"
        path.write_bytes(data)
        os.utime(path, (number, number))
    assert sorted(compiled.KeptCode(tmp_path).loaded) == ["1.pb", "2.pb"]
    assert len(list((tmp_path / "code").iterdir())) == 2
