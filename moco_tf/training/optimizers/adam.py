"""Adam."""

import math
from typing import Any

import tensorflow as tf

from moco_tf.training.optimizers.base import Optimizer


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015, algorithm 1) as torch.optim.Adam, L2 in the gradient:

        g <- g + weight_decay w
        m <- beta_1 m + (1 - beta_1) g;   v <- beta_2 v + (1 - beta_2) g^2
        w <- w - lr (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + epsilon)

    Args:
        learning_rate: lr.
        beta_1, beta_2: decay of the moments' averages, in [0, 1).
        epsilon: in the denominator.
        weight_decay: L2 coefficient.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        name: str = "adam",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, ("m", "v"), name=name, **kwargs)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        w, m, v = variable, self._slot("m", variable), self._slot("v", variable)
        g = self._with_decay(gradient, w)
        t = tf.cast(self.iterations.value + 1, w.dtype)
        m.assign(self.beta_1 * m + (1.0 - self.beta_1) * g)
        v.assign(self.beta_2 * v + (1.0 - self.beta_2) * tf.square(g))
        m_hat, v_hat = m / _debias(self.beta_1, t), v / _debias(self.beta_2, t)
        w.assign_sub(tf.cast(learning_rate, w.dtype) * m_hat / (tf.sqrt(v_hat) + self.epsilon))

    def get_config(self) -> dict:
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}


def _debias(beta: float, t: tf.Tensor) -> tf.Tensor:
    """1 - beta^t without the digits that float32 loses in the subtraction at small t."""
    return -tf.math.expm1(t * math.log(beta)) if beta > 0 else tf.ones_like(t)
