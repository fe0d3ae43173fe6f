"""What a backbone is: a file of networks/backbones/ or a module of the user's, with one subclass of Backbone."""

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from moco_tf.config import find
from moco_tf.config.types import Value
from moco_tf.errors import UserError
from moco_tf.networks import naming
from moco_tf.networks.memory import recomputed


class Backbone(naming.Composite):
    """Images to pooled features: BxHxWx3 float to BxD of the variables' dtype.

    A subclass sets `features` (D), defines `call(images, training)` and passes **kwargs on. Its constructor's arguments
    with a default are flags and stand in the encoder's config. Those without one are given by its module's VARIANTS:
    {architecture's name: arguments}. With batch norms it takes `bn_splits`, the strided splits of the batch in each.
    Variables are named by the attributes that hold the layers, see `naming`: give these the published names.
    """

    features: int
    head_name = "fc"  # what the head on top is called in the names of variables
    frozen: tuple[str, ...] = ()  # names of parameters that pre-training leaves at their first values
    build_size = 32  # side in pixels of the image that the variables are created with
    recompute = False  # whether the backward pass computes the activations inside `through` again

    def feature_map(self, images: tf.Tensor) -> tf.Tensor:
        """The features before they are pooled, BxHxWx3 to BxRxCxD, where a backbone has such."""
        raise UserError(f"--feature=dense came, and {type(self).__name__} has no map of features; give backbone")

    def through(self, layers: Sequence[keras.layers.Layer], x: tf.Tensor, training: bool) -> tf.Tensor:
        """x through layers, one after the other. With `recompute` only what comes out is kept for the backward pass."""

        def forward(x: tf.Tensor) -> tf.Tensor:
            for layer in layers:
                x = layer(x, training=training)
            return x

        if not (self.recompute and training):
            return forward(x)
        return recomputed(forward, naming.having("moves", layers))(x)


def options(arch: str) -> dict[str, Value]:
    """{name: default} of the options that a backbone has of its own.

    Raises:
        UserError: there is no such backbone.
    """
    return {argument.name: argument.default for argument in find.arguments("arch", arch)}


def build(arch: str, bn_splits: int, dtype: Any, own: dict[str, Value]) -> Backbone:
    """The backbone that --arch calls arch.

    Args:
        arch: a name of networks/backbones/, or a Python module.
        bn_splits: strided splits of the batch in each batch norm.
        dtype: Keras' dtype policy.
        own: the backbone's own options, see `options`.

    Raises:
        UserError: there is no such backbone, or it does not split batches.
        ValueError: it has no such option.
    """
    kind, variants = find.find("arch", arch), find.variants(find.module_of("arch", arch))
    if variants and arch not in variants:
        raise UserError(f"--arch={arch} is a file of several architectures; expected one of {', '.join(variants)}")
    if unknown := sorted(own.keys() - options(arch).keys()):
        raise ValueError(f"the backbone {arch} has no option {', '.join(unknown)}; expected {', '.join(options(arch))}")
    if any("bn_splits" in inspect.signature(base.__init__).parameters for base in kind.__mro__):
        own = {**own, "bn_splits": bn_splits}
    elif bn_splits > 1:
        raise UserError(f"--bn_splits={bn_splits} came, but the backbone {arch} does not split batches; expected 1")
    return kind(**variants.get(arch, {}), **own, dtype=dtype)
