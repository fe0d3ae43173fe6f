"""Four steps of a rank under its watchdog, the third of which is special. usage: watched.py RANK LIMIT WHAT"""

import ctypes
import sys
import time

from moco_tf.training.watchdog import Watchdog


def hold_the_lock(seconds):
    """Sleeps in C, and does not give Python's lock back."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def batches(what):
    for step in range(1, 5):
        if step == 3 and what == "input":
            time.sleep(60)
        yield step, None


def main(rank, limit, what):
    too_long = 1.25 * limit
    with Watchdog(limit, rank, 2, "test") as watchdog:
        special = {
            "step": lambda: time.sleep(60),
            "locked_step": lambda: hold_the_lock(60),
            "locked_metrics": lambda: (watchdog.alone("writing metrics"), hold_the_lock(60)),
            "saving": lambda: (watchdog.saving(3), time.sleep(too_long)),
            "evaluation": lambda: (watchdog.off(), time.sleep(too_long)),
        }
        for step, _ in watchdog.steps(batches(what)):
            if step == 1:
                time.sleep(too_long)  # it traces and compiles
            if step == 3:
                print("the third step", flush=True)
                special.get(what, lambda: None)()
            time.sleep(limit / 8)
    print("done", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
