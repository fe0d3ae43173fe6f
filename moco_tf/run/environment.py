"""What a training ran on: environment.json in its folder, an entry for each start.

Machine, versions, driver, cuDNN, ptxas, git state, the environment variables that change what is computed, the command,
and the flags that differ from the recipe. Nothing else of the environment is kept.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from typing import Any

from absl import flags

from moco_tf import __version__
from moco_tf.config import define
from moco_tf.errors import UserError
from moco_tf.run.folder import RunFolder
from moco_tf.training import cuda, device, gpu
from moco_tf.training.files import write_whole
from moco_tf.training.stop import Signals

_MOST = 20  # entries: the first start, and the newest
_PACKAGE = pathlib.Path(__file__).parents[1]
_VARIABLES: tuple[str, ...] = (
    "XLA_FLAGS",
    "TF_XLA_FLAGS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_DETERMINISTIC_OPS",
    "NVIDIA_TF32_OVERRIDE",
)
_VARIABLES += ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HOROVOD_FUSION_THRESHOLD", "HOROVOD_CYCLE_TIME")


def note(folder: RunFolder, options: Any, ranks: int, step: int) -> None:
    """Adds this start to environment.json.

    Args:
        folder: of the run, which exists.
        options: the program's.
        ranks: how many there are; the machine is that of this one.
        step: after which the training goes on.

    Raises:
        UserError: the file cannot be written.
    """
    entries = [*folder.read_environment(), current(options, ranks, step)]
    kept = entries if len(entries) <= _MOST else [entries[0], *entries[1 - _MOST :]]
    write_whole(folder.environment, json.dumps(kept, indent=1) + "\n")


def current(options: Any, ranks: int, step: int) -> dict[str, Any]:
    """An entry; None for what is not there. Args: of `note`."""
    words = sys.argv[1:] if Signals.in_program else []
    recipe = define.given("flagfile", words)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": step,
        "ranks": ranks,
        "host": socket.gethostname(),
        "command": sys.argv if words else None,
        "recipe": recipe or None,
        "changed": changed(options, recipe),
        "machine": machine(),
        **gpu_software(),
        "versions": versions(),
        "git": git_state(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def changed(options: Any, recipe: str) -> dict[str, list[str]]:
    """{flag: [its value in the recipe, or its default without one; its value here]} of those that differ.

    Places, which change nothing that is computed, are left out.
    """
    program, policy = type(options), define.changes(options)
    words = [f"--flagfile={recipe}"] if recipe not in ("", "auto") else []
    try:
        before = define.values_of(define.parse(program, ["environment", *words]))
    except (UserError, flags.Error):  # a file that has gone
        before = define.values_of(program())
    now = {name: value for name, value in define.values_of(options).items() if policy[name] != "silent"}
    return {
        name: [define.shown(before.get(name)), define.shown(value)]
        for name, value in now.items()
        if before.get(name) != value
    }


def machine() -> dict[str, str | int | None]:
    """{"cpu", "cores", "threads", "gpu", "system"}; gpu is None without one."""
    info = pathlib.Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)", info.read_text() if info.exists() else "", re.MULTILINE)
    return {
        "cpu": name[1] if name else platform.processor() or platform.machine(),
        "cores": device.cores(),
        "threads": device.threads(),
        "gpu": device.name() or None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def gpu_software() -> dict[str, str | None]:
    """{"driver", "cuda", "cudnn", "ptxas"}: versions; None without a GPU."""
    found = dataclasses.asdict(gpu.found())
    texts = {name: cuda.shown(found[name]) or None for name in ("driver", "cuda", "cudnn")}
    return {**texts, "ptxas": cuda.shown(found["ptxas"]["version"]) if found["ptxas"] else None}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter and are installed."""
    found = {"python": platform.python_version(), "moco_tf": __version__}
    for package in ("tensorflow", "keras", "horovod", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_state() -> dict[str, Any] | None:
    """{"commit", "changed": whether files differ from it}, where the package's own files are in a repository."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return {"commit": _git("rev-parse", "HEAD"), "changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*words: str) -> str | None:
    """What git says of the package's folder; None where it fails."""
    program = shutil.which("git")
    if not program:
        return None
    try:
        done = subprocess.run([program, "-C", _PACKAGE, *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
