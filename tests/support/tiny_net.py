"""One strided convolution with a batch norm, and the mean over all places: XLA compiles it in a second."""

import tensorflow as tf

from moco_tf.networks.backbone import Backbone
from moco_tf.networks.conv import Conv2D
from moco_tf.networks.norm import BatchNorm


class TinyNet(Backbone):
    """Images BxHxWx3 to features Bx8."""

    def __init__(self, bn_splits: int = 1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.features = 8
        self.conv = Conv2D(8, 3, 2, dtype=self.dtype_policy)
        self.norm = BatchNorm(splits=bn_splits, dtype=self.dtype_policy)

    def call(self, x, training=False):
        x = tf.nn.relu(self.norm(self.conv(x), training=training))
        return tf.reduce_mean(tf.cast(x, self.variable_dtype), axis=[1, 2])
