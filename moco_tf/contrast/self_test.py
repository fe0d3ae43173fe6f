"""A shuffle and an enqueue, compiled by XLA and compared with NumPy: what a wrong compiler has been seen to spoil."""

import numpy as np
import tensorflow as tf

from moco_tf.contrast.key_queue import KeyQueue
from moco_tf.contrast.shuffle_bn import unshuffle
from moco_tf.training import compiled
from moco_tf.training.collectives import SingleProcess
from moco_tf.training.files import one_line

_BATCH, _QUEUE, _DIM = 256, 1000, 128  # the second enqueue does not end where the queue does


def self_test() -> str:
    """What is wrong with compiled gathers and scatters on this machine, in one line; empty if they are right."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_BATCH, 8, 8, 3), np.uint8)
    keys = rng.standard_normal((_BATCH, _DIM), np.float32)
    permutation = rng.permutation(_BATCH).astype(np.int32)
    queue, before = KeyQueue(_QUEUE, _DIM), 900
    queue.pointer.assign(before)
    want = [images[permutation], keys[np.argsort(permutation)], queue.keys.numpy()]
    want[2][(before + np.arange(_BATCH)) % _QUEUE] = want[1]
    try:
        shuffled, every = _shuffle_and_enqueue(queue, tf.constant(images), tf.constant(keys), tf.constant(permutation))
    except tf.errors.OpError as error:
        return f"XLA cannot compile a shuffle and an enqueue ({one_line(error)}); give --jit_compile=false"
    for name, found, right in zip(("shuffle", "unshuffle", "enqueue"), (shuffled, every, queue.keys), want):
        if wrong := int(np.any(found.numpy() != right, axis=tuple(range(1, right.ndim))).sum()):
            return (
                f"{wrong} of {len(right)} rows of a compiled {name} differ from NumPy's, expected none: XLA gives "
                "wrong results on this machine; install a newer ptxas and driver, or give --jit_compile=false"
            )
    return ""


def _shuffle_and_enqueue(
    queue: KeyQueue, images: tf.Tensor, keys: tf.Tensor, permutation: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The shuffled images, and the keys in their own order, which the queue takes."""

    @tf.function(autograph=False, jit_compile=True)
    def both(images: tf.Tensor, keys: tf.Tensor, permutation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        _, every = unshuffle(keys, permutation, SingleProcess())
        queue.enqueue(every)
        return tf.gather(images, permutation), every

    with compiled.first_use():
        return both(images, keys, permutation)
