"""Batches copied ahead: the same ones, and nothing left running."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from moco_tf.data.prefetch import to_device


def batches(count, closed, error_at=None):
    try:
        for number in range(count):
            if number == error_at:
                raise ValueError("broken")
            yield (np.full((2, 3), number, np.uint8), tf.constant([number])), np.array([number, 1])
    finally:
        closed.append(True)


def test_the_same_batches_on_the_device():
    closed, before = [], threading.active_count()
    got = list(to_device(batches(5, closed), "/CPU:0"))
    assert [int(labels[0]) for _, labels in got] == list(range(5))
    for number, ((first, second), labels) in enumerate(got):
        assert all(isinstance(x, tf.Tensor) and "CPU:0" in x.device for x in (first, second, labels))
        np.testing.assert_array_equal(first, np.full((2, 3), number))
    assert closed == [True] and threading.active_count() == before


def test_two_batches_are_taken_ahead_and_the_rest_is_closed():
    closed, taken, before = [], [], threading.active_count()

    def counted():
        for batch in batches(100, closed):
            taken.append(batch)
            yield batch

    iterator = to_device(counted(), "/CPU:0")
    next(iterator)
    iterator.close()
    assert len(taken) <= 3 and threading.active_count() == before


def test_an_error_comes_where_its_batch_would():
    closed = []
    iterator = to_device(batches(5, closed, error_at=2), "/CPU:0")
    assert [int(next(iterator)[1][0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(iterator)
    assert closed == [True]
