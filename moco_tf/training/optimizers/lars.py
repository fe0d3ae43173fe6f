"""LARS."""

from typing import Any

import tensorflow as tf

from moco_tf.training.optimizers.base import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., 2017, algorithm 1), in the form that contrastive methods use:

        matrices and kernels:  g <- g + weight_decay w;  g <- g trust_coefficient |w| / |g|
                               (unscaled where either norm is 0)
        vectors (batch norm, bias): g as it is, neither decay nor scaling
        v <- momentum v + g;   w <- w - lr v

    Args:
        learning_rate: lr.
        momentum: 0 for none.
        weight_decay: L2 coefficient.
        trust_coefficient: share of a weight's norm that its step has at lr 1.
    """

    def __init__(
        self,
        learning_rate: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        name: str = "lars",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, ("momentum",), name=name, **kwargs)
        self.momentum, self.trust_coefficient = momentum, trust_coefficient

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        w, v = variable, self._slot("momentum", variable)
        g = self._scaled(self._with_decay(gradient, w), w) if len(w.shape) > 1 else gradient
        v.assign(self.momentum * v + g)
        w.assign_sub(tf.cast(learning_rate, w.dtype) * v)

    def _scaled(self, g: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        w_norm, g_norm = tf.norm(w), tf.norm(g)
        trust = tf.math.divide_no_nan(self.trust_coefficient * w_norm, g_norm)
        return g * tf.where((w_norm > 0) & (g_norm > 0), trust, 1.0)

    def get_config(self) -> dict:
        return {**super().get_config(), "momentum": self.momentum, "trust_coefficient": self.trust_coefficient}
