"""Momentum contrast: MoCo (He et al., 2020) and MoCo v2 (Chen et al., 2020).

B per-rank batch, G global batch, C feature dimension, K queue size. The step is the paper's algorithm 1; v1 and v2
differ in the encoder's head, the views and the temperature alone.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import tensorflow as tf

from moco_tf.config.types import Count, Positive, Share, Value
from moco_tf.contrast import shuffle_bn
from moco_tf.contrast.collapse import feature_std, still_random
from moco_tf.contrast.key_queue import KeyQueue, check_queue
from moco_tf.contrast.losses import contrast_accuracy, info_nce, info_nce_logits
from moco_tf.contrast.momentum import momentum_update, start_as_copy
from moco_tf.methods.base import FIRST_VIEW, OTHER_SHUFFLE, SECOND_VIEW, SHUFFLE, Method, normalised, unpack
from moco_tf.networks.encoder import Encoder


class MoCo(Method):
    """Contrasts each query with its key and a queue of earlier keys.

    Args:
        query_encoder, key_encoder: of the same structure; the key encoder starts as a copy.
        queue_size: K, keys in the queue.
        key_momentum: m of the key encoder's moving average.
        temperature: tau; MoCo v1 has 0.07.
        key_update: "before" the queries and keys are computed, as in algorithm 1, or "after" the optimizer's step.
        symmetric: sums the losses of both directions, each view once as query and once as key, against the same queue;
            the keys of both enter the queue (the CIFAR-10 demo's symmetric loss).
        **kwargs: of Method.
    """

    def __init__(
        self,
        query_encoder: Encoder,
        key_encoder: Encoder,
        queue_size: Count = 65536,
        key_momentum: Share = 0.999,
        temperature: Positive = 0.2,
        symmetric: bool = False,
        key_update: Literal["before", "after"] = "before",
        **kwargs: Any,
    ) -> None:
        super().__init__(query_encoder, **kwargs)
        self.key_encoder = start_as_copy(key_encoder, query_encoder)
        self.queue = KeyQueue(queue_size, query_encoder.config["feature_dim"], self.seed, query_encoder.variable_dtype)
        self.key_momentum = tf.Variable(key_momentum, trainable=False, dtype=tf.float64)
        self.temperature, self.symmetric, self.update_first = temperature, symmetric, key_update == "before"
        self._update_keys = self.piece(self._update_key_encoder)
        self._encode_keys = self.piece(self._key_forward)
        self._contrast = self.piece(self._query_forward_backward)
        self._enqueue = self.piece(self.queue.enqueue)

    @classmethod
    def check(cls, own: Mapping[str, Value], batch_size: int) -> None:
        check_queue(batch_size * (2 if own["symmetric"] else 1), own, batch_size)

    def train_step(self, data: tf.Tensor | tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step on this rank's images, see `unpack`; returns scalar metrics averaged over ranks."""
        im_q, im_k, _, _ = unpack(data)
        uses = (SHUFFLE, OTHER_SHUFFLE)[: 1 + self.symmetric]
        metrics, _ = self.step(im_q, im_k, [self.permutation(use, im_q.shape[0]) for use in uses])
        return metrics

    def step(
        self, im_q: tf.Tensor, im_k: tf.Tensor, shuffles: list[tf.Tensor | None]
    ) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """Algorithm 1 with given permutations of the G rows: one for the keys, one more for the other direction.

        None stands for no shuffle.

        Returns:
            The metrics, averaged over ranks, and this rank's logits, Bx(1+K), of each direction.
        """
        k, keys = self._keys(im_k, SECOND_VIEW, shuffles[0], self.update_first)  # BxC, GxC
        if self.symmetric:
            k_other, keys_other = self._keys(im_q, FIRST_VIEW, shuffles[1])
            keys = tf.concat([keys_other, keys], axis=0)  # 2GxC: the keys of the first view come first
            gradients, metrics, logits = self._contrast(im_q, k, im_k, k_other)
        else:
            gradients, metrics, logits = self._contrast(im_q, k)
        self._enqueue(shuffle_bn.in_queue_order(keys, self.queue.size, self.collectives, 1 + self.symmetric))
        metrics["queue_random"] = still_random(self.steps_done + 1, keys.shape[0], self.queue.size)
        metrics = self.apply(gradients, metrics)
        if not self.update_first:
            self._update_keys()
        return metrics, logits

    def _update_key_encoder(self) -> None:
        momentum_update(self.query_encoder, self.key_encoder, self.key_momentum)

    def _keys(
        self, images: tf.Tensor, use: int, permutation: tf.Tensor | None, update: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        encode = partial(self._encode_keys, use, update)
        return shuffle_bn.encode_shuffled(encode, images, permutation, self.collectives)

    def _key_forward(self, use: int, update: bool, images: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        """Keys, after the moving average where it stands before them: both are one piece, after the shuffle."""
        if update:
            self._update_key_encoder()
        return normalised(self.key_encoder(self.view(images, use, positions), training=True))

    def _query_forward_backward(
        self,
        im_q: tf.Tensor,
        k: tf.Tensor,
        im_other: tf.Tensor | None = None,
        k_other: tf.Tensor | None = None,
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor], list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            q = normalised(self.query_encoder(self.view(im_q, FIRST_VIEW), training=True))  # BxC
            logits = [info_nce_logits(q, k, self.queue.keys, self.temperature)]  # Bx(1+K)
            if im_other is not None:
                q_other = normalised(self.query_encoder(self.view(im_other, SECOND_VIEW), training=True))
                logits.append(info_nce_logits(q_other, k_other, self.queue.keys, self.temperature))
            loss = tf.add_n([info_nce(each) for each in logits])
        gradients = self.gradients(tape, loss)
        top1, top5 = contrast_accuracy(logits[0])
        metrics = {"loss": loss, "contrast_top1": top1, "contrast_top5": top5, "feature_std": feature_std(q)}
        return gradients, metrics, logits

    def notes(self, batch_size: int) -> list[str]:
        return self.queue.notes(batch_size * (1 + self.symmetric))

    def state(self) -> dict[str, dict[str, tf.Variable] | tf.Variable]:
        keys = {name: v.value for name, v in self.key_encoder.named_variables().items()}
        return {**super().state(), "key_encoder": keys, **self.queue.state()}
