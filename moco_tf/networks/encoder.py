"""The encoder of a contrastive method: a ResNet backbone and a projection head."""

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from moco_tf.networks.backbones.resnet import ResNet
from moco_tf.networks.conv import Conv2D
from moco_tf.networks.memory import by_micro_batches
from moco_tf.networks.norm import BatchNorm
from moco_tf.training.collectives import Collectives

HEADS = ("linear", "mlp", "mlp_bn", "none")


def _dense(units: int, fan_in: int, use_bias: bool, init: str, dtype: object) -> keras.layers.Dense:
    """A fully connected layer; init "torch": uniform within 1/sqrt(fan_in), "normal": N(0, 0.01) with bias 0."""
    if init == "normal":
        kernel, bias = keras.initializers.RandomNormal(stddev=0.01), "zeros"
    else:
        limit = 1.0 / np.sqrt(fan_in)
        kernel, bias = (keras.initializers.RandomUniform(-limit, limit) for _ in range(2))
    return keras.layers.Dense(units, use_bias=use_bias, kernel_initializer=kernel, bias_initializer=bias, dtype=dtype)


@keras.saving.register_keras_serializable("moco_tf")
class Encoder(keras.Model):
    """Images to head outputs (not normalised): BxHxWx3 float to BxC of the variables' dtype, float32.

    Args:
        arch, stem, width, bn_splits: of the backbone, see `ResNet`.
        head: "linear" (MoCo v1), "mlp" (Linear-ReLU-Linear: MoCo v2, SimCLR), "mlp_bn" (Linear without bias-BN-ReLU-
            Linear) or "none" (the pooled features themselves).
        feature_dim: C, width of the head's output.
        hidden_dim: width of an MLP head's hidden layer; 0 is the width of the pooled features, as in MoCo v2.
        head_init: "torch" (uniform within 1/sqrt(fan_in), bias too) or "normal" (N(0, 0.01), bias 0).
    """

    def __init__(
        self,
        arch: str = "resnet50",
        stem: str = "imagenet",
        width: int = 64,
        bn_splits: int = 1,
        head: str = "linear",
        feature_dim: int = 128,
        hidden_dim: int = 0,
        head_init: str = "torch",
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if head not in HEADS:
            raise ValueError(f"head is {head!r}; expected one of {list(HEADS)}")
        self.config: dict[str, Any] = {"arch": arch, "stem": stem, "width": width, "bn_splits": bn_splits, "head": head}
        self.config |= {"feature_dim": feature_dim, "hidden_dim": hidden_dim, "head_init": head_init}
        self.micro_batches = 1  # that a training pass goes through one after the other, see `save_memory`
        self.backbone = ResNet(arch, stem, width, bn_splits, dtype=self.dtype_policy)
        self.head = self._head(head, feature_dim, hidden_dim or self.backbone.features, bn_splits, head_init)
        self(tf.zeros([1, 32, 32, 3]))  # creates the variables

    def _head(self, head: str, out: int, hidden: int, splits: int, init: str) -> list[keras.layers.Layer]:
        policy, features = self.dtype_policy, self.backbone.features
        if head == "none":
            return []
        if head == "linear":
            return [_dense(out, features, True, init, policy)]
        layers = [_dense(hidden, features, head == "mlp", init, policy)]
        if head == "mlp_bn":
            layers.append(BatchNorm(splits=splits, dtype=policy))
        return [*layers, keras.layers.ReLU(dtype=policy), _dense(out, hidden, True, init, policy)]

    def build(self, input_shape: tuple) -> None:
        """Nothing: the first call builds the parts. Without this Keras traces a call before, in every layer."""

    def features(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Pooled backbone features: BxHxWx3 float to BxD float32."""
        return self.backbone(images, training=training)

    def project(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The head's output (not normalised): BxD pooled features to BxC float32."""
        x = features
        for layer in self.head:
            x = layer(x, training=training) if isinstance(layer, BatchNorm) else layer(x)
        return tf.cast(x, self.variable_dtype)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training and self.micro_batches > 1:
            norms = [layer for _, layer in self.named_layers() if isinstance(layer, BatchNorm)]
            row = tf.TensorSpec(
                [self.config["feature_dim"] if self.head else self.backbone.features], self.variable_dtype
            )
            return by_micro_batches(partial(self._encode, training=True), images, self.micro_batches, row, norms)
        return self._encode(images, training)

    def _encode(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        return self.project(self.features(images, training=training), training=training)

    def named_layers(self) -> list[tuple[str, keras.layers.Layer]]:
        """(torchvision's name, layer with variables), in torchvision's order; the head is fc, or fc.0, fc.2 ..."""
        layers = list(self.backbone.named_layers())
        if len(self.head) == 1:
            return [*layers, ("fc", self.head[0])]
        return layers + [(f"fc.{i}", layer) for i, layer in enumerate(self.head) if layer.variables]

    def named_variables(self) -> dict[str, keras.Variable]:
        """Every variable by its torchvision name, in torchvision's order (values in Keras layout)."""
        return {f"{name}.{part}": v for name, layer in self.named_layers() for part, v in _parts(layer)}

    def parameters(self) -> list[keras.Variable]:
        """What is learnt: all variables but the running statistics, whether the encoder is frozen or not."""
        return [v for name, v in self.named_variables().items() if ".running_" not in name]

    def named_parameters(self) -> dict[str, keras.Variable]:
        """What is learnt, by name."""
        return {name: v for name, v in self.named_variables().items() if ".running_" not in name}

    def prepare_for_xla(self) -> None:
        """Makes the batch norms compute what keeps its digits when XLA compiles the training pass."""
        for _, layer in self.named_layers():
            if isinstance(layer, BatchNorm):
                layer.for_xla = True

    def save_memory(self, micro_batches: int = 1, recompute: bool = False) -> None:
        """Makes training passes hold less activations, for a second forward pass, see `memory`.

        Args:
            micro_batches: that a batch is divided into; batch norms look at one at a time.
            recompute: whether only the outputs of the backbone's stages are kept.
        """
        self.micro_batches, self.backbone.recompute = micro_batches, recompute

    def prepare_for_cpu(self) -> None:
        """Lets convolutions take what is faster on a CPU, see `conv` and `winograd`."""
        for _, layer in self.named_layers():
            if isinstance(layer, Conv2D):
                layer.may_use_products = True

    def synchronise_norms(self, collectives: Collectives) -> None:
        """Gives the batch norms the statistics of all ranks' batches in training (SyncBN).

        Raises:
            ValueError: they work on splits of a rank's batch.
        """
        if self.config["bn_splits"] > 1:
            raise ValueError(f"bn_splits is {self.config['bn_splits']}; expected 1 with SyncBN")
        for _, layer in self.named_layers():
            if isinstance(layer, BatchNorm):
                layer.over_ranks = collectives

    def running_statistics(self) -> list[keras.Variable]:
        """The batch norms' running means and variances."""
        return [v for name, v in self.named_variables().items() if ".running_" in name]

    def get_config(self) -> dict:
        return {**self.config, "name": self.name, "dtype": keras.saving.serialize_keras_object(self.dtype_policy)}


def _parts(layer: keras.layers.Layer) -> list[tuple[str, keras.Variable]]:
    """(PyTorch's name, variable) of a leaf layer, in PyTorch's order."""
    if isinstance(layer, BatchNorm):
        return [
            ("weight", layer.gamma),
            ("bias", layer.beta),
            ("running_mean", layer.running_mean),
            ("running_var", layer.running_variance),
        ]
    if isinstance(layer, Conv2D):
        return [("weight", layer.kernel)]
    return [("weight", layer.kernel)] + ([("bias", layer.bias)] if layer.use_bias else [])
