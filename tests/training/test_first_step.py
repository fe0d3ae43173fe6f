"""The first step: its seconds are shown, and Ctrl-C is noticed while C code runs."""

import hashlib
import os
import signal
import threading
import time

import pytest

from moco_tf.training.first_step import FirstStep


@pytest.fixture
def handled():
    """Signals that Python's own handler got."""
    numbers = []
    before = signal.signal(signal.SIGINT, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGINT, before)


def in_c(seconds):
    """Spends seconds in C code that no signal ends, as XLA does. Returns the time at its end."""
    began, rounds = time.monotonic(), 100_000
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(rounds * seconds / (time.monotonic() - began)))
    return time.monotonic()


def test_ctrl_c_is_noticed_in_the_step(handled):
    noticed, shown = [], []
    with FirstStep(shown.append, 0.1, lambda: noticed.append(time.monotonic())):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        end = in_c(2.5)
    assert len(noticed) == 1 and noticed[0] < end
    assert handled == [signal.SIGINT]  # Python's own, after the step
    assert len(shown) >= 5 and shown == sorted(shown)


def test_other_signals_and_threads(handled):
    """SIGUSR1 is left to its handler; a thread, which gets no signals, is shown the seconds alone."""
    noticed, shown = [], []
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    with FirstStep(shown.append, 0.05, lambda: noticed.append(1)):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
    signal.signal(signal.SIGUSR1, before)
    assert not noticed and shown and signal.set_wakeup_fd(-1) == -1

    def work():
        with FirstStep(shown.append, 0.05, None):
            time.sleep(0.2)

    shown.clear()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert shown
