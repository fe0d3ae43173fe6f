"""Momentum contrast: MoCo (He et al., 2020) and MoCo v2 (Chen et al., 2020).

B per-rank batch, G global batch, C feature dimension, K queue size. The step is the paper's algorithm 1; v1 and v2
differ in the encoder's head, the views and the temperature alone.
"""

import tensorflow as tf

from moco_tf.contrast import shuffle_bn
from moco_tf.contrast.key_queue import KeyQueue
from moco_tf.contrast.losses import contrast_accuracy, info_nce, info_nce_logits
from moco_tf.contrast.momentum import copy_encoder, momentum_update
from moco_tf.methods.base import Method
from moco_tf.networks.encoder import Encoder

# The uses of randomness in a step, see Method.seed_of.
QUERY_VIEW, KEY_VIEW, SHUFFLE, OTHER_SHUFFLE = range(4)


class MoCo(Method):
    """Contrasts each query with its key and a queue of earlier keys.

    Args:
        query_encoder, key_encoder: of the same structure; the key encoder starts as a copy.
        queue_size: K.
        key_momentum: m of the key encoder's moving average.
        temperature: tau.
        key_update: "before" the queries and keys are computed, as in algorithm 1, or "after" the optimizer's step.
        shuffle_bn: shuffles key images across ranks and splits of the batch norms.
        symmetric: sums the losses of both directions, each view once as query and once as key, against the same queue;
            the keys of both enter the queue (the CIFAR-10 demo's symmetric loss).
        **kwargs: of Method.
    """

    def __init__(
        self,
        query_encoder: Encoder,
        key_encoder: Encoder,
        queue_size: int = 65536,
        key_momentum: float = 0.999,
        temperature: float = 0.07,
        symmetric: bool = False,
        key_update: str = "before",
        shuffle_bn: bool = True,
        **kwargs: object,
    ) -> None:
        super().__init__(query_encoder, **kwargs)
        self.key_encoder = key_encoder
        self.key_encoder.trainable = False
        copy_encoder(query_encoder, key_encoder)
        self.queue = KeyQueue(queue_size, query_encoder.config["feature_dim"], self.seed, query_encoder.variable_dtype)
        self.key_momentum, self.temperature, self.symmetric = key_momentum, temperature, symmetric
        self.update_first, self.shuffled = key_update == "before", shuffle_bn
        self._update_keys = self.piece(self._update_key_encoder)
        self._encode_keys = self.piece(self._key_forward)
        self._contrast = self.piece(self._query_forward_backward)
        self._enqueue = self.piece(self.queue.enqueue)

    def train_step(self, data: tf.Tensor | tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step on this rank's images; returns scalar metrics averaged over ranks.

        Args:
            data: BxHxWx3 images, or (images for queries, images for keys) where these were cropped before; labels
                that follow are ignored.
        """
        images = data[0] if isinstance(data, tuple | list) else data
        im_q, im_k = images if isinstance(images, tuple | list) else (images, images)
        batch, ranks = im_q.shape[0], self.collectives.size
        draw = shuffle_bn.draw_permutation if self.shuffled else shuffle_bn.no_permutation
        uses = (SHUFFLE, OTHER_SHUFFLE)[: 1 + self.symmetric]
        metrics, _ = self.step(im_q, im_k, [draw(self.seed_of(use), batch, ranks) for use in uses])
        return metrics

    def step(
        self, im_q: tf.Tensor, im_k: tf.Tensor, shuffles: list[tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """Algorithm 1 with given permutations of the G rows: one for the keys, one more for the other direction.

        Returns:
            The metrics, averaged over ranks, and this rank's logits, Bx(1+K), of each direction.
        """
        if self.update_first:
            self._update_keys()
        k, keys = self._keys(im_k, shuffles[0], KEY_VIEW)  # BxC, GxC
        if self.symmetric:
            k_other, keys_other = self._keys(im_q, shuffles[1], QUERY_VIEW)
            keys = tf.concat([keys_other, keys], axis=0)  # 2GxC: the keys of the first view come first
            gradients, metrics, logits = self._contrast(im_q, k, im_k, k_other)
        else:
            gradients, metrics, logits = self._contrast(im_q, k)
        self._enqueue(keys)
        metrics = self.apply(gradients, metrics)
        if not self.update_first:
            self._update_keys()
        return metrics, logits

    def _update_key_encoder(self) -> None:
        momentum_update(self.query_encoder, self.key_encoder, self.key_momentum)

    def _keys(self, images: tf.Tensor, permutation: tf.Tensor, view: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Keys of this rank's images and of all, computed on shuffled batches: BxC, GxC."""
        images = shuffle_bn.shuffle(images, permutation, self.collectives)
        batch, ranks = images.shape[0], self.collectives.size
        rows = shuffle_bn.shuffled_rows(permutation, batch, self.collectives)
        keys = self._encode_keys(images, shuffle_bn.row_positions(rows, batch, ranks), view)
        return shuffle_bn.unshuffle(keys, permutation, self.collectives)

    def _view(self, images: tf.Tensor, positions: tf.Tensor, view: int) -> tf.Tensor:
        return self.views[view](images, self.seed_of(view), positions, images.shape[0] * self.collectives.size)

    def _key_forward(self, images: tf.Tensor, positions: tf.Tensor, view: int) -> tf.Tensor:
        return _normalised(self.key_encoder(self._view(images, positions, view), training=True))

    def _query_forward_backward(
        self,
        im_q: tf.Tensor,
        k: tf.Tensor,
        im_other: tf.Tensor | None = None,
        k_other: tf.Tensor | None = None,
    ) -> tuple[list[tf.Tensor], dict[str, tf.Tensor], list[tf.Tensor]]:
        positions = shuffle_bn.positions(im_q.shape[0], self.collectives)
        with tf.GradientTape() as tape:
            q = _normalised(self.query_encoder(self._view(im_q, positions, QUERY_VIEW), training=True))  # BxC
            logits = [info_nce_logits(q, k, self.queue.keys, self.temperature)]  # Bx(1+K)
            if im_other is not None:
                q_other = _normalised(self.query_encoder(self._view(im_other, positions, KEY_VIEW), training=True))
                logits.append(info_nce_logits(q_other, k_other, self.queue.keys, self.temperature))
            loss = tf.add_n([info_nce(each) for each in logits])
        gradients = tape.gradient(loss, [v.value for v in self.query_encoder.parameters()])
        top1, top5 = contrast_accuracy(logits[0])
        return gradients, {"loss": loss, "contrast_top1": top1, "contrast_top5": top5}, logits

    def state(self) -> dict[str, dict[str, tf.Variable] | tf.Variable]:
        keys = {name: v.value for name, v in self.key_encoder.named_variables().items()}
        return {**super().state(), "key_encoder": keys, **self.queue.state()}


def _normalised(x: tf.Tensor) -> tf.Tensor:
    return tf.math.l2_normalize(x, axis=1)
