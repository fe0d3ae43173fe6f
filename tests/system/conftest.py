"""Tests of the launchers with real daemons, and of the demo: only with -m system (launch/test.sh --system)."""

import os
import pathlib
import shutil

import pytest

FOLDER = pathlib.Path(__file__).parent
os.environ["PATH"] += os.pathsep + "/usr/sbin"


def pytest_collection_modifyitems(config, items):
    """What another -m selects, or none, does not select these."""
    if "system" in config.getoption("-m"):
        return
    unasked = [item for item in items if FOLDER in item.path.parents]
    config.hook.pytest_deselected(items=unasked)
    items[:] = [item for item in items if item not in unasked]


@pytest.fixture(scope="session")
def as_root():
    """Skips where the daemons of a system test cannot be started."""
    if os.geteuid() != 0:
        pytest.skip("not root: neither daemons nor network namespaces can be started here")


@pytest.fixture(scope="session")
def needs():
    """Skips where a tool is not installed: needs(tool=package, ...)."""

    def check(**tools):
        lacking = [f"{tool} (apt-get install {package})" for tool, package in tools.items() if not shutil.which(tool)]
        if lacking:
            pytest.skip(f"not installed: {', '.join(lacking)}; launch/test.sh --system installs them where it may")

    return check
