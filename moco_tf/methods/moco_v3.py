"""MoCo v3 (Chen, Xie and He, 2021): two views, a predictor, a momentum encoder, no queue.

B per-rank batch, G global batch, C feature dimension.
"""

from typing import Any

import tensorflow as tf

from moco_tf.config.types import Positive, Share
from moco_tf.contrast.collapse import feature_std
from moco_tf.contrast.losses import info_nce_of_batch
from moco_tf.contrast.momentum import momentum_update, start_as_copy
from moco_tf.methods.base import FIRST_VIEW, SECOND_VIEW, Method, normalised, unpack
from moco_tf.networks.encoder import Encoder
from moco_tf.networks.heads import mlp


class MoCoV3(Method):
    """Contrasts the prediction of each view with the momentum encoder's keys of the other view, of all ranks.

    The views pass one after the other, each with batch statistics of its own. The predictor has the projector's hidden
    width; it ends with a batch norm where the projector has three layers: on the paper's ViTs, not on its ResNets.

    Args:
        query_encoder, key_encoder: of the same structure; the key encoder starts as a copy.
        key_momentum: m of the key encoder's moving average; --key_momentum_schedule=cosine lets it rise to 1.
        temperature: tau; ViTs have 0.2.
        **kwargs: of Method.
    """

    norms, symmetric = "sync", True

    def __init__(
        self,
        query_encoder: Encoder,
        key_encoder: Encoder,
        key_momentum: Share = 0.99,
        temperature: Positive = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(query_encoder, **kwargs)
        self.key_encoder = start_as_copy(key_encoder, query_encoder)
        dim, config = query_encoder.features_out, query_encoder.config
        widths = dim, config["hidden_dim"] or query_encoder.backbone.features, dim
        last = "norm" if config["head"] == "mlp_bn3" else "nothing"
        self.predictor = mlp(widths, norm=True, last=last, dtype=query_encoder.dtype_policy)
        self.key_momentum = tf.Variable(key_momentum, trainable=False, dtype=tf.float64)
        self.temperature = temperature
        self._see = self.piece(self._both_views)
        self._update_keys = self.piece(self._update_key_encoder)
        self._encode_keys = self.piece(self._key_forward)
        self._contrast = self.piece(self._query_forward_backward)

    def notes(self, batch_size: int) -> list[str]:
        seen = f"all {batch_size} images (SyncBN)" if self.bn == "sync" else "the images of one rank"
        return [f"batch norms see {seen}; no queue: {batch_size - 1} negatives for each query"]

    def train_step(self, data: tf.Tensor | tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step on this rank's images, see `unpack`; returns scalar metrics averaged over ranks."""
        images, other_images, _, _ = unpack(data)
        return self.step(images, other_images)[0]

    def step(self, images: tf.Tensor, other_images: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Algorithm 1, the symmetric form.

        Returns:
            The metrics, averaged over ranks; and this rank's losses of the first view's queries and of the second's.
        """
        x1, x2 = self._see(images, other_images)
        self._update_keys()
        k1, k2 = self._keys(x1), self._keys(x2)  # GxC
        gradients, metrics, losses = self._contrast(x1, x2, k1, k2)
        return self.apply(gradients, metrics), losses

    def _both_views(self, images: tf.Tensor, other_images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.view(images, FIRST_VIEW), self.view(other_images, SECOND_VIEW)

    def _update_key_encoder(self) -> None:
        momentum_update(self.query_encoder, self.key_encoder, self.key_momentum)

    def _keys(self, x: tf.Tensor) -> tf.Tensor:
        """The keys of all ranks."""
        k = self._encode_keys(x)
        return tf.ensure_shape(self.collectives.allgather(k), [k.shape[0] * self.collectives.size, k.shape[1]])

    def _key_forward(self, x: tf.Tensor) -> tf.Tensor:
        return normalised(self.key_encoder(x, training=True))

    def _predictions(self, x: tf.Tensor) -> tf.Tensor:
        predicted = self.predictor(self.query_encoder(x, training=True), training=True)
        return tf.cast(predicted, self.query_encoder.variable_dtype)

    def _query_forward_backward(
        self, x1: tf.Tensor, x2: tf.Tensor, k1: tf.Tensor, k2: tf.Tensor
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor], tf.Tensor]:
        first_key = self.collectives.rank * x1.shape[0]
        with tf.GradientTape() as tape:
            q1, q2 = (normalised(self._predictions(x)) for x in (x1, x2))  # BxC
            loss1, top1, top5 = info_nce_of_batch(q1, k2, first_key, self.temperature)
            loss2, _, _ = info_nce_of_batch(q2, k1, first_key, self.temperature)
            loss = loss1 + loss2
        gradients = self.gradients(tape, loss)
        metrics = {"loss": loss, "contrast_top1": top1, "contrast_top5": top5, "feature_std": feature_std(q1)}
        return gradients, metrics, tf.stack([loss1, loss2])

    def learnt(self) -> dict[str, Any]:
        return {**super().learnt(), **self.predictor.named_parameters("predictor")}

    def state(self) -> dict[str, dict[str, tf.Variable] | tf.Variable]:
        keys = {name: v.value for name, v in self.key_encoder.named_variables().items()}
        return {**super().state(), "key_encoder": keys}
