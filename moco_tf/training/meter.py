"""Measures a training loop: means of its metrics, images per second, the share of time spent waiting for input."""

import collections
import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import tensorflow as tf

Batch = TypeVar("Batch")


class Meter:
    """Means of the steps' metrics and images per second since the last reading.

    Args:
        batch_size: images a step.
        pending: metrics of the steps before, as `pending` returned them when a checkpoint was written.
    """

    def __init__(self, batch_size: int, pending: dict[str, list[float]] | None = None) -> None:
        self._batch_size = batch_size
        self._values: dict[str, list[tuple[tf.Tensor | list[float], int]]] = collections.defaultdict(list)
        for name, values in (pending or {}).items():
            self._values[name].append((values, len(values)))
        self.restart()

    def restart(self) -> None:
        """Starts the time for the images per second again."""
        self._since, self._steps = time.monotonic(), 0

    def add(self, metrics: dict[str, tf.Tensor], steps: int = 1) -> None:
        """Counts the steps of a call. Their metrics, the first `steps` numbers, stay on the device until read."""
        self._steps += steps
        for name, values in metrics.items():
            self._values[name].append((values, steps))

    def pending(self) -> dict[str, list[float]]:
        """The metrics since the last reading, for a checkpoint: a resumed run then reads the same means."""
        return {
            name: [float(value) for values, steps in column for value in np.atleast_1d(values)[:steps]]
            for name, column in self._values.items()
        }

    def read(self) -> dict[str, float]:
        """Means over the steps where a metric is finite; without metrics that never were."""
        values = {}
        for name, column in self.pending().items():
            finite = [value for value in column if math.isfinite(value)]
            if finite:
                values[name] = math.fsum(finite) / len(finite)
        seconds = time.monotonic() - self._since
        values["images_per_second"] = self._steps * self._batch_size / max(seconds, 1e-9)
        self._values.clear()
        self.restart()
        return values


class InputWait:
    """The time that the loop waits for the next batch, a mean over the batches since it was last read.

    On a GPU a step returns before it is done, so that part of the wait may overlap with the step before.
    """

    def __init__(self) -> None:
        self._seconds, self._batches = 0.0, 0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; measures the wait for each."""
        asked = time.perf_counter()
        for batch in batches:
            self._seconds += time.perf_counter() - asked
            self._batches += 1
            yield batch
            asked = time.perf_counter()

    def share(self, batches_per_second: float) -> float:
        """The share of a step's time that was spent waiting, 0 to 1, since the last call.

        Args:
            batches_per_second: of the loop, over the same batches.
        """
        seconds = self._seconds / max(self._batches, 1)
        self._seconds, self._batches = 0.0, 0
        return min(1.0, seconds * batches_per_second)
