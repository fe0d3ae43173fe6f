"""How long a training loop stands waiting for its input."""

import time
from collections.abc import Iterable, Iterator


class InputWait:
    """The time until the next batch was there, a mean over the batches since it was last read.

    On a GPU, where a step returns before it is done, some of the wait may be hidden behind the step before.
    """

    def __init__(self) -> None:
        self._seconds, self._batches = 0.0, 0

    def timed(self, batches: Iterable) -> Iterator:
        """The same batches."""
        asked = time.perf_counter()
        for batch in batches:
            self._seconds += time.perf_counter() - asked
            self._batches += 1
            yield batch
            asked = time.perf_counter()

    def share(self, batches_per_second: float) -> float:
        """The share of a step's time that went by waiting, 0 to 1, since this was last called.

        Args:
            batches_per_second: of the loop, over the same batches.
        """
        seconds = self._seconds / max(self._batches, 1)
        self._seconds, self._batches = 0.0, 0
        return min(1.0, seconds * batches_per_second)
