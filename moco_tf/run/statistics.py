"""Running statistics of the batch norms: every rank has its own, for it sees other images.

Training never reads them, and what evaluates wants their mean over ranks. Saving and evaluating must not change them,
or a run with one more checkpoint (a preemption) would end with other digits: so they are averaged for a moment only,
and a checkpoint holds both the means and the ranks' own.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from moco_tf.methods.base import Method
from moco_tf.training.collectives import Collectives


@contextlib.contextmanager
def averaged(method: Method) -> Iterator[None]:
    """The method's encoders have the mean over ranks in this context, on every rank, and their own after it."""
    own = [tf.identity(v) for v in _variables(method)]
    method.average_running_statistics()
    try:
        yield
    finally:
        for variable, value in zip(_variables(method), own, strict=True):
            variable.assign(value)


def gather(method: Method, ranks: Collectives) -> tf.Tensor:
    """All statistics of every rank: ranks x S, S numbers each."""
    return ranks.allgather(tf.concat([tf.reshape(v, [-1]) for v in _variables(method)], axis=0)[None])


def scatter(method: Method, rows: np.ndarray | None, count: int, ranks: Collectives) -> None:
    """Gives every rank its row of what `gather` returned; rank 0 has the rows, the others know their count."""
    variables = _variables(method)
    shared = tf.Variable(tf.zeros([count, sum(v.shape.num_elements() for v in variables)], variables[0].dtype))
    if ranks.rank == 0:
        shared.assign(rows)
    ranks.broadcast([shared])
    parts = tf.split(shared[ranks.rank], [v.shape.num_elements() for v in variables])
    for variable, part in zip(variables, parts, strict=True):
        variable.assign(tf.reshape(part, variable.shape))


def _variables(method: Method) -> list[tf.Variable]:
    return [v.value for encoder in method.encoders() for v in encoder.running_statistics()]
