"""A rank that hangs is ended and says what hangs, whatever holds it; one that may take its time is not."""

import signal
import socket
import subprocess
import sys
import threading

import pytest
from support.ranks import TESTS

from moco_tf.training.hang import EXIT_STATUS, HangTimer

HOST = socket.gethostname()
END = "it ends, see --step_timeout; the same command goes on from the newest checkpoint\n"
IN_STEP = "another rank hangs or cannot be reached, or this one's device does not answer; "


class Rank(subprocess.Popen):
    """tests/workers/timed.py in the background."""

    def __init__(self, what, rank=1, limit=1):
        command = [sys.executable, TESTS / "workers/timed.py", str(rank), str(limit), what]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        super().__init__(command, env={"PYTHONPATH": str(TESTS.parent)}, **pipes)

    def end(self):
        """(exit status, its output)."""
        printed, said = self.communicate(timeout=30)
        return self.returncode, printed.replace("the third step\n", "") + said


@pytest.fixture(scope="module")
def ended():
    """What became of ranks that met different things at the same time: (exit status, what was printed)."""
    running = {what: Rank(what) for what in ("input", "step", "gil_step", "gil_metrics")}
    running["step of rank 0"] = Rank("step", rank=0)
    running |= {what: Rank(what, limit=2) for what in ("nothing", "saving", "evaluation")}
    running["killed"] = Rank("resting", limit=5)
    assert running["killed"].stdout.readline() == "the third step\n"
    running["killed"].kill()
    return {name: rank.end() for name, rank in running.items()}


@pytest.mark.parametrize("name", ["nothing", "saving", "evaluation"])
def test_a_rank_that_does_not_hang(ended, name):
    """The first step, a checkpoint and an evaluation take longer than the limit."""
    assert ended[name] == (0, "done\n")


def test_a_rank_that_was_killed(ended):
    assert ended["killed"] == (-signal.SIGKILL, "")


@pytest.mark.parametrize(
    "name, line",
    [
        ("input", f"test: rank 1 on {HOST} hangs: waiting for the images of step 3 has taken 1 s; {END}"),
        # Inside of a step another rank may hang: 5 s more for that one to say so, on others than rank 0 7.5 s.
        ("step of rank 0", f"test: rank 0 on {HOST} has been in step 3 for 6 s: {IN_STEP}{END}"),
        ("step", f"test: rank 1 on {HOST} has been in step 3 for 8.5 s: {IN_STEP}{END}"),
    ],
)
def test_a_rank_that_hangs(ended, name, line):
    """In Python, where another thread can go on: one line, then the stack of the main thread among others."""
    status, said = ended[name]
    assert status == EXIT_STATUS == 1
    assert said.startswith(line) and said.count("rank ") == 1 + line.count("another rank")
    assert "timed.py" in said and " in main" in said


@pytest.mark.parametrize("name", ["gil_step", "gil_metrics"])
def test_a_rank_whose_c_code_holds_the_gil(ended, name):
    status, said = ended[name]
    assert status == EXIT_STATUS and said.startswith("Timeout (0:00:0")
    assert " in hold_the_gil" in said and " in main" in said


@pytest.mark.parametrize("seconds, ranks", [(0, 2), (600, 1)])
def test_where_nothing_is_limited_there_is_no_thread(seconds, ranks):
    before = threading.active_count()
    with HangTimer(seconds, 0, ranks, "test") as timer:
        assert list(timer.steps([(1, "a"), (2, "b")])) == [(1, "a"), (2, "b")]
        assert threading.active_count() == before
