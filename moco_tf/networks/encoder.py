"""The encoder of a contrastive method: a backbone and a projection head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from moco_tf.config.types import Value
from moco_tf.networks import backbone, naming
from moco_tf.networks.heads import HEADS
from moco_tf.networks.memory import by_micro_batches
from moco_tf.networks.naming import Variables
from moco_tf.networks.norm import BatchNorm
from moco_tf.training import compiled
from moco_tf.training.collectives import Collectives


@keras.saving.register_keras_serializable("moco_tf")
class Encoder(keras.Model):
    """Images to head outputs (not normalised): BxHxWx3 float to BxC of the variables' dtype, float32.

    Args:
        arch: the backbone: a name of networks/backbones/ or a Python module, see `Backbone`.
        head: "linear" (MoCo v1), "mlp" (Linear-ReLU-Linear: MoCo v2, SimCLR), "mlp_bn" (Linear without bias-BN-ReLU-
            Linear), "mlp_bn2" or "mlp_bn3" (so many Linear without bias, a BN after each, ReLU between, the last BN
            without scale and offset: MoCo v3 on a ResNet and on a ViT) or "none" (the pooled features themselves).
        feature_dim: C, width of the head's output.
        hidden_dim: width of an MLP head's hidden layer; 0 is the width of the pooled features, as in MoCo v2.
        head_init: "torch" (uniform within 1/sqrt(fan_in), bias too) or "normal" (N(0, 0.01), bias 0).
        bn_splits: strided splits of the batch in each batch norm.
        name, dtype: of Keras.
        **options: the backbone's own, see its file.
    """

    def __init__(
        self,
        arch: str = "resnet50",
        *,
        head: str = "linear",
        feature_dim: int = 128,
        hidden_dim: int = 0,
        head_init: str = "torch",
        bn_splits: int = 1,
        name: str | None = None,
        dtype: Any = None,
        **options: Value,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        if head not in HEADS:
            raise ValueError(f"head is {head!r}; expected one of {list(HEADS)}")
        self.config: dict[str, Any] = {"arch": arch, **backbone.options(arch), **options, "bn_splits": bn_splits}
        self.config |= {"head": head, "feature_dim": feature_dim, "hidden_dim": hidden_dim, "head_init": head_init}
        self.micro_batches = 1  # a training pass takes one after the other, see `save_memory`
        self.watch: Callable[[tf.Tensor], None] = _nothing  # gets the pooled features of a training pass, BxD
        self.backbone = backbone.build(arch, bn_splits, self.dtype_policy, options)
        pooled, size = self.backbone.features, self.backbone.build_size
        widths = (pooled, hidden_dim or pooled, feature_dim)
        self.head = HEADS[head](widths, init=head_init, dtype=self.dtype_policy, bn_splits=bn_splits)
        self.features_out = feature_dim if self.head else pooled
        self(tf.zeros([1, size, size, 3]))  # creates the variables

    def build(self, input_shape: tuple) -> None:
        """Does nothing: the first call builds the parts, see `naming.Composite`."""

    def features(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Pooled backbone features: BxHxWx3 float to BxD float32."""
        return self.backbone(images, training=training)

    def project(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The head's output (not normalised): BxD pooled features to BxC float32."""
        x = self.head(features, training=training) if self.head else features
        return tf.cast(x, self.variable_dtype)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        width = self.backbone.features
        if training and self.micro_batches > 1 and self.backbone_norms():
            row = tf.TensorSpec([self.features_out + width], self.variable_dtype)
            norms = naming.having("moves", [part for _, part in self._parts()])  # in bfloat16 `norms` fails in a call
            both = by_micro_batches(self._encode_and_keep, images, self.micro_batches, row, norms)
            self.watch(both[:, self.features_out :])
            return both[:, : self.features_out]
        if training and self.micro_batches > 1:  # the head sees the whole batch
            row = tf.TensorSpec([width], self.variable_dtype)
            features = by_micro_batches(partial(self.features, training=True), images, self.micro_batches, row, [])
        else:
            features = self.features(images, training=training)
        if training:
            self.watch(features)
        return self.project(features, training=training)

    def _encode_and_keep(self, images: tf.Tensor) -> tf.Tensor:
        """The head's output in training, and behind it the pooled features, through which no gradient goes."""
        features = self.features(images, training=True)
        return tf.concat([self.project(features, training=True), tf.stop_gradient(features)], axis=1)

    def _parts(self) -> list[tuple[str, keras.layers.Layer]]:
        return [("", self.backbone), *([(self.backbone.head_name, self.head)] if self.head else [])]

    def named_layers(self) -> list[tuple[str, keras.layers.Layer]]:
        """(torchvision's name, layer with variables), in torchvision's order; the head is fc, or fc.0, fc.2 ..."""
        layers = [pair for prefix, part in self._parts() for pair in naming.walk(part, prefix)]
        return [(name, layer) for name, layer in layers if naming.own_variables(layer)]

    def named_variables(self) -> Variables:
        """Every variable by its torchvision name, in torchvision's order (values in Keras layout)."""
        return {n: v for prefix, part in self._parts() for n, v in naming.named_variables(part, prefix).items()}

    def named_parameters(self) -> Variables:
        """What pre-training learns, by name: all variables but running statistics and what the backbone freezes."""
        learnt = naming.learnt(self.named_variables())
        return {name: v for name, v in learnt.items() if name not in self.backbone.frozen}

    def parameters(self) -> list[keras.Variable]:
        """What is learnt, see `named_parameters`."""
        return list(self.named_parameters().values())

    def running_statistics(self) -> list[keras.Variable]:
        """What is not learnt: the batch norms' running means and variances."""
        variables = self.named_variables()
        learnt = naming.learnt(variables)
        return [v for name, v in variables.items() if name not in learnt]

    def norms(self) -> list[BatchNorm]:
        """The layers that have running statistics.

        Raises:
            ValueError: one of them cannot keep them fixed, or share them with other ranks.
        """
        found = []
        for name, layer in self.named_layers():
            own = naming.own_variables(layer)
            if len(naming.learnt(own)) < len(own):
                if not hasattr(layer, "moves"):
                    raise ValueError(f"{name} is a {type(layer).__name__}; expected networks.norm.BatchNorm")
                found.append(layer)
        return found

    def backbone_norms(self) -> list[BatchNorm]:
        """The batch norms of the backbone; a ViT with the patch stem has none."""
        return naming.having("moves", [self.backbone])

    def save_memory(self, micro_batches: int = 1, recompute: bool = False) -> None:
        """Makes training passes hold less activations, for a second forward pass, see `memory`.

        Args:
            micro_batches: that a batch is divided into; batch norms look at one at a time, but a head on a backbone
                without any has the whole batch.
            recompute: whether only the outputs of the backbone's stages are kept.
        """
        if recompute or micro_batches > 1:
            self.norms()  # refuses layers whose statistics would move twice
        self.micro_batches, self.backbone.recompute = micro_batches, recompute

    def compile_backbone(self) -> None:
        """Has XLA compile the backbone by itself, for SyncBN's collectives in the head; not one with batch norms."""
        if not self.backbone_norms():
            setattr(self, "features", compiled.function(self.features))  # noqa: B010

    def prepare_for_xla(self) -> None:
        """Makes the batch norms compute what keeps its digits when XLA compiles the training pass."""
        self._set("for_xla", True)

    def prepare_for_cpu(self) -> None:
        """Lets convolutions take what is faster on a CPU, see `cpu`."""
        self._set("may_use_products", True)

    def synchronise_norms(self, collectives: Collectives) -> None:
        """Gives the batch norms the statistics of all ranks' batches in training (SyncBN).

        Raises:
            ValueError: they work on splits of a rank's batch, or cannot do so.
        """
        for norm in self.norms():
            if norm.splits > 1:
                raise ValueError(f"bn_splits is {norm.splits}; expected 1 with SyncBN")
            norm.over_ranks = collectives

    def copied(self, dtype: Any = None) -> "Encoder":
        """An encoder of its own with the same values, of another dtype policy where one is given."""
        again = Encoder(**self.config, dtype=dtype or self.dtype_policy)
        for mine, its in zip(self.named_variables().values(), again.named_variables().values(), strict=True):
            its.assign(mine.value)
        return again

    def _set(self, attribute: str, value: bool) -> None:
        for layer in naming.having(attribute, [part for _, part in self._parts()]):
            setattr(layer, attribute, value)

    def get_config(self) -> dict:
        return {**self.config, "name": self.name, "dtype": keras.saving.serialize_keras_object(self.dtype_policy)}


def _nothing(features: tf.Tensor) -> None:
    """Looks at nothing."""
