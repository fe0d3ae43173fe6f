"""Vision transformers as MoCo v3 trains them (Chen, Xie and He, 2021), with timm's structure and names.

Blocks normalise first. Positions are fixed two-dimensional sines and cosines, so one network takes images of any size.

Legend: B images, R x C grid of patches, T = 1 + R C tokens (the class token first), D width, H heads.
"""

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from moco_tf.config.types import Count, CountOrZero
from moco_tf.errors import UserError
from moco_tf.networks.backbone import Backbone
from moco_tf.networks.conv import Conv2D
from moco_tf.networks.naming import Composite
from moco_tf.networks.norm import BatchNorm

VARIANTS = {"vit_tiny": {"dim": 192}, "vit_small": {"dim": 384}, "vit_base": {"dim": 768}}
BLOCKS = {"patch": 12, "conv": 11}  # the convolutional stem stands for one block
CONV_PATCH = 16  # four convolutions of stride 2


def positions(rows: int | tf.Tensor, columns: int | tf.Tensor, dim: int) -> tf.Tensor:
    """T x dim float32: zeros for the class token, then sines and cosines of each patch's row, and of its column.

    Args:
        rows, columns: R and C.
        dim: a multiple of 4.
    """
    exponents = np.arange(dim // 4, dtype=np.float32) / np.float32(dim // 4)
    frequencies = np.float32(1) / np.power(1e4, exponents.astype(np.float64)).astype(np.float32)

    def waves(count: int | tf.Tensor) -> tf.Tensor:
        angles = tf.cast(tf.cast(tf.range(count), tf.float32)[:, None] * frequencies, tf.float64)
        return tf.cast(tf.concat([tf.sin(angles), tf.cos(angles)], axis=1), tf.float32)  # count x dim/2

    by_row, by_column = tf.repeat(waves(rows), columns, axis=0), tf.tile(waves(columns), [rows, 1])
    return tf.concat([tf.zeros([1, dim]), tf.concat([by_row, by_column], axis=1)], axis=0)


class LayerNorm(keras.layers.Layer):
    """Layer normalisation of the last axis with an epsilon of 1e-6, computed in the variables' precision."""

    def build(self, input_shape: tuple) -> None:
        self.gamma, self.beta = (
            self.add_weight(shape=input_shape[-1:], initializer=value, name=name, autocast=False)
            for name, value in (("gamma", "ones"), ("beta", "zeros"))
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        exact = tf.cast(x, self.variable_dtype)
        centred = exact - tf.reduce_mean(exact, axis=-1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + 1e-6)
        return tf.cast(centred * scale * self.gamma.value + self.beta.value, x.dtype)


class Projection(keras.layers.Layer):
    """A convolution with a bias whose stride is its size: BxHxWxI to Bx(H/size)x(W/size)xD.

    Args:
        dim: D.
        size: side of the kernel in pixels.
        as_torch: whether kernel and bias start with PyTorch's default; else Xavier's, the bias 0.
    """

    def __init__(self, dim: int, size: int, as_torch: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.size, self.as_torch = dim, size, as_torch

    def build(self, input_shape: tuple) -> None:
        fan_in = self.size**2 * input_shape[-1]
        limit = np.sqrt(1 / fan_in if self.as_torch else 6 / (fan_in + self.dim))
        kernel, bias = (keras.initializers.RandomUniform(-limit, limit) for _ in range(2))
        shape = (self.size, self.size, input_shape[-1], self.dim)
        self.kernel = self.add_weight(shape=shape, initializer=kernel, name="kernel")
        self.bias = self.add_weight(shape=shape[-1:], initializer=bias if self.as_torch else "zeros", name="bias")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)
        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, self.size, "VALID"), bias)


