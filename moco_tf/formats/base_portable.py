"""The function that runtimes other than TensorFlow get: uint8 images of the network's size, normalised inside."""

import numpy as np
import tensorflow as tf

from moco_tf.formats import base
from moco_tf.weights.load import Loaded


class Portable(tf.Module):
    """embed(images): uint8 BxSxSx3 -> {"features": BxD, "projection": BxC of length one where there is a head}."""

    def __init__(self, subject: Loaded) -> None:
        super().__init__(name="encoder")
        network, size = subject.encoder, subject.image_size
        self.weights = [variable.value for variable in network.variables]  # what is saved
        mean, std = np.float32(subject.mean), np.float32(subject.std)  # as NumPy's they become constants of the graph

        def embed(images: tf.Tensor) -> dict[str, tf.Tensor]:
            features = network.features((tf.cast(images, tf.float32) / 255.0 - mean) / std)
            if not network.head:
                return {"features": features}
            head = network.project(features)
            return {"features": features, "projection": tf.math.l2_normalize(head, axis=1, epsilon=1e-24)}

        self.embed = tf.function(embed, input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8, "images")])


def table(subject: Loaded) -> str:
    """Inputs and outputs as Markdown."""
    numbers, head = base.sizes(subject), subject.encoder.head
    rows = "\n| | name | shape |\n|---|---|---|\n| in | images | uint8 Bx{size}x{size}x3, RGB |\n"
    rows += "| out | features | Bx{D} |\n"
    rows += "| out | projection | Bx{C}, of length one, as the contrastive loss compares |\n" if head else ""
    return (rows + base.HOW_TO_RESIZE).format(**numbers)
