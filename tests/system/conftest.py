"""Tests of the launchers with real daemons, and others that take long: all marked system."""

import os
import shutil

import pytest

os.environ["PATH"] += os.pathsep + "/usr/sbin"


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
