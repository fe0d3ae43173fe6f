"""Copies batches to the GPU while it computes the step before."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

_AHEAD = 2  # batches on the device besides the one in use


def to_device(batches: Generator[tuple, None, None], device: str) -> Iterator[tuple]:
    """The same batches as tensors on a device. A thread takes and copies them; it ends with the iterator.

    So the GPU computes while batches are made and copied.
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
