"""ResNet-10/18/34/50 (He et al., 2016) with torchvision's structure, padding, initialisation and names.

The bottleneck puts its stride into the 3x3 convolution ("v1.5"), as torchvision does. The last gamma of a block starts
at one, as in MoCo.
"""

from collections.abc import Iterator
from functools import partial

import keras
import tensorflow as tf

from moco_tf.networks.conv import Conv2D
from moco_tf.networks.memory import recomputed
from moco_tf.networks.norm import BatchNorm

DEPTHS = {  # blocks of each stage
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
VARIANTS = {
    "resnet10": {"arch": "resnet10"},
    "resnet18": {"arch": "resnet18"},
    "resnet34": {"arch": "resnet34"},
    "resnet50": {"arch": "resnet50"},
}
STEMS = ("imagenet", "cifar")


class Block(keras.layers.Layer):
    """Residual block: convolutions with batch norms, plus the shortcut, then ReLU (He et al., 2016, figure 5).

    Args:
        convs: (filters, kernel_size, strides) of each convolution.
        project: whether the shortcut is a strided 1x1 convolution.
        splits: strided splits of the batch in each batch norm.
    """

    def __init__(self, convs: list[tuple[int, int, int]], project: bool, splits: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.convs = [Conv2D(*conv, dtype=self.dtype_policy) for conv in convs]
        self.norms = [BatchNorm(splits=splits, dtype=self.dtype_policy) for _ in convs]
        self.downsample = None
        if project:
            stride = max(strides for _, _, strides in convs)
            self.downsample = [
                Conv2D(convs[-1][0], 1, stride, dtype=self.dtype_policy),
                BatchNorm(splits=splits, dtype=self.dtype_policy),
            ]

    def build(self, input_shape: tuple) -> None:
        """Nothing: the first call builds the parts. Without this Keras traces a call before, in every layer."""

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        shortcut = x
        if self.downsample:
            conv, norm = self.downsample
            shortcut = norm(conv(x), training=training)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = norm(conv(x if i == 0 else tf.nn.relu(x)), training=training)
        return tf.nn.relu(x + shortcut)

    def named_layers(self) -> Iterator[tuple[str, keras.layers.Layer]]:
        """(torchvision's name inside the block, layer), in torchvision's order."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms), start=1):
            yield f"conv{i}", conv
            yield f"bn{i}", norm
        if self.downsample:
            yield "downsample.0", self.downsample[0]
            yield "downsample.1", self.downsample[1]


class Backbone(keras.layers.Layer):
    pass


class ResNet(Backbone):
    """Images to pooled features: BxHxWx3 float to BxD of the variables' dtype (D = 8 width, or 32 width for ResNet-50).

    Args:
        arch: a key of DEPTHS.
        stem: "imagenet" (7x7 stride 2, max-pool) or "cifar" (3x3 stride 1, no max-pool).
        width: channels of the first stage (64 in the paper).
        bn_splits: strided splits of the batch in each batch norm.
    """

    def __init__(
        self, arch: str = "resnet50", stem: str = "imagenet", width: int = 64, bn_splits: int = 1, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        if arch not in DEPTHS or stem not in STEMS:
            raise ValueError(f"arch {arch!r}, stem {stem!r}; expected one of {list(DEPTHS)} and one of {list(STEMS)}")
        self.stem = stem
        self.recompute = False  # whether the backward pass computes each stage's activations again
        kernel_size, strides = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = Conv2D(width, kernel_size, strides, dtype=self.dtype_policy)
        self.bn1 = BatchNorm(splits=bn_splits, dtype=self.dtype_policy)
        self.stages = self._stages(arch == "resnet50", DEPTHS[arch], width, bn_splits)
        self.features = width * 8 * (4 if arch == "resnet50" else 1)

    def _stages(self, bottleneck: bool, depths: tuple[int, ...], width: int, splits: int) -> list[list[Block]]:
        stages = []
        for stage, depth in enumerate(depths):
            filters, blocks = width * 2**stage, []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                convs = [(filters, 3, stride), (filters, 3, 1)]
                if bottleneck:
                    convs = [(filters, 1, 1), (filters, 3, stride), (4 * filters, 1, 1)]
                project = i == 0 and (stride > 1 or bottleneck)
                blocks.append(Block(convs, project, splits, dtype=self.dtype_policy))
            stages.append(blocks)
        return stages

    def build(self, input_shape: tuple) -> None:
        """Nothing: the first call builds the parts. Without this Keras traces a call before, in every layer."""

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = tf.nn.relu(self.bn1(self.conv1(x), training=training))
        if self.stem == "imagenet":
            # After a ReLU padding with zeros is padding with minus infinity: no maximum changes.
            x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
        for stage in self.stages:
            through = partial(_through, stage, training)
            x = recomputed(through, list(_norms(stage)))(x) if self.recompute and training else through(x)
        return tf.reduce_mean(tf.cast(x, self.variable_dtype), axis=[1, 2])

    def named_layers(self) -> Iterator[tuple[str, keras.layers.Layer]]:
        """(torchvision's name, layer), in torchvision's order."""
        yield "conv1", self.conv1
        yield "bn1", self.bn1
        for stage, blocks in enumerate(self.stages, start=1):
            for i, block in enumerate(blocks):
                for name, layer in block.named_layers():
                    yield f"layer{stage}.{i}.{name}", layer


def _through(stage: list[Block], training: bool, x: tf.Tensor) -> tf.Tensor:
    for block in stage:
        x = block(x, training=training)
    return x


def _norms(stage: list[Block]) -> Iterator[BatchNorm]:
    return (layer for block in stage for _, layer in block.named_layers() if isinstance(layer, BatchNorm))
