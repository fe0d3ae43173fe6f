"""A linear classifier that learns along with a pre-training, from what the encoder computes in any case.

B per-rank batch, D width of the pooled features, L classes.
"""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from moco_tf.errors import UserError
from moco_tf.evaluation.probe import Classifiers, LinearProbe
from moco_tf.methods.base import Method, unpack
from moco_tf.training.optimizers import Adam


class OnlineProbe:
    """A method as the loop trains it, with a classifier on the features of its training passes.

    No gradient can reach the encoder: the features that the method's step computes are copied into a variable, and the
    classifier's own gradient tape, which opens when that step is done, reads this variable. It learns from one view of
    each image, with the encoder in training mode; tests give it features in inference mode.

    Args:
        method: compiled; its query encoder takes the images in its step.
        classes: L.
        rank_batch: B.
    """

    def __init__(self, method: Method, classes: int, rank_batch: int) -> None:
        width = method.query_encoder.backbone.features
        self.method, self.one_piece = method, method.one_piece
        # The method's: a step of the probe that is not finite stops nothing.
        self.guard, self.stop, self.steps_done = method.guard, method.stop, method.steps_done
        # Adam moves each of D weights by up to its rate in a step: a logit moves as far whatever the network's width.
        self.classifiers = Classifiers(width, classes, [Adam(1 / width)])
        self._probe = LinearProbe(self.classifiers, tf.identity, method.collectives)
        self._probe.guard.every_gradient = True  # what is not finite never enters the probe, nor a checkpoint by it
        self._features = tf.Variable(tf.zeros([rank_batch, width]), trainable=False, name="probe_features")
        self._seen = False
        method.query_encoder.watch = self._see

    def learnt(self) -> dict[str, keras.Variable]:
        """What the method's optimizer changes, by name."""
        return self.method.learnt()

    def state(self) -> Mapping[str, Any]:
        """The method's, and that of the probe."""
        return {**self.method.state(), **self.probe_state()}

    def probe_state(self) -> dict[str, dict[str, tf.Variable]]:
        """The probe's variables by name, in groups."""
        own = self.classifiers.state()
        return {"probe": own["classifier"], "probe_optimizer": own["classifier_optimizer"]}

    def running_statistics(self) -> list[tf.Variable]:
        """The method's."""
        return self.method.running_statistics()

    def synchronise(self) -> None:
        """Gives every rank the state of rank 0."""
        self.method.synchronise()
        self.method.collectives.broadcast(tf.nest.flatten(self.probe_state()))

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """The method's step, then one of the probe; both metrics, the probe's as probe_loss and probe_train_top1."""
        metrics = self.method.train_step(data)
        if not self._seen:
            raise UserError(
                f"--monitor=probe came with {type(self.method).__name__}, whose step does not call its query encoder "
                "in training mode; leave probe out"
            )
        own = self._probe.train_step((self._features.read_value(), unpack(data)[2]))
        return {**metrics, **{f"probe_{name}": value for name, value in own.items()}}

    def _see(self, features: tf.Tensor) -> None:
        """Copies the features of the first B rows: a method may pass both views of its images at once, or in turn."""
        self._seen = True
        self._features.assign(tf.stop_gradient(features[: self._features.shape[0]]))
