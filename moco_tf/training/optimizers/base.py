"""The base class of the optimizers."""

from typing import Any

import keras
import tensorflow as tf


class Optimizer(keras.optimizers.Optimizer):
    """What the optimizers share: weight decay in the gradient, and slots in the order of the variables.

    A subclass writes `update_step`, which changes one variable with its gradient and its slots.

    Args:
        learning_rate: of the next step; the schedule sets it.
        weight_decay: L2 coefficient, for `_with_decay`.
        slots: names of what is kept for each variable, zero at the start.
        kwargs: of keras.optimizers.Optimizer.
    """

    def __init__(self, learning_rate: float, weight_decay: float, slots: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.coupled_weight_decay = weight_decay  # not Keras' `weight_decay`, which is decoupled
        self.slot_names = slots
        self.slots: dict[str, list[keras.Variable]] = {}
        self._learning_rate: keras.Variable

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes the slots, and the learning rate of the variables' dtype."""
        if self.built:
            return
        super().build(variables)
        if variables and variables[0].dtype == "float64":
            rate = keras.Variable(float(self.learning_rate), dtype="float64", trainable=False, name="learning_rate")
            self._untrack_variable(self._learning_rate)
            self._track_variable(rate)
            self._learning_rate = rate
        for slot in self.slot_names:
            self.slots[slot] = [self.add_variable_from_reference(v, name=slot) for v in variables]

    def _with_decay(self, gradient: tf.Tensor, variable: tf.Tensor) -> tf.Tensor:
        return gradient + self.coupled_weight_decay * variable if self.coupled_weight_decay else gradient

    def _slot(self, name: str, variable: tf.Variable) -> tf.Variable:
        """What is kept for a variable under a slot's name."""
        return self.slots[name][self._get_variable_index(variable)].value

    def get_config(self) -> dict:
        return {**super().get_config(), "weight_decay": self.coupled_weight_decay}
