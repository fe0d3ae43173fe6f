"""The queue of keys: a first-in first-out dictionary of negatives as large as wished (MoCo, section 3.2)."""

import tensorflow as tf


class KeyQueue:
    """K keys of C dimensions, the oldest replaced first.

    Rows start as unit vectors of normal noise, as in MoCo. A batch that reaches past the last row goes on at the first:
    exact for any K, although rows of one batch then leave the queue at different steps when G does not divide K.

    Args:
        size: K, number of keys.
        feature_dim: C.
        seed: of the noise; the same on all ranks.
        dtype: of the keys.
    """

    def __init__(self, size: int, feature_dim: int, seed: int = 0, dtype: str = "float32") -> None:
        noise = tf.random.stateless_normal([size, feature_dim], [seed, 0x9E77], alg="philox")
        self.keys = tf.Variable(
            tf.cast(tf.math.l2_normalize(noise, axis=1), dtype), trainable=False, name="queue"
        )  # KxC
        self.pointer = tf.Variable(0, trainable=False, dtype=tf.int64, name="queue_pointer")
        self.size = size

    def enqueue(self, keys: tf.Tensor) -> None:
        """Replaces the oldest rows by the GxC keys of the global batch and moves the pointer."""
        count = keys.shape[0]
        if count is None or count > self.size:
            raise ValueError(f"a batch of {count} keys does not fit a queue of {self.size}; raise --queue_size")
        rows = (self.pointer + tf.range(count, dtype=tf.int64)) % self.size
        # A scatter works at any pointer in one compiled program; a slice assignment would compile anew for each.
        self.keys.scatter_nd_update(rows[:, None], keys)
        self.pointer.assign((self.pointer + count) % self.size)

    def state(self) -> dict[str, tf.Variable]:
        """Variables for a checkpoint."""
        return {"queue": self.keys, "queue_pointer": self.pointer}
