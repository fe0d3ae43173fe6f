"""Test set-up: quiet TensorFlow, no GPU, support/ importable, long files first, memory given back."""

import ctypes
import gc
import json
import math
import os
import pathlib
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# What XLA compiles is small here: LLVM's optimisation takes longer than it saves, a third of the time of a compilation.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Processes of pytest-xdist share the cores: with all cores for each, small operations wait for one another.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
TESTS = pathlib.Path(__file__).parent
sys.path.insert(0, str(TESTS))
SECONDS = {}  # by file, of the tests that ran


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="record tests/golden anew")


def pytest_configure(config):
    """Seconds by file of the last runs. Workers get them from the process that started them: all need one order."""
    committed = json.loads((TESTS / "durations.json").read_text())
    cached = config.cache.get("durations", {}) if hasattr(config, "cache") else {}
    config.durations = getattr(config, "workerinput", {}).get("durations") or {**committed, **cached}


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["durations"] = node.config.durations


def pytest_collection_modifyitems(config, items):
    """Longest files first, new ones before them: two processes that take whole files in this order end together."""
    items.sort(key=lambda item: -config.durations.get(_file(item.nodeid), math.inf))


def pytest_runtest_logreport(report):
    SECONDS[_file(report.nodeid)] = SECONDS.get(_file(report.nodeid), 0) + report.duration


def pytest_sessionfinish(session, exitstatus):
    """Keeps the seconds of whole files: after a full run .pytest_cache/v/durations may become durations.json."""
    config = session.config
    if hasattr(config, "workerinput") or not hasattr(config, "cache") or exitstatus > 1:  # 1: tests failed
        return
    if not config.option.keyword and not any("::" in argument for argument in config.args):
        found = {**config.durations, **{file: round(seconds) for file, seconds in SECONDS.items()}}
        longest_first = sorted(
            filter(lambda file: (config.rootpath / file).exists(), found), key=found.get, reverse=True
        )
        config.cache.set("durations", {file: found[file] for file in longest_first})


def _file(nodeid):
    return nodeid.split("::")[0]


@pytest.fixture(autouse=True, scope="module")
def _memory():
    """Gives back what a file's graphs and compiled functions held. What stays is not searched again: it is much."""
    yield
    if keras := sys.modules.get("keras"):
        keras.backend.clear_session()
        gc.collect()
        gc.freeze()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """train/ and val/ with three classes of small images, for every file: a test that changes them copies them."""
    from support.programs import make_photos

    return make_photos(tmp_path_factory.mktemp("photos"))
