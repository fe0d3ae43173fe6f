"""Stopwatches: repeats of steps and of batches, and the Python around a step."""

import statistics
import time
from collections.abc import Callable, Iterator

import tensorflow as tf

_OVERHEAD_CALLS = 100


def spread(values: list[float]) -> dict[str, float]:
    """{"median", "min", "max"} of the repeats."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rates(seconds: list[float], images: int) -> dict[str, dict[str, float]]:
    """{"ms": of a step, "images_per_second"}, each a spread, from the seconds a step of every repeat."""
    return {
        "ms": spread([1000 * s for s in seconds]),
        "images_per_second": spread([images / s for s in seconds]),
    }


def wait_for(metrics: dict[str, tf.Tensor] | None) -> None:
    """Returns when a step is done: a GPU works in order, so what can be read is the end of all before."""
    for value in (metrics or {}).values():
        value.numpy()


def seconds_per_step(step: Callable[[], dict[str, tf.Tensor]], steps: int) -> float:
    """Seconds a step, over so many in a row, until the last one's metrics can be read."""
    start = time.perf_counter()
    for _ in range(steps):
        metrics = step()
    wait_for(metrics)
    return (time.perf_counter() - start) / steps


def seconds_per_batch(
    batches: Iterator[tuple[int, tuple]],
    count: int,
    use: Callable[[int, tuple], dict[str, tf.Tensor] | None],
) -> tuple[float, float]:
    """(seconds a batch, seconds of them that went by until it was there), over the next `count` batches.

    Args:
        batches: (number, batch), endless or long enough.
        count: batches to take.
        use: what happens to each; returns metrics to wait for at the end, or None.

    On a GPU, where a step returns before it is done, some of the wait may be hidden behind the step before.
    """
    waited, start = 0.0, time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        number, batch = next(batches)
        waited += time.perf_counter() - asked
        metrics = use(number, batch)
    wait_for(metrics)
    return (time.perf_counter() - start) / count, waited / count


def python_overhead(step: tf.types.experimental.ConcreteFunction, data: tuple, before: Callable[[], None]) -> float:
    """Seconds that Python and the dispatch take around a step's own work: median over 100 calls.

    Measured is a graph that takes the step's arguments, holds its variables and returns as many scalars, but computes
    nothing; and `before`, what the training loop does before every step. So it is the same on a CPU, where a step
    returns when it is done, and on a GPU.
    """
    captured, names = step.captured_inputs, sorted(step.structured_outputs)

    @tf.function
    def nothing(data: tuple) -> dict[str, tf.Tensor]:
        for variable in captured:
            tf.raw_ops.Identity(input=variable)  # makes it an argument, and is pruned before the graph runs
        return {name: tf.constant(0.0) for name in names}

    times = []
    for call in range(-_OVERHEAD_CALLS // 10, _OVERHEAD_CALLS):
        start = time.perf_counter()
        before()
        nothing(data)
        if call >= 0:
            times.append(time.perf_counter() - start)
    return statistics.median(times)