class PatchEmbed(Composite):
    """Images to patches: BxHxWx3 to BxRxCxD."""

    def __init__(self, stem: str, dim: int, patch: int, splits: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        policy = {"dtype": self.dtype_policy}
        self.proj: keras.layers.Layer | list[keras.layers.Layer]
        if stem == "patch":
            self.proj = Projection(dim, patch, **policy)
            return
        layers: list[keras.layers.Layer] = []
        for part in (8, 4, 2, 1):
            as_torch = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")  # draws the same at each call
            layers.append(Conv2D(dim // part, 3, 2, kernel_initializer=as_torch, **policy))
            layers += [BatchNorm(splits=splits, **policy), keras.layers.ReLU(**policy)]
        self.proj = [*layers, Projection(dim, 1, as_torch=True, **policy)]

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        for layer in self.proj if isinstance(self.proj, list) else [self.proj]:
            x = layer(x, training=training)
        return x


class Attention(Composite):
    """Multi-head self-attention (Vaswani et al., 2017): BxTxD to the same."""

    def __init__(self, dim: int, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads = heads
        limit = np.sqrt(6 / (dim + dim))  # Xavier's of queries, keys and values each
        uniform = keras.initializers.RandomUniform(-limit, limit)
        self.qkv = keras.layers.Dense(3 * dim, kernel_initializer=uniform, dtype=self.dtype_policy)
        self.proj = keras.layers.Dense(dim, dtype=self.dtype_policy)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        weights, values = self.attend(x)
        y = tf.transpose(tf.matmul(weights, values), [0, 2, 1, 3])
        return by_token(self.proj, tf.reshape(y, tf.shape(x)))

    def attend(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """How much each token attends to each, BxHxTxT, its rows' sums 1; and the values, BxHxTx(D/H)."""
        width = x.shape[-1] // self.heads
        qkv = tf.reshape(by_token(self.qkv, x), [-1, tokens(x), 3, self.heads, width])
        q, k, v = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))
        logits = tf.matmul(q * width**-0.5, k, transpose_b=True)
        return tf.cast(tf.nn.softmax(tf.cast(logits, self.variable_dtype)), logits.dtype), v


class Mlp(Composite):
    """Two fully connected layers with an exact GELU between: BxTxD to the same."""

    def __init__(self, dim: int, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fc1 = keras.layers.Dense(hidden, dtype=self.dtype_policy)
        self.fc2 = keras.layers.Dense(dim, dtype=self.dtype_policy)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return by_token(self.fc2, gelu(by_token(self.fc1, x)))


class Block(Composite):
    """Attention and MLP, each behind a layer normalisation and beside a shortcut: BxTxD to the same."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm1, self.attn = LayerNorm(dtype=self.dtype_policy), Attention(dim, heads, dtype=self.dtype_policy)
        self.norm2, self.mlp = LayerNorm(dtype=self.dtype_policy), Mlp(dim, mlp_ratio * dim, dtype=self.dtype_policy)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Backbone):
    """Images to the class token after the last layer normalisation: BxHxWx3 float to BxD of the variables' dtype.

    Args:
        dim: D of the architecture.
        width: D; 0: the architecture's (192, 384, 768). A multiple of 4, of 8 with the convolutional stem.
        depth: blocks; 0: 12, or 11 with the convolutional stem.
        heads: of the attention; D must be a multiple of it.
        patch: side of a patch in pixels; sides of images must be multiples of it.
        mlp_ratio: width of a block's MLP divided by D.
        stem: patch (one projection) or conv (four 3x3 convolutions of stride 2 with batch norms; --patch=16).
        freeze_patch: whether pre-training leaves the patch projection at its random values (the patch stem's only).
        bn_splits: strided splits of the batch in each batch norm.
    """

    head_name = "head"

    def __init__(
        self,
        dim: int,
        width: CountOrZero = 0,
        depth: CountOrZero = 0,
        heads: Count = 12,
        patch: Count = 16,
        mlp_ratio: Count = 4,
        stem: Literal["patch", "conv"] = "patch",
        freeze_patch: bool = True,
        bn_splits: Count = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.features = dim = width or dim
        _check(dim, heads, patch, stem)
        self.patch, self.build_size = patch, patch
        if freeze_patch and stem == "patch":
            self.frozen = ("patch_embed.proj.weight", "patch_embed.proj.bias")
        zero = keras.initializers.RandomNormal(stddev=1e-6)
        self.cls_token = self.add_weight(shape=(1, 1, dim), initializer=zero, name="cls_token")
        self.patch_embed = PatchEmbed(stem, dim, patch, bn_splits, dtype=self.dtype_policy)
        self.blocks = [Block(dim, heads, mlp_ratio, dtype=self.dtype_policy) for _ in range(depth or BLOCKS[stem])]
        self.norm = LayerNorm(dtype=self.dtype_policy)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.embed(x, training)
        for block in self.blocks:
            x = self.through([block], x, training)
        return tf.cast(self.norm(x[:, 0]), self.variable_dtype)

    def embed(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The tokens that the first block takes, positions added: BxHxWx3 to BxTxD."""
        if any(side is not None and side % self.patch for side in images.shape[1:3]):
            size = "x".join(map(str, images.shape[1:3]))
            raise UserError(
                f"images of {size} pixels came, expected multiples of --patch={self.patch}; give another --image_size"
            )
        patches = self.through([self.patch_embed], images, training)
        batch, rows, columns, dim = (
            known or count for known, count in zip(patches.shape, tf.unstack(tf.shape(patches)))
        )
        cls_token = tf.tile(tf.cast(self.cls_token, patches.dtype), [batch, 1, 1])
        x = tf.concat([cls_token, tf.reshape(patches, [batch, rows * columns, dim])], axis=1)
        return x + tf.cast(self.positions(rows, columns), x.dtype)

    def positions(self, rows: int | tf.Tensor, columns: int | tf.Tensor) -> tf.Tensor:
        """TxD float32, see `positions`; constant where the grid is known."""
        if not (isinstance(rows, int) and isinstance(columns, int)):
            return positions(rows, columns, self.features)
        with tf.init_scope():
            known = positions(rows, columns, self.features).numpy()
        return tf.constant(known)

    def tokens(self, images: tf.Tensor) -> tf.Tensor:
        """All tokens after the last layer normalisation, in inference: BxHxWx3 to BxTxD."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return tf.cast(self.norm(x), self.variable_dtype)

    def feature_map(self, images: tf.Tensor) -> tf.Tensor:
        """The patches' tokens in their grid, in inference: BxHxWx3 to BxRxCxD."""
        x, (rows, columns) = self.tokens(images)[:, 1:], (side // self.patch for side in images.shape[1:3])
        return tf.reshape(x, [-1, rows, columns, self.features])

    def attention(self, images: tf.Tensor) -> tf.Tensor:
        """How much the last block's class token attends to each token, by head: BxHxWx3 to BxHxT, sums 1."""
        x = self.embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1]
        return last.attn.attend(last.norm1(x))[0][:, :, 0]


def tokens(x: tf.Tensor) -> int | tf.Tensor:
    """T of BxTxD."""
    return x.shape[1] or tf.shape(x)[1]


def gelu(x: tf.Tensor) -> tf.Tensor:
    """x times the normal distribution's share below x, exactly; tf.nn.gelu rounds the root of 2 to float32."""
    return 0.5 * x * (1.0 + tf.math.erf(x * 0.5**0.5))


def by_token(layer: keras.layers.Dense, x: tf.Tensor) -> tf.Tensor:
    """A fully connected layer of each token, as one product of matrices: BxTxD to BxTxE."""
    return tf.reshape(layer(tf.reshape(x, [-1, x.shape[-1]])), [-1, tokens(x), layer.units])


def _check(dim: int, heads: int, patch: int, stem: str) -> None:
    """Raises UserError for a width, heads and a patch that do not go together."""
    if stem == "conv" and patch != CONV_PATCH:
        raise UserError(f"--patch={patch} came with --stem=conv, expected {CONV_PATCH}; or give --stem=patch")
    if stem not in BLOCKS:
        raise ValueError(f"stem is {stem!r}; expected 'patch' or 'conv'")
    part = 8 if stem == "conv" else 4
    if dim % heads or dim % part:
        raise UserError(f"a width of {dim} came with --heads={heads}, expected a multiple of that and of {part}")
