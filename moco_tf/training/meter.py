"""Means of a step's metrics between two lines of metrics, and images per second."""

import collections
import math
import time

import tensorflow as tf


class Meter:
    """Means of a step's metrics and images per second since they were last read.

    Args:
        batch_size: images a step.
        pending: metrics of steps before, which `pending` returned when the run was left.
    """

    def __init__(self, batch_size: int, pending: dict[str, list[float]] | None = None) -> None:
        self._batch_size = batch_size
        self._values: dict[str, list] = collections.defaultdict(list, {n: list(v) for n, v in (pending or {}).items()})
        self.restart()

    def restart(self) -> None:
        """Leaves the time until now out of the images per second."""
        self._since, self._steps = time.monotonic(), 0

    def add(self, metrics: dict[str, tf.Tensor]) -> None:
        """Counts a step. Values stay on the device until they are read."""
        self._steps += 1
        for name, value in metrics.items():
            self._values[name].append(value)

    def pending(self) -> dict[str, list[float]]:
        """What the next reading will be the mean of, so that a resumed run reads the same."""
        return {name: [float(value) for value in column] for name, column in self._values.items()}

    def read(self) -> dict[str, float]:
        """The means since the last reading, over the steps where they are finite; without those that never were."""
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
