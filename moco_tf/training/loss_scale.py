"""Dynamic loss scaling: keeps float16 gradients from vanishing (Micikevicius et al., 2018, section 3.2)."""

import tensorflow as tf


class LossScale:
    """Gradients of scale times the loss are divided by the scale; where one overflows, the step is left out.

        not finite: scale <- scale / 2, no step        finite `interval` times in a row: scale <- 2 scale

    Args:
        initial: the scale to start with; too large a one costs a few steps.
        interval: I, steps without overflow before it is doubled.
    """

    def __init__(self, initial: float = 2.0**15, interval: int = 2000) -> None:
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="loss_scale")
        self.good_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="loss_scale_good_steps")
        self.interval = interval

    def unscale(self, gradients: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """(gradients over the scale, whether all numbers of all gradients are finite)."""
        gradients = [g / tf.cast(self.scale, g.dtype) for g in gradients]
        return gradients, tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])

    def update(self, finite: tf.Tensor) -> None:
        """Adapts the scale to what a step's gradients were."""
        good = tf.where(finite, self.good_steps + 1, 0)
        grown = good >= self.interval
        factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
        self.scale.assign(tf.maximum(self.scale * factor, 1.0))
        self.good_steps.assign(tf.where(grown, tf.zeros_like(good), good))

    def state(self) -> dict[str, tf.Variable]:
        """Variables for a checkpoint."""
        return {"loss_scale": self.scale, "loss_scale_good_steps": self.good_steps}
