"""ResNet-10/18/34/50/101/152 (He et al., 2016) with torchvision's structure, padding, initialisation and names.

The bottleneck puts its stride into the 3x3 convolution ("v1.5"), as torchvision does. The last gamma of a block starts
at one, as in MoCo v1 and v2, or at zero, as in MoCo v3.
"""

from typing import Any, Literal

import keras
import tensorflow as tf

from moco_tf.config.types import Count
from moco_tf.networks.backbone import Backbone
from moco_tf.networks.conv import Conv2D, max_pool
from moco_tf.networks.naming import Composite
from moco_tf.networks.norm import BatchNorm

VARIANTS = {  # blocks of each stage, and whether a block is a bottleneck
    "resnet10": {"depths": (1, 1, 1, 1), "bottleneck": False},
    "resnet18": {"depths": (2, 2, 2, 2), "bottleneck": False},
    "resnet34": {"depths": (3, 4, 6, 3), "bottleneck": False},
    "resnet50": {"depths": (3, 4, 6, 3), "bottleneck": True},
    "resnet101": {"depths": (3, 4, 23, 3), "bottleneck": True},
    "resnet152": {"depths": (3, 8, 36, 3), "bottleneck": True},
}


class Block(Composite):
    """Residual block: convolutions with batch norms, plus the shortcut, then ReLU (He et al., 2016, figure 5).

    Args:
        convs: (filters, kernel_size, strides) of each convolution.
        project: whether the shortcut is a strided 1x1 convolution.
        splits: strided splits of the batch in each batch norm.
        scale: what the last batch norm's scale starts with.
    """

    def __init__(
        self, convs: list[tuple[int, int, int]], project: bool, splits: int, scale: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.depth = len(convs)
        for i, conv in enumerate(convs, start=1):
            setattr(self, f"conv{i}", Conv2D(*conv, dtype=self.dtype_policy))
            first = scale if i == self.depth else "ones"
            setattr(self, f"bn{i}", BatchNorm(splits=splits, scale=first, dtype=self.dtype_policy))
        self.downsample: list[keras.layers.Layer] = []
        if project:
            stride = max(strides for _, _, strides in convs)
            self.downsample = [
                Conv2D(convs[-1][0], 1, stride, dtype=self.dtype_policy),
                BatchNorm(splits=splits, dtype=self.dtype_policy),
            ]

    def convs(self) -> list[tuple[Conv2D, BatchNorm]]:
        """The convolutions, each with its batch norm."""
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.depth + 1)]

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        shortcut = x
        if self.downsample:
            conv, norm = self.downsample
            shortcut = norm(conv(x), training=training)
        for i, (conv, norm) in enumerate(self.convs()):
            x = norm(conv(x if i == 0 else tf.nn.relu(x)), training=training)
        return tf.nn.relu(x + shortcut)


class ResNet(Backbone):
    """Images to pooled features: BxHxWx3 float to BxD of the variables' dtype (D = 8 width; 32 with bottlenecks).

    Args:
        depths: blocks of each stage.
        bottleneck: whether a block is 1x1, 3x3 and 1x1 convolutions in place of two of 3x3.
        stem: imagenet (7x7 stride 2, max-pool) or cifar (3x3 stride 1, no max-pool).
        width: channels of the first stage (64 in the paper).
        zero_init_residual: whether a residual block's last batch norm starts with scale 0: the block as the identity.
        bn_splits: strided splits of the batch in each batch norm.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        bottleneck: bool,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        width: Count = 64,
        zero_init_residual: bool = False,
        bn_splits: Count = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem is {stem!r}; expected 'imagenet' or 'cifar'")
        self.stem, self.scale = stem, "zeros" if zero_init_residual else "ones"
        kernel_size, strides = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = Conv2D(width, kernel_size, strides, dtype=self.dtype_policy)
        self.bn1 = BatchNorm(splits=bn_splits, dtype=self.dtype_policy)
        for i, depth in enumerate(depths):
            setattr(self, f"layer{i + 1}", self._stage(i, depth, width * 2**i, bottleneck, bn_splits))
        self.features = width * 8 * (4 if bottleneck else 1)

    def _stage(self, stage: int, depth: int, filters: int, bottleneck: bool, splits: int) -> list[Block]:
        blocks = []
        for i in range(depth):
            stride = 2 if stage > 0 and i == 0 else 1
            convs = [(filters, 3, stride), (filters, 3, 1)]
            if bottleneck:
                convs = [(filters, 1, 1), (filters, 3, stride), (4 * filters, 1, 1)]
            project = i == 0 and (stride > 1 or bottleneck)
            blocks.append(Block(convs, project, splits, self.scale, dtype=self.dtype_policy))
        return blocks

    def stages(self) -> list[list[Block]]:
        """The blocks of each stage: layer1 to layer4."""
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.reduce_mean(self.feature_map(x, training), axis=[1, 2])

    def feature_map(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """What is pooled, the last stage's output: BxHxWx3 to BxRxCxD of the variables' dtype."""
        x = tf.nn.relu(self.bn1(self.conv1(x), training=training))
        if self.stem == "imagenet":
            x = max_pool(x)
        for blocks in self.stages():
            x = self.through(blocks, x, training)
        return tf.cast(x, self.variable_dtype)
