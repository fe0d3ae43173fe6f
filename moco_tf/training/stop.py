"""Requests to stop: SIGTERM and SIGUSR1 (Slurm's --signal, a preemption) and Ctrl-C.

A rank that gets one tells the others in the step's exchange, so that all ranks stop after the same step.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import tensorflow as tf

from moco_tf.training.launcher import by_horovodrun

INTERRUPTED = 130  # exit status after Ctrl-C, as in shells
REQUEUE = 75  # exit status after the other signals: EX_TEMPFAIL of sysexits.h, start the same command again


class Stopped(BaseException):  # as KeyboardInterrupt: AutoGraph and others would wrap an Exception
    """The run stops on request and has lost nothing; `status` is the program's exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def reason(status: int) -> str:
    """Why a training stops, in words. horovodrun sends SIGTERM to its ranks when it gets Ctrl-C itself."""
    if status == INTERRUPTED:
        return "interrupted"
    return "stopped by Ctrl-C at horovodrun, SIGTERM or SIGUSR1" if by_horovodrun() else "stopped by SIGTERM or SIGUSR1"


class StopRequest:
    """This rank's request to stop, and the requests of all ranks in the last step.

    asked: 2 float32 of this rank: 1 or 0 for a requeue, 1 or 0 for an interrupt. agreed: their means over ranks.
    """

    def __init__(self) -> None:
        self.asked = tf.Variable([0.0, 0.0], trainable=False, name="stop_asked")
        self.agreed = tf.Variable([0.0, 0.0], trainable=False, name="stop_agreed")

    def ask(self, status: int) -> None:
        """Asks all ranks to stop after the next step with this exit status."""
        self.asked.assign([float(status != INTERRUPTED), float(status == INTERRUPTED)])

    def status(self) -> int:
        """The exit status to stop with, the same on all ranks; 0: no request."""
        requeue, interrupt = self.agreed.numpy()
        return INTERRUPTED if interrupt > 0 else REQUEUE if requeue > 0 else 0


class Signals:
    """The signals that a process got: `status` is the exit status that they ask for, 0 for none.

    in_program: whether this process is one of the programs, which Ctrl-C may end; a notebook's goes on.
    """

    status = 0
    in_program = False
    _deferred = False

    def receive(self, number: int, _: FrameType | None = None) -> None:
        """Notes a signal. Stops at once outside of `deferred`, or when this is the second Ctrl-C."""
        again, interrupt = self.status == INTERRUPTED, number == signal.SIGINT
        self.status = INTERRUPTED if interrupt else self.status or REQUEUE
        if interrupt and (again or not self._deferred):
            raise KeyboardInterrupt
        if not self._deferred:
            raise Stopped(f"{reason(REQUEUE)} outside of the steps: nothing is lost", REQUEUE)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """In this context signals are only noted; the loop reads `status`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """Receives signals in this context. Python allows it in the main thread only; elsewhere it does nothing."""
    received, before = Signals(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            before[number] = signal.signal(number, received.receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
