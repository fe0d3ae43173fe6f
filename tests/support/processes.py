"""Ranks as processes of the test itself, started as horovodrun starts them but with handles to send signals to."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from support.programs import arguments

TESTS = pathlib.Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def pretraining(ranks, log, **values):
    """Processes that pre-train by the debug recipe, one a rank, which write to the file `log`; gone in the end."""
    command = [sys.executable, "-m", "moco_tf.pretrain", *arguments("debug/pretrain.cfg", **values)]
    with rendezvous(ranks) as environments, open(log, "ab") as output:
        started = [
            subprocess.Popen(command, cwd=TESTS.parent, env=env, stdout=output, stderr=output) for env in environments
        ]
        try:
            yield started
        finally:
            for process in started:
                process.send_signal(signal.SIGKILL)
                process.wait()


@contextlib.contextmanager
def rendezvous(ranks):
    """Environments of the ranks, which find each other by a server here; of one process when there is one."""
    here = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    if ranks == 1:
        yield [here]
        return
    http_server = pytest.importorskip("horovod.runner.http.http_server")
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts

    server = http_server.RendezvousServer()
    port = server.start()
    server.init(get_host_assignments(parse_hosts(f"localhost:{ranks}"), ranks))
    common = {
        **{"HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "HOROVOD_GLOO_RENDEZVOUS_PORT": port},
        **{"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo", "HOROVOD_GLOO_IFACE": "lo"},
        **{"HOROVOD_HOSTNAME": "localhost", "HOROVOD_CROSS_RANK": 0, "HOROVOD_CROSS_SIZE": 1},
        **{"HOROVOD_SIZE": ranks, "HOROVOD_LOCAL_SIZE": ranks},
    }
    own = [{"HOROVOD_RANK": rank, "HOROVOD_LOCAL_RANK": rank} for rank in range(ranks)]
    try:
        yield [{**here, **{name: str(v) for name, v in {**common, **names}.items()}} for names in own]
    finally:
        server.stop()


def wait(processes, timeout=120):
    """Exit statuses of processes that end by themselves."""
    until = time.monotonic() + timeout
    return [process.wait(max(until - time.monotonic(), 0.1)) for process in processes]


def wait_for(condition, processes, timeout=120):
    """Returns what the condition returns as soon as that is true."""
    until = time.monotonic() + timeout
    while not (found := condition()):
        assert all(process.poll() is None for process in processes), "the run was over before"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.002)
    return found
