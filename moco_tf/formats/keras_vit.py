"""A ViT of Keras' own layers, for the .keras format: layers have timm's names."""

import keras
import numpy as np

from moco_tf.formats.keras_layers import Layers, convolution, norm

LayerNorm, Embedding, Dense = keras.layers.LayerNormalization, keras.layers.Embedding, keras.layers.Dense


def features(x: keras.KerasTensor, layers: Layers, heads: int, positions: np.ndarray) -> keras.KerasTensor:
    """The class token after the last normalisation: normalised images BxSxSx3 to BxD.

    Args:
        x: the images.
        layers: values by layer; the class token and the positions are added, as tables of embeddings.
        heads: of the attention.
        positions: TxD, which fine-tuning leaves as they are.
    """
    layers["cls_token"], layers["pos_embed"] = [layers.pop("")[0][0]], [positions]
    count, dim = positions.shape
    x = keras.layers.Reshape((count - 1, dim))(_patches(x, layers))
    first = keras.ops.zeros_like(x[:, :1, 0], dtype="int32")
    x = keras.layers.Concatenate(axis=1)([Embedding(1, dim, name="cls_token")(first), x])
    places = keras.ops.cumsum(keras.ops.ones_like(x[:, :, 0], dtype="int32"), axis=1) - 1
    x = keras.layers.Add()([x, Embedding(count, dim, trainable=False, name="pos_embed")(places)])
    for block in dict.fromkeys(name.rpartition(".norm1")[0] for name in layers if name.endswith(".norm1")):
        x = _block(x, layers, block, heads)
    return LayerNorm(epsilon=1e-6, name="norm")(x[:, 0])


def _patches(x: keras.KerasTensor, layers: Layers) -> keras.KerasTensor:
    if "patch_embed.proj" in layers:
        side, _, _, dim = layers["patch_embed.proj"][0].shape
        return keras.layers.Conv2D(dim, side, side, name="patch_embed.proj")(x)
    for i in (0, 3, 6, 9):
        x = norm(convolution(x, layers, f"patch_embed.proj.{i}", 2), f"patch_embed.proj.{i + 1}")
        x = keras.layers.ReLU()(x)
    return keras.layers.Conv2D(x.shape[-1], 1, name="patch_embed.proj.12")(x)


def _block(x: keras.KerasTensor, layers: Layers, name: str, heads: int) -> keras.KerasTensor:
    hidden, dim = layers[f"{name}.mlp.fc1"][0].shape[1], x.shape[-1]
    y = _attention(LayerNorm(epsilon=1e-6, name=f"{name}.norm1")(x), f"{name}.attn", heads)
    x = keras.layers.Add()([x, y])
    y = Dense(hidden, "gelu", name=f"{name}.mlp.fc1")(LayerNorm(epsilon=1e-6, name=f"{name}.norm2")(x))
    return keras.layers.Add()([x, Dense(dim, name=f"{name}.mlp.fc2")(y)])


def _attention(x: keras.KerasTensor, name: str, heads: int) -> keras.KerasTensor:
    _, count, dim = x.shape
    qkv = keras.ops.reshape(Dense(3 * dim, name=f"{name}.qkv")(x), (-1, count, 3, heads, dim // heads))
    q, k, v = (qkv[:, :, i] for i in range(3))
    y = keras.ops.dot_product_attention(q, k, v, scale=(dim // heads) ** -0.5)
    return Dense(dim, name=f"{name}.proj")(keras.ops.reshape(y, (-1, count, dim)))
