"""AdamW."""

from typing import Any

import tensorflow as tf

from moco_tf.training.optimizers.adam import Adam


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2) as torch.optim.AdamW:

        w <- w (1 - lr weight_decay), then Adam's step of the gradient alone

    Everything that is learnt decays: biases, norms and class tokens too, as in MoCo v3.

    Args:
        learning_rate: lr.
        weight_decay: share of a weight that a step at lr 1 takes away.
        **kwargs: of Adam.
    """

    def __init__(
        self, learning_rate: float = 1e-3, weight_decay: float = 0.1, name: str = "adamw", **kwargs: Any
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, name=name, **kwargs)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        variable.assign(variable * tf.cast(1.0 - learning_rate * self.coupled_weight_decay, variable.dtype))
        super().update_step(gradient, variable, learning_rate)

    def _with_decay(self, gradient: tf.Tensor, variable: tf.Tensor) -> tf.Tensor:
        return gradient
