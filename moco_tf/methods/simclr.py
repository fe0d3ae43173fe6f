"""SimCLR (Chen et al., 2020, "A Simple Framework for Contrastive Learning of Visual Representations").

B per-rank batch, G global batch, C feature dimension.
"""

from typing import Any

import tensorflow as tf

from moco_tf.config.types import Positive
from moco_tf.contrast.collapse import feature_std
from moco_tf.contrast.supcon import batch_accuracy, supcon_batch
from moco_tf.methods.base import FIRST_VIEW, SECOND_VIEW, Method, normalised, unpack
from moco_tf.networks.encoder import Encoder


class SimCLR(Method):
    """Contrasts the two views of each image with all views of all other images of the global batch (NT-Xent).

    Batch norms see both views of a rank's images at once, 2B rows, as in the authors' code, but not those of other
    ranks, as there.

    Args:
        query_encoder: the encoder.
        temperature: tau.
        **kwargs: of Method.
    """

    def __init__(self, query_encoder: Encoder, temperature: Positive = 0.5, **kwargs: Any) -> None:
        super().__init__(query_encoder, **kwargs)
        self.temperature = temperature
        self._encode = self.piece(self._forward)
        self._contrast = self.piece(self._loss_and_gradient)

    def train_step(self, data: tf.Tensor | tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step on this rank's images, see `unpack`; returns scalar metrics, the same on all ranks.

        Every rank computes the loss of the whole global batch and takes its gradient in its own features: exact, and
        no gradient of a collective is needed (that of Horovod's allgather would be averaged).
        """
        images, other_images, _, _ = unpack(data)
        batch, collectives = images.shape[0], self.collectives
        with tf.GradientTape() as tape:
            z = self._encode(images, other_images)  # Bx2xC
        every = tf.ensure_shape(collectives.allgather(z), [batch * collectives.size, 2, z.shape[2]])  # Gx2xC
        gradient, metrics = self._contrast(every)  # Gx2xC
        own = gradient[collectives.rank * batch : (collectives.rank + 1) * batch]
        # Parameters' gradients are averaged over ranks; this loss wants their sum.
        gradients = self.gradients(tape, z, own * collectives.size)
        return self.apply(gradients, metrics)

    def _forward(self, images: tf.Tensor, other_images: tf.Tensor) -> tf.Tensor:
        views = tf.concat([self.view(images, FIRST_VIEW), self.view(other_images, SECOND_VIEW)], axis=0)
        z = normalised(self.query_encoder(views, training=True))  # 2BxC
        return tf.stack(tf.split(z, 2), axis=1)

    def _loss_and_gradient(self, z: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = supcon_batch(z, temperature=self.temperature)
        top1, top5 = batch_accuracy(z)
        metrics = {"loss": loss, "contrast_top1": top1, "contrast_top5": top5, "feature_std": feature_std(z[:, 0])}
        return tape.gradient(loss, z), metrics
