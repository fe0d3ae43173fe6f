"""Stochastic gradient descent."""

from typing import Any

import tensorflow as tf

from moco_tf.training.optimizers.base import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent as torch.optim.SGD:

        g <- g + weight_decay w
        v <- momentum v + g
        w <- w - lr v                        or, with nesterov,  w <- w - lr (g + momentum v)

    Args:
        learning_rate: lr.
        momentum: 0 for none.
        weight_decay: L2 coefficient.
        nesterov: Nesterov's momentum.
    """

    def __init__(
        self,
        learning_rate: float = 0.03,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        name: str = "sgd",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, ("momentum",), name=name, **kwargs)
        self.momentum, self.nesterov = momentum, nesterov

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        w, v = variable, self._slot("momentum", variable)
        if self.coupled_weight_decay and self.momentum and not self.nesterov:
            # momentum v + g + weight_decay w = momentum (v + weight_decay / momentum w) + g: one pass without a copy.
            decay = tf.constant(-self.coupled_weight_decay / self.momentum, w.dtype)
            tf.raw_ops.ResourceApplyGradientDescent(var=v.handle, alpha=decay, delta=w)
        else:
            gradient = self._with_decay(gradient, w)
        tf.raw_ops.ResourceApplyMomentum(  # one fused pass over the variable and its velocity
            var=w.handle,
            accum=v.handle,
            lr=tf.cast(learning_rate, w.dtype),
            grad=gradient,
            momentum=tf.constant(self.momentum, w.dtype),
            use_nesterov=self.nesterov,
        )

    def get_config(self) -> dict:
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}
