"""Supervised training by cross entropy: the row that contrastive methods are compared with.

B per-rank batch, L classes.
"""

from typing import Any

import tensorflow as tf

from moco_tf.contrast.losses import nearest_is_positive
from moco_tf.methods.base import FIRST_VIEW, Method, unpack
from moco_tf.networks.encoder import Encoder


class Supervised(Method):
    """Cross entropy of a linear classifier, the encoder's head, on the views of the other methods.

    Images without a label (-1) count for nothing; the mean is over a rank's labelled images.
    """

    num_views, uses_labels, classifies = 1, True, True

    def __init__(self, query_encoder: Encoder, **kwargs: Any) -> None:
        super().__init__(query_encoder, **kwargs)
        self._learn = self.piece(self._forward_backward)

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step on this rank's images and labels, see `unpack`; returns scalar metrics averaged over ranks."""
        images, _, labels, _ = unpack(data)
        if labels is None:
            raise ValueError("supervised training came without labels; expected (images, labels), -1 for none")
        return self.apply(*self._learn(images, labels))

    def _forward_backward(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        with tf.GradientTape() as tape:
            logits = self.query_encoder(self.view(images, FIRST_VIEW), training=True)  # BxL
            labelled = tf.cast(labels >= 0, logits.dtype)
            entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
            loss = tf.math.divide_no_nan(tf.reduce_sum(entropy * labelled), tf.reduce_sum(labelled))
        gradients = self.gradients(tape, loss)
        top1, top5 = nearest_is_positive(logits, tf.one_hot(labels, logits.shape[1], True, False, dtype=tf.bool))
        return gradients, {"loss": loss, "train_top1": top1, "train_top5": top5}
