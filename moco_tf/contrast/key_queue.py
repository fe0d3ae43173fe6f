"""The queue of keys: a first-in first-out dictionary of negatives as large as wished (MoCo, section 3.2)."""

import math
from collections.abc import Mapping

import tensorflow as tf

from moco_tf.config.types import Value
from moco_tf.errors import UserError


class KeyQueue:
    """K keys of C dimensions, the oldest replaced first; with their labels for supervised contrast.

    Rows start as unit vectors of normal noise, as in MoCo, with the label -1: no one's positive. A batch that reaches
    past the last row goes on at the first: exact for any K, although rows of one batch then leave the queue at
    different steps when G does not divide K.

    Args:
        size: K, number of keys.
        feature_dim: C.
        seed: of the noise; the same on all ranks.
        dtype: of the keys.
        labelled: whether each key has a label.
    """

    def __init__(
        self, size: int, feature_dim: int, seed: int = 0, dtype: str = "float32", labelled: bool = False
    ) -> None:
        self.keys = tf.Variable(unit_noise(size, feature_dim, seed, dtype), trainable=False, name="queue")  # KxC
        self.labels = tf.Variable(tf.fill([size], -1), trainable=False, name="queue_labels") if labelled else None  # K
        self.pointer = tf.Variable(0, trainable=False, dtype=tf.int64, name="queue_pointer")
        self.size = size

    def enqueue(self, keys: tf.Tensor, labels: tf.Tensor | None = None) -> None:
        """Replaces the oldest rows by the GxC keys (and G int32 labels) of the global batch and moves the pointer."""
        count = keys.shape[0]
        if count is None or count > self.size:
            raise ValueError(f"a batch of {count} keys does not fit a queue of {self.size}; raise --queue_size")
        rows = (self.pointer + tf.range(count, dtype=tf.int64)) % self.size
        # A scatter works at any pointer in one compiled program; a slice assignment would compile anew for each.
        self.keys.scatter_nd_update(rows[:, None], keys)
        if self.labels is not None:
            self.labels.scatter_nd_update(rows[:, None], labels)
        self.pointer.assign((self.pointer + count) % self.size)

    def notes(self, keys_a_step: int) -> list[str]:
        """What to say of the queue at the start of a run."""
        lines = [
            f"queue {self.size}; the loss rises to about ln(1 + {self.size}) = {math.log1p(self.size):.2f} while real "
            "keys replace the noise, then it falls"
        ]
        if self.size % keys_a_step:
            lines.append(
                f"warning: {keys_a_step} keys a step do not divide the queue of {self.size}; it wraps around: "
                "exact, on any number of ranks, but keys of one step leave at two (the original refuses this)"
            )
        return lines

    def state(self) -> dict[str, tf.Variable]:
        """Variables for a checkpoint."""
        labels = {} if self.labels is None else {"queue_labels": self.labels}
        return {"queue": self.keys, "queue_pointer": self.pointer, **labels}


def check_queue(keys_a_step: int, own: Mapping[str, Value], batch_size: int) -> None:
    """Refuses a queue that is smaller than the keys of one step. Raises UserError."""
    size = int(str(own["queue_size"]))
    if keys_a_step > size:
        raise UserError(
            f"--batch_size={batch_size} brings {keys_a_step} keys a step, expected at most --queue_size={size}; "
            "lower the one or raise the other"
        )


def unit_noise(rows: int, feature_dim: int, seed: int, dtype: str = "float32") -> tf.Tensor:
    """Unit vectors of uniform direction, rows x feature_dim; one seed gives every rank the same."""
    noise = tf.random.stateless_normal([rows, feature_dim], [seed, 0x9E77], alg="philox")
    return tf.cast(tf.math.l2_normalize(noise, axis=1), dtype)
