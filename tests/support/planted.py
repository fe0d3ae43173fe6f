"""A fault of memory, planted: one number of a weight is infinite from a step of the training on."""

import numpy as np

from moco_tf.methods.base import Method
from moco_tf.run import loop

WEIGHT = "layer2.0.conv1.weight"


def plant(patch, number, holds=lambda method: True):
    """Sets the fifth number of WEIGHT to inf while the batch of a step is prepared.

    Args:
        patch: of pytest.
        number: of the step.
        holds: whether a rank's method is struck.
    """
    state, steps, methods = Method.state, loop.steps, []
    patch.setattr(Method, "state", lambda method: methods.append(method) or state(method))

    def eventful(*args):
        for step, batch in steps(*args):
            if step == number and holds(methods[-1]):
                weight = methods[-1].query_encoder.named_variables()[WEIGHT].value
                places = np.arange(weight.shape.num_elements()).reshape(weight.shape)
                weight.assign(np.where(places == 4, np.inf, weight))
            yield step, batch

    patch.setattr(loop, "steps", eventful)
