"""NPID: non-parametric instance discrimination with a memory bank (Wu et al., 2018).

B per-rank batch, G global batch, C feature dimension, M noise rows of an image, n training images and bank rows.
"""

from typing import Any, Literal

import tensorflow as tf

from moco_tf.config.types import Count, Positive, Share
from moco_tf.contrast import shuffle_bn
from moco_tf.contrast.collapse import feature_std, still_random
from moco_tf.contrast.losses import nearest_is_positive
from moco_tf.contrast.memory_bank import MemoryBank
from moco_tf.contrast.nce import nce_loss, normalisation_constant
from moco_tf.methods.base import FIRST_VIEW, NOISE, Method, normalised, unpack
from moco_tf.networks.encoder import Encoder


class NPID(Method):
    """Tells each image, by its one view, from M others by their rows in a bank of all images' earlier features.

    The bank is replicated: every rank holds all rows and makes the same changes, see MemoryBank.

    Args:
        query_encoder: the encoder.
        num_examples: n.
        temperature: tau.
        negatives: M, rows drawn uniformly for each image.
        bank_momentum: weight of the new feature in a row of the bank.
        npid_loss: "nce" (section 3.2, with Z fixed after the first batch) or "softmax" over all n rows (equation 2).
        **kwargs: of Method.
    """

    num_views = 1

    def __init__(
        self,
        query_encoder: Encoder,
        num_examples: int,
        temperature: Positive = 0.07,
        negatives: Count = 4096,
        bank_momentum: Share = 0.5,
        npid_loss: Literal["nce", "softmax"] = "nce",
        **kwargs: Any,
    ) -> None:
        super().__init__(query_encoder, **kwargs)
        dim, dtype = query_encoder.config["feature_dim"], query_encoder.variable_dtype
        self.bank = MemoryBank(num_examples, dim, bank_momentum, self.seed, dtype)
        self.z = tf.Variable(0.0, trainable=False, dtype=dtype, name="bank_z")  # 0: not known yet
        self.temperature, self.negatives, self.npid_loss = temperature, negatives, npid_loss
        self._encode = self.piece(self._forward)
        self._compare = self.piece(self._similarities)
        self._contrast = self.piece(self._loss_and_gradient)
        self._replace = self.piece(self.bank.replace)

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step on this rank's images and their indices, see `unpack`; returns metrics averaged over ranks."""
        images, _, _, indices = unpack(data)
        if indices is None:
            raise ValueError("npid came without the images' indices; expected (images, labels, indices)")
        collectives = self.collectives
        with tf.GradientTape() as tape:
            f = self._encode(images)  # BxC
        if self.npid_loss == "nce":
            self._fix_z(f, indices)
        gradient, metrics = self._contrast(f, indices)  # BxC
        gradients = self.gradients(tape, f, gradient)
        every = [images.shape[0] * collectives.size, f.shape[1]]  # G, C
        self._replace(
            tf.ensure_shape(collectives.allgather(indices), every[:1]), tf.ensure_shape(collectives.allgather(f), every)
        )
        metrics["bank_random"] = still_random(self.steps_done + 1, every[0], self.bank.size)
        return self.apply(gradients, metrics)

    def _forward(self, images: tf.Tensor) -> tf.Tensor:
        return normalised(self.query_encoder(self.view(images, FIRST_VIEW), training=True))

    def _fix_z(self, f: tf.Tensor, indices: tf.Tensor) -> None:
        """Estimates Z on the first batch of all ranks."""

        def estimate() -> None:
            local = normalisation_constant(self._compare(f, indices)[0], self.temperature, self.bank.size)
            self.z.assign(self.collectives.mean([local])[0])

        tf.cond(self.z > 0.0, lambda: None, estimate)

    def _similarities(self, f: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Inner products with the own row and with M noise rows, and the rows' numbers: two of Bx(1+M)."""
        positions = shuffle_bn.positions(f.shape[0], self.collectives)
        shape = [f.shape[0] * self.collectives.size, self.negatives]
        # Drawn for the global batch from the shared seed: an image has the same noise on any number of ranks.
        noise = tf.random.stateless_uniform(
            shape, self.seed_of(NOISE), minval=0, maxval=self.bank.size, dtype=tf.int64, alg="philox"
        )
        rows = tf.concat([indices[:, None], tf.gather(noise, positions)], axis=1)
        return self.bank.similarities(f, rows), rows

    def _loss_and_gradient(self, f: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        with tf.GradientTape() as tape:
            tape.watch(f)
            if self.npid_loss == "nce":
                s, rows = self._similarities(f, indices)  # Bx(1+M)
                loss = nce_loss(s, self.temperature, self.z, self.bank.size)
            else:
                s, rows = self.bank.all_similarities(f), tf.range(self.bank.size, dtype=tf.int64)[None, :]  # Bxn, 1xn
                loss = -tf.reduce_mean(tf.gather(tf.nn.log_softmax(s / self.temperature), indices, batch_dims=1))
        top1, top5 = nearest_is_positive(s, rows == indices[:, None])  # the noise may hold the own row, too
        metrics = {"loss": loss, "contrast_top1": top1, "contrast_top5": top5, "feature_std": feature_std(f)}
        return tape.gradient(loss, f), metrics

    def notes(self, batch_size: int) -> list[str]:
        size = self.bank.rows.dtype.size * self.bank.size * self.bank.rows.shape[1]
        return [f"memory bank {self.bank.size:,} x {self.bank.rows.shape[1]}: {size / 1e6:,.0f} MB on every rank"]

    def state(self) -> dict[str, dict[str, tf.Variable] | tf.Variable]:
        return {**super().state(), "bank": self.bank.rows, "bank_z": self.z}
