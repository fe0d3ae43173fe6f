"""Supervised contrast on a MoCo queue: the step that supcon_in, supcon_out and supcon_suploss share.

B per-rank batch, G global batch, C feature dimension, K queue size. Labels say which keys of the batch and of the queue
are positives besides an image's own key; -1 is no label (MoCo-v2-SupContrast; losses of Khosla et al., 2020).
"""

import abc
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import tensorflow as tf

from moco_tf.config.types import Count, Positive, Share, Value
from moco_tf.contrast import shuffle_bn, supcon
from moco_tf.contrast.collapse import feature_std, still_random
from moco_tf.contrast.key_queue import KeyQueue, check_queue
from moco_tf.contrast.losses import nearest_is_positive
from moco_tf.contrast.momentum import momentum_update, start_as_copy
from moco_tf.methods.base import FIRST_VIEW, SECOND_VIEW, SHUFFLE, Method, normalised, unpack
from moco_tf.networks.encoder import Encoder


class QueueSupCon(Method):
    """MoCo's step with labels beside the keys and a supervised contrastive loss.

    Args:
        query_encoder, key_encoder: of the same structure; the key encoder starts as a copy.
        queue_size: K, keys in the queue.
        key_momentum: m of the key encoder's moving average.
        temperature: tau.
        key_update: "before" the queries and keys are computed, or "after" the optimizer's step.
        **kwargs: of Method.
    """

    uses_labels = True

    def __init__(
        self,
        query_encoder: Encoder,
        key_encoder: Encoder,
        queue_size: Count = 4096,
        key_momentum: Share = 0.99,
        temperature: Positive = 0.2,
        key_update: Literal["before", "after"] = "before",
        **kwargs: Any,
    ) -> None:
        super().__init__(query_encoder, **kwargs)
        self.key_encoder = start_as_copy(key_encoder, query_encoder)
        dim, dtype = query_encoder.config["feature_dim"], query_encoder.variable_dtype
        self.queue = KeyQueue(queue_size, dim, self.seed, dtype, labelled=True)
        self.key_momentum = tf.Variable(key_momentum, trainable=False, dtype=tf.float64)
        self.temperature, self.update_first = temperature, key_update == "before"
        self._update_keys = self.piece(self._update_key_encoder)
        self._encode_keys = self.piece(self._key_forward)
        self._contrast = self.piece(self._query_forward_backward)
        self._enqueue = self.piece(self.queue.enqueue)

    @classmethod
    def check(cls, own: Mapping[str, Value], batch_size: int) -> None:
        check_queue(batch_size, own, batch_size)

    @abc.abstractmethod
    def contrastive_loss(
        self, q: tf.Tensor, k: tf.Tensor, labels: tf.Tensor, s: tf.Tensor, positive: tf.Tensor
    ) -> tf.Tensor:
        """The loss of this rank's queries, before the keys of this step enter self.queue: scalar.

        Args:
            q, k: queries and keys of this rank's images, BxC.
            labels: B int32, -1 for none.
            s, positive: of the queries against the global batch's keys and the queue, Bx(G+K), see supcon.against_keys.
        """

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step on this rank's images and labels, see `unpack`; returns scalar metrics averaged over ranks."""
        im_q, im_k, labels, _ = unpack(data)
        if labels is None:
            raise ValueError("supervised contrast came without labels; expected (images, labels), -1 for none")
        return self.step(im_q, im_k, labels, self.permutation(SHUFFLE, im_q.shape[0]))

    def step(
        self, im_q: tf.Tensor, im_k: tf.Tensor, labels: tf.Tensor, permutation: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        """MoCo's algorithm 1 with labels.

        Args:
            im_q, im_k: images of the queries and of the keys, BxHxWx3.
            labels: B int32, -1 for none.
            permutation: of the G rows; None for no shuffle.

        Returns:
            The metrics, averaged over ranks.
        """
        k, keys = shuffle_bn.encode_shuffled(self._encode_keys, im_k, permutation, self.collectives)  # BxC, GxC
        key_labels = tf.ensure_shape(self.collectives.allgather(labels), [keys.shape[0]])  # G
        gradients, metrics = self._contrast(im_q, k, keys, labels, key_labels)
        in_order = partial(shuffle_bn.in_queue_order, queue_size=self.queue.size, collectives=self.collectives)
        self._enqueue(in_order(keys), in_order(key_labels))
        metrics["queue_random"] = still_random(self.steps_done + 1, keys.shape[0], self.queue.size)
        metrics = self.apply(gradients, metrics)
        if not self.update_first:
            self._update_keys()
        return metrics

    def _update_key_encoder(self) -> None:
        momentum_update(self.query_encoder, self.key_encoder, self.key_momentum)

    def _key_forward(self, images: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        """Keys, after the moving average where it stands before them: both are one piece, after the shuffle."""
        if self.update_first:
            self._update_key_encoder()
        return normalised(self.key_encoder(self.view(images, SECOND_VIEW, positions), training=True))

    def _query_forward_backward(
        self, im_q: tf.Tensor, k: tf.Tensor, keys: tf.Tensor, labels: tf.Tensor, key_labels: tf.Tensor
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        queue, first_key = self.queue, self.collectives.rank * im_q.shape[0]
        with tf.GradientTape() as tape:
            q = normalised(self.query_encoder(self.view(im_q, FIRST_VIEW), training=True))  # BxC
            s, positive = supcon.against_keys(
                q, keys, queue.keys, labels, key_labels, queue.labels, self.temperature, first_key
            )
            loss = self.contrastive_loss(q, k, labels, s, positive)
        gradients = self.gradients(tape, loss)
        top1, top5 = nearest_is_positive(s, positive)
        return gradients, {"loss": loss, "contrast_top1": top1, "contrast_top5": top5, "feature_std": feature_std(q)}

    def notes(self, batch_size: int) -> list[str]:
        return self.queue.notes(batch_size)

    def state(self) -> dict[str, dict[str, tf.Variable] | tf.Variable]:
        keys = {name: v.value for name, v in self.key_encoder.named_variables().items()}
        return {**super().state(), "key_encoder": keys, **self.queue.state()}
