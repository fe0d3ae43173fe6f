"""A rank that hangs is ended with one line, whatever holds it; one that may take its time, or is stopped, is not."""

import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from support.ranks import TESTS

from moco_tf.training.watchdog import Watchdog

HOST = socket.gethostname()
END = "it ends, see --step_timeout; the same command goes on from the newest checkpoint\n"
IN_STEP = "another rank hangs or cannot be reached, or this one's device does not answer; "


class Rank(subprocess.Popen):
    """tests/workers/watched.py in the background."""

    def __init__(self, what, rank=1, limit=1):
        command = [sys.executable, TESTS / "workers/watched.py", str(rank), str(limit), what]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        super().__init__(command, env={"PYTHONPATH": str(TESTS.parent)}, **pipes)

    def in_third_step(self):
        """Waits for it; returns its watchdog."""
        assert self.stdout.readline() == "the third step\n"
        for _ in range(50):  # psutil overlooks children when the machine's clock is set meanwhile
            for child in psutil.Process(self.pid).children():
                return child
            time.sleep(0.1)
        raise AssertionError(f"no watchdog; the rank has ended with {self.poll()}")

    def end(self):
        """(exit status, what it and its watchdog said besides)."""
        printed, said = self.communicate(timeout=30)
        return self.returncode, printed.replace("the third step\n", "") + said


@pytest.fixture(scope="module")
def ended():
    """What became of ranks that met different things at the same time: (exit status, what was printed)."""
    running = {what: Rank(what) for what in ("input", "step", "gil_step", "gil_metrics")}
    running["step of rank 0"] = Rank("step", rank=0)
    quiet = ("nothing", "saving", "evaluation")
    running |= {what: Rank(what, limit=2) for what in quiet}
    disturbed = ("stopped", "stopped with its watchdog", "bereft of its watchdog", "killed")
    running |= {name: Rank("resting", limit=5) for name in disturbed}
    watchdogs = {name: running[name].in_third_step() for name in ("step", *disturbed)}
    running["killed"].kill()
    watchdogs["bereft of its watchdog"].kill()
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # as launchers send them to all
        watchdogs["step"].send_signal(number)
    stopped = [running["stopped"], running["stopped with its watchdog"], watchdogs["stopped with its watchdog"]]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    time.sleep(5.5)
    for process in stopped:
        process.send_signal(signal.SIGCONT)
    results = {name: rank.end() for name, rank in running.items()}
    psutil.wait_procs(watchdogs.values(), timeout=5)
    assert not any(watchdog.is_running() for watchdog in watchdogs.values())
    return results


@pytest.mark.parametrize(
    "name",
    # The first step, a checkpoint and an evaluation take longer than the limit; so do the stops.
    ["nothing", "saving", "evaluation", "stopped", "stopped with its watchdog", "bereft of its watchdog"],
)
def test_a_rank_that_does_not_hang(ended, name):
    assert ended[name] == (0, "done\n")


def test_a_rank_that_was_killed(ended):
    """Its watchdog says nothing, and ends with it: the fixture has looked."""
    assert ended["killed"] == (-signal.SIGKILL, "")


@pytest.mark.parametrize(
    "name, line",
    [
        ("input", f"test: rank 1 on {HOST} hangs: waiting for the images of step 3 has taken 1 s; {END}"),
        ("gil_metrics", f"test: rank 1 on {HOST} hangs: writing metrics has taken 1 s; {END}"),
        # Inside of a step another rank may hang: 5 s more for that one to say so, on others than rank 0 7.5 s.
        ("step of rank 0", f"test: rank 0 on {HOST} has been in step 3 for 6 s: {IN_STEP}{END}"),
        ("step", f"test: rank 1 on {HOST} has been in step 3 for 8.5 s: {IN_STEP}{END}"),
        ("gil_step", f"test: rank 1 on {HOST} has been in step 3 for 8.5 s: {IN_STEP}{END}"),
    ],
)
def test_a_rank_that_hangs(ended, name, line):
    """In Python, where another thread could go on, and in C code that holds the GIL."""
    assert ended[name] == (-signal.SIGKILL, line)


@pytest.mark.parametrize("seconds, ranks", [(0, 2), (600, 1)])
def test_where_nothing_is_limited_there_is_no_process(seconds, ranks):
    before = psutil.Process().children()
    with Watchdog(seconds, 0, ranks, "test") as watchdog:
        assert list(watchdog.steps([(1, "a"), (2, "b")])) == [(1, "a"), (2, "b")]
        assert psutil.Process().children() == before
