"""Optimizers with PyTorch's semantics: weight decay is L2 in the gradient, on every parameter.

Keras' own SGD puts the learning rate inside the velocity, and its weight decay is decoupled; published recipes mean
PyTorch's rules, written in each class.
"""

import math

import keras
import tensorflow as tf


class _Optimizer(keras.optimizers.Optimizer):
    """What the rules below share: coupled weight decay and slots named after nothing but their order."""

    def __init__(self, learning_rate: float, weight_decay: float, slots: tuple[str, ...], **kwargs: object) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.coupled_weight_decay = weight_decay  # not Keras' `weight_decay`, which is decoupled
        self.slot_names = slots
        self.slots: dict[str, list] = {}

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        for slot in self.slot_names:
            self.slots[slot] = [self.add_variable_from_reference(v, name=slot) for v in variables]

    def _with_decay(self, gradient: tf.Tensor, variable: tf.Tensor) -> tf.Tensor:
        return gradient + self.coupled_weight_decay * variable if self.coupled_weight_decay else gradient

    def _slot(self, name: str, variable: tf.Variable) -> tf.Variable:
        return self.slots[name][self._get_variable_index(variable)].value

    def get_config(self) -> dict:
        return {**super().get_config(), "weight_decay": self.coupled_weight_decay}


class SGD(_Optimizer):
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
        **kwargs: object,
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


class Adam(_Optimizer):
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
        **kwargs: object,
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


class LARS(_Optimizer):
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
        **kwargs: object,
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
