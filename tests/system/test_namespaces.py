"""horovodrun -H host1:1,host2:1 over a virtual link between two network namespaces, through ssh."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from hosts import HOSTS, linked, space, sshd, within
from support.jobs import ENDLESS, executable
from support.programs import arguments, losses, make_photos

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.system


@pytest.fixture
def key(as_root, needs, tmp_path):
    """The key that opens both hosts."""
    needs(ip="iproute2", sshd="openssh-server", ssh="openssh-client")
    try:
        with linked(), sshd(tmp_path) as private:
            yield private
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {' '.join(error.cmd)}: {error.stderr.strip()}")


def sent(host):
    """Bytes that have left a host over the link."""
    statistics = ["cat", "/sys/class/net/eth0/statistics/tx_bytes"]
    return int(subprocess.run(within(host, *statistics), check=True, capture_output=True).stdout)


def horovodrun(key, folder, *command):
    """Starts horovodrun on host1 with one rank on each host; returns (exit status, output)."""
    # The user's own ssh settings and known hosts are left alone.
    options = "-F none -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    executable(folder / "ssh", f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = pathlib.Path(sys.executable).with_name("horovodrun")
    slots = ",".join(f"{host}:1" for host in HOSTS)
    options = ["-np", 2, "-H", slots, "--ssh-identity-file", key, "--disable-cache", "--start-timeout", 240]
    command = within("host1", launcher, *options, sys.executable, *command)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=540)
    return done.returncode, done.stdout + done.stderr


def test_two_hosts(key, tmp_path):
    """The run finishes, its ranks are on both hosts, and the gradients have crossed the link."""
    photos, run = make_photos(tmp_path / "photos"), tmp_path / "run"
    before = {host: sent(host) for host in HOSTS}
    flags = arguments("debug/pretrain.cfg", **{**ENDLESS, "data_dir": photos, "workdir": run, "steps": 20})
    status, out = horovodrun(key, tmp_path, "-m", "moco_tf.pretrain", *flags)
    assert status == 0, out[-6000:]
    assert "batch 12 = 2 ranks x 6" in out
    assert sorted(losses(run)) == list(range(1, 21))
    parameters = 83_590 * 4 * 20  # bytes of all gradients: an allreduce between two sends about half of them both ways
    for host in HOSTS:
        assert sent(host) - before[host] > parameters / 2, (host, space(host))
