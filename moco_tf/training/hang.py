"""Ends a rank that hangs: without an end, all other ranks wait for it in their next exchange."""

import faulthandler
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

EXIT_STATUS = 1  # of a rank that hangs; faulthandler has no other
_SLACK = 10  # times the limit: for a step that traces and compiles, and while a checkpoint may be written

Batch = TypeVar("Batch")


class HangTimer:
    """Ends this process (status 1) when a step, or the wait for its images, takes longer than a limit.

    It prints one line that says what hangs, then the stack of every thread. Where C code holds Python's lock (the GIL),
    faulthandler's C thread ends the process one second later, with the stacks alone. Time in which the process is
    stopped (SIGSTOP, sleep) counts. When several ranks reach the limit, the one that hangs should speak and end first:
    ranks inside a step wait a little longer, rank 0 the least. The first step, a checkpoint, and the step after a
    checkpoint or `stop` may take ten times as long.

    A context; its end stops the timer.

    Args:
        seconds: the limit; 0 for none.
        rank: this one.
        ranks: how many there are. A single rank has no limit: nobody waits for it.
        program: the name in front of the message.
        elastic: whether the other ranks go on without this one.
    """

    def __init__(self, seconds: float, rank: int, ranks: int, program: str, elastic: bool = False) -> None:
        self._seconds = seconds if ranks > 1 else 0
        self._extra = max(5.0, min(30.0, seconds / 10)) * (1 if rank == 0 else 1.5)
        self._who = f"{program}: rank {rank} on {socket.gethostname()}"
        after = "the other ranks go on" if elastic else "the same command goes on from the newest checkpoint"
        self._after = f"it ends, see --step_timeout; {after}"
        self._slack = _SLACK
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "HangTimer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def steps(self, batches: Iterable[tuple[int, Batch]]) -> Iterator[tuple[int, Batch]]:
        """The same (number of a step, batch), with a limit on the wait for each and on what is done with it."""
        self.restart("waiting for the images of the first step")
        try:
            for step, batch in batches:
                self._in_step(step)
                self._slack = 1
                yield step, batch
                self.restart(f"waiting for the images of step {step + 1}")
        finally:  # also after an error, before the batches are closed, which may take a while
            self.stop()

    def restart(self, doing: str) -> None:
        """Starts the time again, for something that this rank does alone; doing: what, for the message."""
        limit = self._seconds * self._slack
        self._start(limit, f"hangs: {doing} has taken {limit:g} s")

    def saving(self, step: int) -> None:
        """Starts the time again, for a checkpoint."""
        self._slack = _SLACK
        self.restart(f"the checkpoint after step {step}")

    def stop(self) -> None:
        """Removes the limit until the next `restart` or step."""
        self._slack = _SLACK
        if self._timer is not None:
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _in_step(self, step: int) -> None:
        limit = self._seconds * self._slack + self._extra
        why = "another rank hangs or cannot be reached, or this one's device does not answer"
        self._start(limit, f"has been in step {step} for {limit:g} s: {why}")

    def _start(self, limit: float, what: str) -> None:
        if not self._seconds:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(limit, _end, [f"{self._who} {what}; {self._after}"])
        self._timer.daemon = True
        self._timer.start()
        faulthandler.dump_traceback_later(limit + 1, exit=True, file=2)  # where _end cannot run


def _end(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=2)
    os._exit(EXIT_STATUS)
