"""The self-test of compiled gathers finds none wrong here, and finds wrong ones that are planted."""

import tensorflow as tf

from moco_tf.contrast import self_test
from moco_tf.contrast.key_queue import KeyQueue


def test_xla_of_this_machine():
    assert self_test.self_test() == ""


def test_a_gather_that_leaves_rows_out(monkeypatch):
    """As ptxas 12.5 was seen to do on an H100: some rows are zero."""
    gather = tf.gather

    def wrong(rows, indices):
        return gather(rows, indices) * tf.cast(tf.reshape(tf.range(256) >= 3, [256, 1, 1, 1]), rows.dtype)

    monkeypatch.setattr(
        self_test.tf, "gather", lambda rows, i: wrong(rows, i) if rows.shape.rank == 4 else gather(rows, i)
    )
    said = self_test.self_test()
    assert said.startswith("3 of 256 rows of a compiled shuffle differ from NumPy's, expected none: XLA gives wrong")


def test_an_enqueue_one_row_on(monkeypatch):
    enqueue = KeyQueue.enqueue

    def late(queue, keys):
        queue.pointer.assign_add(1)
        enqueue(queue, keys)

    monkeypatch.setattr(KeyQueue, "enqueue", late)
    assert self_test.self_test().startswith("257 of 1000 rows of a compiled enqueue differ")


def test_what_cannot_be_compiled(monkeypatch):
    def fail(*_):
        raise tf.errors.InternalError(None, None, "No PTX compilation provider is available")

    monkeypatch.setattr(self_test, "_shuffle_and_enqueue", fail)
    assert self_test.self_test() == (
        "XLA cannot compile a shuffle and an enqueue (No PTX compilation provider is available); give "
        "--jit_compile=false"
    )
