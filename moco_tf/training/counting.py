"""Counts the bytes that cross ranks in a step, from the shapes that its collectives meet while it is traced."""

import math
from collections.abc import Callable

import tensorflow as tf

from moco_tf.training.collectives import Collectives


class Counting:
    """Collectives that note what each of them is given, and pass it on.

    Counted are the exchanges of a step: alltoall (images to their shuffled places), allgather (keys, labels) and
    allreduce (`mean`: gradients and metrics). A branch of a tf.cond counts whether it is taken or not: NPID's estimate
    of Z, 4 bytes, happens in the first step alone.

    Args:
        collectives: what really crosses ranks.
        batch: images of a rank; stands for a number of rows that only a run knows. Such rows are those of a shuffle,
            where a rank sends exactly its batch.
    """

    def __init__(self, collectives: Collectives, batch: int) -> None:
        self._inner, self._batch = collectives, batch
        self.rank, self.size = collectives.rank, collectives.size
        self.local_rank, self.local_size = collectives.local_rank, collectives.local_size
        self._given: dict[str, list[int]] = {}

    def alltoall(self, rows: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
        self._note("alltoall", [rows])
        return self._inner.alltoall(rows, splits)

    def allgather(self, rows: tf.Tensor) -> tf.Tensor:
        self._note("allgather", [rows])
        return self._inner.allgather(rows)

    def mean(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        self._note("allreduce", tensors)
        return self._inner.mean(tensors)

    def broadcast(self, variables: list[tf.Variable]) -> None:
        self._inner.broadcast(variables)

    def barrier(self) -> None:
        self._inner.barrier()

    def during(self, trace: Callable[[], object]) -> dict[str, dict[str, int]]:
        """What each collective is given while trace() runs, which traces one step: by name

        calls: number of exchanges.
        bytes: what this rank hands over.
        sent_bytes: what leaves it for other ranks, see `sent`.
        """
        self._given = {}
        trace()
        return {
            name: {"calls": len(given), "bytes": sum(given), "sent_bytes": sent(name, sum(given), self.size)}
            for name, given in self._given.items()
        }

    def _note(self, name: str, tensors: list[tf.Tensor]) -> None:
        self._given.setdefault(name, []).append(sum(self._bytes(tensor) for tensor in tensors))

    def _bytes(self, tensor: tf.Tensor) -> int:
        first, *rest = tensor.shape.as_list() or [1]
        return math.prod([self._batch if first is None else first, *rest]) * tensor.dtype.size


def sent(name: str, given: int, ranks: int) -> int:
    """Bytes that leave each of n ranks for others when each hands over `given`; 0 of one rank.

    alltoall: (n - 1) / n given, the mean over shuffles. allgather: (n - 1) given, as a ring passes every part on.
    allreduce: 2 (n - 1) / n given, a ring's reduce-scatter and allgather.
    """
    share = {"alltoall": 1 / ranks, "allgather": 1, "allreduce": 2 / ranks}[name]
    return round(given * (ranks - 1) * share)
