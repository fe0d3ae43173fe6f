"""Four steps of a rank under its hang timer, the third of which is special. usage: timed.py RANK LIMIT WHAT"""

import ctypes
import sys
import time

from moco_tf.training.hang import HangTimer


def hold_the_gil(seconds):
    """Sleeps in C, and does not give the GIL back."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def rest(seconds):
    """In pieces, so that it goes on where a stop has interrupted it."""
    for _ in range(20):
        time.sleep(seconds / 20)


def batches(what, too_long):
    for step in range(1, 5):
        if step == 3 and what == "input":
            time.sleep(60)
        if step == 1 and what != "resting" or step == 4 and what in ("saving", "evaluation"):
            time.sleep(too_long)
        yield step, None


def main(rank, limit, what):
    too_long = 1.25 * limit
    with HangTimer(limit, rank, 2, "test") as timer:
        third = {
            "step": lambda: time.sleep(60),
            "gil_step": lambda: hold_the_gil(60),
            "gil_metrics": lambda: hold_the_gil(60),
            "saving": lambda: (timer.saving(3), time.sleep(too_long)),
            "evaluation": lambda: (timer.stop(), time.sleep(too_long)),
        }
        for step, _ in timer.steps(batches(what, too_long)):
            time.sleep(limit / 8)
            if step == 3:
                if what not in ("step", "gil_step"):
                    timer.restart("writing metrics")
                print("the third step", flush=True)
                third.get(what, lambda: rest(limit / 4))()
    print("done", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
