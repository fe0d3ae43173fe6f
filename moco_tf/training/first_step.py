"""The first step, which TensorFlow traces and XLA compiles: on a GPU it takes minutes."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable


class FirstStep:
    """A context around the first step: shows the seconds that have gone, and notices Ctrl-C at once.

    Python calls its own handlers only when the step has returned.

    Args:
        show: gets the seconds that have gone.
        every: seconds between two calls of it.
        interrupted: called once at Ctrl-C, in a thread of its own; None leaves Ctrl-C to Python.
    """

    def __init__(self, show: Callable[[float], None], every: float, interrupted: Callable[[], None] | None) -> None:
        self._show, self._every, self._interrupted = show, every, interrupted
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._main = threading.current_thread() is threading.main_thread()  # others get no signals
        if self._main:
            self._before = signal.set_wakeup_fd(self._write)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.set_wakeup_fd(self._before)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        began = time.monotonic()
        while True:
            if not select.select([self._read], [], [], self._every)[0]:
                self._show(time.monotonic() - began)
            elif not (numbers := os.read(self._read, 64)):
                return
            elif signal.SIGINT in numbers and self._interrupted:
                self._interrupted()
