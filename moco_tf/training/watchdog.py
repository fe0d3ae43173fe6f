"""A rank that hangs ends itself: left alone, all others would wait for it in their next exchange, for ever.

A process of its own watches it (this file, run as a program), for a thread would stand still with it where C code holds
the GIL. It learns through a pipe what the rank does, and counts only time in which the rank could have gone on: none
while the rank or the whole machine is stopped (SIGSTOP, Ctrl-Z, sleep), whatever the clock of the day does.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

_TICK = 0.5  # seconds between two looks
_GENEROUS = 10  # times the limit: for a step that traces and compiles, and where a checkpoint may be written


class Watchdog:
    """Ends this process (SIGKILL, status 137) when a step, or the wait for its images, takes longer than a limit.

    A context; what it limits is said by `steps`, `alone`, `saving` and `off`. Of ranks that reach the limit together
    the one that hangs is to speak and end first: those that are inside of a step wait a moment more, rank 0 the
    shortest. The first step, checkpoints, and a step that follows a pause may take ten times as long.

    Args:
        seconds: the limit; 0 for none.
        rank, ranks: this one, and how many there are. One alone keeps nobody waiting, and is not watched.
        program: the name before the message.
        elastic: whether the others go on when this rank has ended.
    """

    def __init__(self, seconds: float, rank: int, ranks: int, program: str, elastic: bool = False) -> None:
        self._seconds = seconds if ranks > 1 else 0
        self._moment = max(5.0, min(30.0, seconds / 10)) * (1 if rank == 0 else 1.5)
        self._who = f"{program}: rank {rank} on {socket.gethostname()}"
        after = "the other ranks go on" if elastic else "the same command goes on from the newest checkpoint"
        self._after = f"it ends, see --step_timeout; {after}"
        self._times = _GENEROUS
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            # Not by -m, with which launchers find ranks; without site-packages it is there at once, and small.
            command = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid())]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            os.set_blocking(self._process.stdin.fileno(), False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process = None

    def steps(self, batches: Iterable[tuple[int, object]]) -> Iterator[tuple[int, object]]:
        """The same (number of a step, batch); what is done until the next is asked for, and the wait, are limited."""
        self.alone("waiting for the images of the first step")
        for step, batch in batches:
            self._in_step(step)
            self._times = 1
            yield step, batch
            self.alone(f"waiting for the images of step {step + 1}")
        self.off()

    def alone(self, doing: str) -> None:
        """From now on this rank does something that it needs no other for."""
        limit = self._seconds * self._times
        self._tell(limit, f"{self._who} hangs: {doing} has taken {limit:g} s; {self._after}")

    def saving(self, step: int) -> None:
        """From now on it writes a checkpoint."""
        self._times = _GENEROUS
        self.alone(f"the checkpoint after step {step}")

    def off(self) -> None:
        """From now on nothing is limited, until the next step."""
        self._times = _GENEROUS
        self._tell(0, "")

    def _in_step(self, step: int) -> None:
        limit = self._seconds * self._times + self._moment
        why = "another rank hangs or cannot be reached, or this one's device does not answer"
        self._tell(limit, f"{self._who} has been in step {step} for {limit:g} s: {why}; {self._after}")

    def _tell(self, limit: float, line: str) -> None:
        if self._process is not None:
            # A watcher that was stopped or killed is no reason to stop.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._process.stdin.fileno(), f"{limit:g} {line}\n".encode())


def watch(process: int, pipe: int = 0) -> None:
    """Watches a process until it has ended or closed the pipe.

    Args:
        process: its number, which is this one's parent.
        pipe: gives lines of seconds and of what to say when so many have gone by without another line; 0 for never.
    """
    limit, said, line, waited, last = 0.0, b"", b"", 0.0, time.monotonic()
    while os.getppid() == process:
        ready, _, _ = select.select([pipe], [], [], _TICK)
        now = time.monotonic()
        if ready:
            data = os.read(pipe, 1 << 16)
            if not data:
                return
            *lines, said = (said + data).split(b"\n")
            if lines:
                seconds, _, line = lines[-1].partition(b" ")
                limit, waited = float(seconds), 0.0
        elif not _is_stopped(process):
            waited += min(now - last, 2 * _TICK)  # more has gone by: this process, too, was stopped
        last = now
        if limit and waited >= limit:
            _say(line)
            if os.getppid() == process:
                os.kill(process, signal.SIGKILL)
            return


def _say(line: bytes) -> None:
    """Writes a line to stderr unless nobody reads there, which may be why the rank hangs."""
    with contextlib.suppress(OSError):
        if select.select([], [2], [], 1.0)[1]:
            os.write(2, line + b"\n")


def _is_stopped(process: int) -> bool:
    """Whether a process stands still by a signal or in a debugger."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in b"Tt"
    except OSError:
        return False


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the rank, which may take its time to write a checkpoint
    watch(int(sys.argv[1]))
