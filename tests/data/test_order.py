"""The order that reads by blocks: a permutation that ranks share, neighbours kept close, read ahead of its use."""

import threading
import time

import numpy as np
import pytest

from moco_tf.data import order
from moco_tf.data.order import BLOCK, LANES, WINDOW, ReadAhead, block_order, epoch_order, span_reader


@pytest.mark.parametrize("count", [1, 31, 64, 100, 5000, 70_001])
def test_every_example_once_and_others_each_epoch(count):
    first = block_order(3, 0, count)
    assert first.dtype == np.int64
    np.testing.assert_array_equal(np.sort(first), np.arange(count))
    np.testing.assert_array_equal(first, block_order(3, 0, count))
    if count > 31:
        assert not np.array_equal(first, block_order(3, 1, count))
        assert not np.array_equal(first, block_order(4, 0, count))


def test_a_lane_uses_whole_blocks_close_together():
    """70,001 examples: lanes of 1,094 or 1,093, in which a block's examples are at most two windows apart."""
    chosen = block_order(0, 0, 70_001)
    lane = np.arange(70_001) % LANES
    blocks = [set(chosen[lane == number] // BLOCK) for number in range(LANES)]
    shared = sum(len(own) for own in blocks) - len(set.union(*blocks))
    assert shared <= LANES - 1  # only a block at the end of a lane goes on in the next
    for number in range(LANES):
        own = chosen[lane == number] // BLOCK
        order_of_blocks = np.argsort(own, kind="stable")
        parts = np.split(order_of_blocks, np.flatnonzero(np.diff(own[order_of_blocks])) + 1)
        assert max(part.max() - part.min() for part in parts) < 2 * WINDOW


def test_neighbours_on_disk_are_dealt_out():
    """Of 200 classes that are stored one after another, a batch of 256 meets nearly as many as of a full shuffle."""
    classes = np.arange(100_000) // 500
    met = [
        np.mean([len(set(classes[order_(0, 0, 100_000)[step * 256 : step * 256 + 256]])) for step in range(10, 30)])
        for order_ in (block_order, epoch_order)
    ]
    assert met[0] >= 0.85 * met[1]


def test_first_half_of_an_epoch_is_a_random_half():
    """Of each tenth of the data set, half is used before the epoch's middle: blocks are drawn from everywhere."""
    half = block_order(1, 2, 100_000)[:50_000]
    shares = np.histogram(half, bins=10, range=(0, 100_000))[0] / 10_000
    assert np.abs(shares - 0.5).max() <= 5 * 0.5 / np.sqrt(10_000 / BLOCK)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


def test_reads_ahead_as_far_as_it_may():
    indices = np.concatenate([np.random.default_rng(0).permutation(np.arange(b, b + BLOCK)) for b in (320, 0, 640, 64)])
    read, before = [], threading.active_count()
    ahead = ReadAhead(indices, lambda part: read.append(sorted(part)), ahead=BLOCK + 1)
    wait_until(lambda: len(read) == 2)
    time.sleep(0.02)
    assert read == [list(range(320, 352)), list(range(32))]
    ahead.reached(BLOCK)
    wait_until(lambda: len(read) == 3)
    ahead.close()
    assert len(read) == 3 and threading.active_count() == before


def test_a_read_that_fails_is_passed_over():
    tried = []

    def read(part):
        tried.append(part)
        raise OSError("gone")

    ahead = ReadAhead(np.arange(3 * BLOCK), read)
    wait_until(lambda: len(tried) == 3)
    ahead.close()


def test_spans_go_from_the_first_to_the_last_example_of_each_file(tmp_path, monkeypatch):
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        with open(path, "wb") as file:
            file.write(bytes(100))
    read = []
    monkeypatch.setattr(order.os, "pread", lambda _, count, start: read.append((start, count)))
    file, offset, length = np.array([[0, 0, 0, 1, 1], [0, 10, 30, 0, 50], [10, 20, 5, 50, 7]])
    span_reader(paths, file, offset, length)(np.array([4, 1, 2]))
    assert read == [(10, 25), (50, 7)]
