"""In which order an epoch takes the examples: any, or one that large files can be read in.

`block_order` is a shuffle that reads ahead block by block. What it shuffles, and what not:

- Blocks of BLOCK examples that are stored one after another are put in a random order over the whole data set.
- That sequence is cut into LANES parts of equal length, each read from its beginning: place p of the epoch takes the
  next example of lane p mod LANES. Rank r of n (a divisor of LANES) reads the lanes l with l mod n = r and no others.
- In a lane, windows of WINDOW examples are shuffled. Their ends differ from lane to lane, so that reading is even.

So at any time the next examples come from LANES x WINDOW = 16,384, which are 512 blocks out of all places of the data
set. Examples that are neighbours on disk (of one class, in a pack of class folders) stay within one window of each
other: a batch of 256 holds four of each lane's window. Reading ahead keeps at most 2 x 16,384 examples of all ranks in
the page cache, 1 GB of images of 30 kB. The order is a function of seed, epoch and number of examples, as the other one
is: a run resumes at any step, and on any number of ranks that divides LANES.
"""

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Condition

import numpy as np

BLOCK, LANES, WINDOW = 32, 64, 256
ORDERS = ("random", "blocks")


@dataclasses.dataclass(frozen=True)
class Share:
    """Which rank's share of the images is meant: rank r of `size` takes the places r, r + size, r + 2 size ..."""

    rank: int = 0
    size: int = 1


EVERYTHING = Share()


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The permutation of all examples in an epoch, int64 N; every one is as likely."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def block_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The permutation of all examples in an epoch, int64 N, that reads block by block."""
    rng = np.random.default_rng([seed, epoch, BLOCK])
    number = np.arange(num_examples) // BLOCK  # of each example's block
    rank = rng.permutation(number[-1] + 1)[number]
    sequence = np.argsort(rank, kind="stable")  # whole blocks, in the order of their ranks
    lengths = -(-(num_examples - np.arange(LANES)) // LANES)  # of each lane; the first ones may have one more
    order = np.empty(num_examples, np.int64)
    for lane, part in enumerate(np.split(sequence, np.cumsum(lengths)[:-1])):
        place = np.arange(len(part)) + WINDOW * lane // LANES
        order[lane::LANES] = part[np.lexsort((rng.random(len(part)), place // WINDOW))]
    return order


def span_reader(
    paths: list[str], file: np.ndarray, offset: np.ndarray, length: np.ndarray
) -> Callable[[np.ndarray], None]:
    """What ReadAhead needs of examples in large files: one read of each file from the first of them to the last.

    Args:
        paths: of the files.
        file: number of each example's file.
        offset, length: of each example in it, in bytes.
    """

    def read(indices: np.ndarray) -> None:
        for number in np.unique(file[indices]):
            own = indices[file[indices] == number]
            start, stop = int(offset[own].min()), int((offset[own] + length[own]).max())
            with open(paths[number], "rb", buffering=0) as stream:
                os.pread(stream.fileno(), stop - start, start)

    return read


class ReadAhead:
    """Reads blocks into the system's page cache, in the order of their first use, before their examples are asked for.

    It has its own thread, which stays at most `ahead` examples before the place that `reached` gave last, and ends with
    `close`.

    Args:
        indices: of the examples, in the order of their use.
        read: reads all of the given examples, which are neighbours on disk. Its errors are ignored: the reader of the
            examples meets them again.
        ahead: examples.
    """

    def __init__(self, indices: np.ndarray, read: Callable[[np.ndarray], None], ahead: int = LANES * WINDOW) -> None:
        self._indices, self._read, self._ahead = indices, read, ahead
        self._limit, self._closed, self._moved = ahead, False, Condition()
        self._pool = ThreadPoolExecutor(1)
        self._pool.submit(self._run)

    def reached(self, place: int) -> None:
        """Tells how many examples have been used."""
        with self._moved:
            self._limit = place + self._ahead
            self._moved.notify()

    def close(self) -> None:
        """Ends the thread."""
        with self._moved:
            self._closed = True
            self._moved.notify()
        self._pool.shutdown()

    def _run(self) -> None:
        by_block = np.argsort(self._indices // BLOCK, kind="stable")  # within a block, in the order of their use
        blocks = np.split(by_block, np.flatnonzero(np.diff(self._indices[by_block] // BLOCK)) + 1)
        for places in sorted(blocks, key=lambda places: places[0]):
            with self._moved:
                while not self._closed and places[0] >= self._limit:
                    self._moved.wait()
                if self._closed:
                    return
            try:
                self._read(self._indices[places])
            except OSError:
                continue
