"""Optimizers with PyTorch's semantics: weight decay is L2 in the gradient (of AdamW decoupled), on every parameter.

Keras' own SGD puts the learning rate inside the velocity, and its weight decay is decoupled; published recipes mean
PyTorch's rules, written in each class. --optimizer=NAME is the class of NAME.py here, or of a module of the user's.
"""

import inspect

from moco_tf.config.find import find
from moco_tf.training.optimizers.adam import Adam
from moco_tf.training.optimizers.adamw import AdamW
from moco_tf.training.optimizers.base import Optimizer
from moco_tf.training.optimizers.lars import LARS
from moco_tf.training.optimizers.sgd import SGD

__all__ = ["LARS", "SGD", "Adam", "AdamW", "Optimizer", "build"]


def build(
    name: str, learning_rate: float, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
) -> Optimizer:
    """The optimizer of a name, before its first step.

    Args:
        name: of its file, or of a module of the user's.
        learning_rate: of the first step.
        momentum, weight_decay, nesterov: given to an optimizer whose constructor has them.

    Raises:
        UserError: there is no such optimizer.
    """
    kind = find("optimizer", name)
    settings = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    known = inspect.signature(kind).parameters
    return kind(learning_rate, **{key: value for key, value in settings.items() if key in known})
