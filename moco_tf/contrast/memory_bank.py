"""The memory bank: one feature for every training image, as it was when the image was last seen (NPID, section 3.1)."""

import tensorflow as tf

from moco_tf.contrast.key_queue import unit_noise
from moco_tf.contrast.nce import update_rows


class MemoryBank:
    """n rows of C dimensions, row i of image i; every rank holds all of them and replaces the same rows.

    The bank of ImageNet, 1.28 million x 128 in float32, takes 656 MB a rank. Rows start as unit noise.

    Args:
        num_examples: n, training images.
        feature_dim: C.
        momentum: weight of the new feature in a row.
        seed: of the noise; the same on all ranks.
        dtype: of the rows.
    """

    def __init__(
        self, num_examples: int, feature_dim: int, momentum: float = 0.5, seed: int = 0, dtype: str = "float32"
    ) -> None:
        noise = unit_noise(num_examples, feature_dim, seed, dtype)
        self.rows = tf.Variable(noise, trainable=False, name="bank")  # nxC
        self.size, self.momentum = num_examples, momentum

    def similarities(self, features: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Inner products of each feature with its rows of the bank: BxC, BxR row numbers to BxR.

        The gradient flows into features alone.
        """
        if features.shape[0] * rows.shape[1] < self.size:
            return tf.einsum("bc,brc->br", features, tf.stop_gradient(tf.gather(self.rows, rows)))
        # More rows than the bank has: one matrix product with all of it, and no row is copied.
        return tf.gather(self.all_similarities(features), rows, batch_dims=1)

    def all_similarities(self, features: tf.Tensor) -> tf.Tensor:
        """Inner products of each feature with every row: BxC to Bxn."""
        return tf.einsum("bc,nc->bn", features, tf.stop_gradient(self.rows))

    def replace(self, indices: tf.Tensor, features: tf.Tensor) -> None:
        """Moves the rows of the global batch's images (G row numbers) towards their features (GxC).

        An image that is twice in a batch, as the substitute of an unreadable one, moves to one of its features.
        """
        rows = update_rows(tf.gather(self.rows, indices), features, self.momentum)
        self.rows.scatter_nd_update(indices[:, None], rows)
