"""Test set-up: quiet TensorFlow, no GPU surprises, helper modules of this folder importable, memory given back."""

import ctypes
import gc
import os
import pathlib
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Processes of pytest-xdist share the cores: with all cores for each, small operations wait for one another.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
TESTS = pathlib.Path(__file__).parent
sys.path[:0] = [str(TESTS), *(str(path) for path in TESTS.iterdir() if path.is_dir())]

# The longest files, longest first: two processes that take whole files in this order end together. The rest is short.
LONGEST = (
    "kills",
    "moco_parity",
    "end_to_end",
    "ranks",
    "programs",
    "methods",
    "evaluations",
    "memory",
    "weather",
    "report",
    "rank_failure",
    "bench",
    "report_page",
    "tutorial",
    "networks",
    "collectives",
    "formats",
    "pack",
    "export",
    "reference",
    "bn_flag",
    "bad_input",
    "views",
    "augment",
    "losses",
    "api",
    "stop",
    "loss_scale",
)


def pytest_collection_modifyitems(items):
    """Sorts whole files; a new or renamed file comes after those of LONGEST."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem.removeprefix("test_"), len(place)))


@pytest.fixture(autouse=True, scope="module")
def _memory():
    """Gives back what a file's graphs and compiled functions held: without it a worker grows to 7 GB."""
    yield
    if keras := sys.modules.get("keras"):
        keras.backend.clear_session()
        gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """train/ and val/ with three classes of small images, for every file: a test that changes them copies them."""
    from support.programs import make_photos

    return make_photos(tmp_path_factory.mktemp("photos"))
