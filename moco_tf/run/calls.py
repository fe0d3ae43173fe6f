"""Several steps in one call: a GPU waits for Python between two calls, but not between two steps of a compiled loop.

A call has at most so many steps and ends where something is due. The number of its steps is an argument of one program:
how steps are divided among calls changes no result, and nothing is compiled again for a shorter call.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.run.learner import TrainingTask
from moco_tf.training import compiled

Metrics = dict[str, tf.Tensor]
Rates = Sequence[Sequence[float]]


def grouped(steps: Iterable[tuple[int, Any]], most: int, due: Callable[[int], bool]) -> Iterator[tuple[int, list]]:
    """(number of the last step, batches) of each call: at most so many, and none goes past a step where `due` is true.

    Args:
        steps: (number of the step, batch).
        most: steps of a call.
        due: whether something is due after a step; it is after the last one.
    """
    group: list = []
    for step, batch in steps:
        group.append(batch)
        if len(group) == most or due(step):
            yield step, group
            group = []


def caller(training: TrainingTask) -> Callable[[list, Rates], Metrics]:
    """(batches of up to `steps_per_call` steps, what is scheduled for each) to their metrics, a number a step of each.

    Of a shorter call what follows the numbers of its steps means nothing.
    """
    most, xla = training.steps_per_call, True if training.learner.one_piece else None

    def step(batch: Any, rates: tf.Tensor) -> Metrics:
        training.set_rates(tf.unstack(rates))
        return training.learner.train_step(training.batches.fetch(batch))

    def several(batches: Any, rates: tf.Tensor, count: tf.Tensor) -> Metrics:
        stacks = tf.nest.map_structure(lambda *parts: tf.stack(parts), *batches)
        return _loop(lambda i: step(tf.nest.map_structure(lambda stack: stack[i], stacks), rates[i]), most, count)

    traced = compiled.function(several if most > 1 else step, xla)

    def call(batches: list, rates: Rates) -> Metrics:
        missing = most - len(batches)
        stack = np.array([*rates, *[rates[-1]] * missing])
        if most == 1:
            return traced(batches[0], stack[0])
        return traced([*batches, *batches[-1:] * missing], stack, tf.constant(len(batches)))

    return call


def _loop(step: Callable[[tf.Tensor], Metrics], most: int, count: tf.Tensor) -> Metrics:
    """The metrics of step(0), step(1) ... step(count - 1), float64: `most` numbers of each."""
    names: list[str] = []

    def body(i: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        metrics = step(i)
        names[:] = metrics
        return i + 1, found.write(i, tf.stack([tf.cast(value, tf.float64) for value in metrics.values()]))

    empty = tf.TensorArray(tf.float64, most)
    _, found = tf.while_loop(lambda i, _: i < count, body, (0, empty), parallel_iterations=1)
    return dict(zip(names, tf.unstack(found.stack(), axis=1), strict=True))
