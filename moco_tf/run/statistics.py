"""Running statistics of the batch norms: every rank has its own, for it sees other images.

Training never reads them, and what evaluates wants their mean over ranks. Saving and evaluating must not change them,
or a run with one more checkpoint (a preemption) would end with other digits: so they are averaged for a moment only,
and a checkpoint holds both the means and the ranks' own.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from moco_tf.run.learner import Learner
from moco_tf.training.checkpoint import RANK_STATISTICS
from moco_tf.training.collectives import Collectives


@contextlib.contextmanager
def averaged(learner: Learner, collectives: Collectives) -> Iterator[None]:
    """The encoders have the mean over ranks in this context, on every rank, and their own after it."""
    own = [tf.identity(v) for v in learner.running_statistics()]
    average(learner, collectives)
    try:
        yield
    finally:
        for variable, value in zip(learner.running_statistics(), own, strict=True):
            variable.assign(value)


def average(learner: Learner, collectives: Collectives) -> None:
    """Gives every rank the mean of all ranks' statistics."""
    variables = learner.running_statistics()
    means = collectives.mean([tf.identity(v) for v in variables]) if variables else []
    for variable, mean in zip(variables, means, strict=True):
        variable.assign(mean)


def gather(learner: Learner, collectives: Collectives) -> dict[str, tf.Tensor]:
    """{RANK_STATISTICS: all statistics of every rank, ranks x S}; empty where there are none."""
    flat = [tf.reshape(v, [-1]) for v in learner.running_statistics()]
    return {RANK_STATISTICS: collectives.allgather(tf.concat(flat, axis=0)[None])} if flat else {}


def scatter(learner: Learner, rows: np.ndarray | None, count: int, collectives: Collectives) -> None:
    """Gives every rank its row of what `gather` returned.

    Args:
        learner: whose statistics to set.
        rows: ranks x S, on rank 0 only.
        count: the number of rows, on every rank.
        collectives: what crosses ranks.
    """
    variables = learner.running_statistics()
    sizes = [v.shape.num_elements() for v in variables]
    shared = tf.Variable(tf.zeros([count, sum(sizes)], variables[0].dtype))
    if collectives.rank == 0:
        shared.assign(rows)
    collectives.broadcast([shared])
    for variable, part in zip(variables, tf.split(shared[collectives.rank], sizes), strict=True):
        variable.assign(tf.reshape(part, variable.shape))
