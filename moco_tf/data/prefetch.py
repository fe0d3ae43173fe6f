"""Copies batches to the GPU while it computes the step before."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

_AHEAD = 2  # batches on the device besides the one in use


def to_device(batches: Generator[tuple, None, None], device: str) -> Iterator[tuple]:
    """The same batches as tensors on a device, taken and copied by a thread of its own that ends with the iterator.

    A copy to a GPU takes place beside what the GPU computes; so does the wait for whoever makes the batches.
    """

    def copied() -> tuple | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with tf.device(device):
            return tf.nest.map_structure(tf.identity, batch)

    pool = ThreadPoolExecutor(1)
    try:
        ahead = deque(pool.submit(copied) for _ in range(_AHEAD))
        while (batch := ahead.popleft().result()) is not None:
            ahead.append(pool.submit(copied))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
        batches.close()
