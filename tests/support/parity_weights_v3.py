"""Deterministic test weights and views for MoCo v3 parity cases, made with NumPy alone.

The expected outputs in cases/*.npz were computed by the public PyTorch
implementation with exactly these weights, so a port can be checked without
PyTorch. Every tensor has a random stream of its own, made from the seed and
the tensor's name, so the order in which tensors are asked for does not matter.

    vit = dict(patch=4, dim=48, depth=2, mlp_ratio=4, stem="patch")
    state = encoder_state(seed=1, shapes=vit_shapes(**vit) + mlp_shapes("head", 3, 48, 64, 32))
    state = encoder_state(seed=1, shapes=resnet_shapes("resnet18") + mlp_shapes("fc", 2, 512, 64, 32))
    state = encoder_state(seed=1, shapes=mlp_shapes("predictor", 2, 32, 64, 32, last_bn=False))

`state` maps PyTorch parameter names to float32 arrays in PyTorch layout
(convolution kernels are (out, in, kh, kw), linear weights are (out, in)).
The ViT's `pos_embed` is not among them: it is a fixed function of the shape.
"""

import zlib

import numpy as np

from support.parity_weights import images, parameter_shapes


def resnet_shapes(arch, stem="imagenet"):
    """Lists (name, shape, kind) of a torchvision ResNet without its last layer."""
    return parameter_shapes(arch, stem=stem, head="none")


def vit_shapes(patch, dim, depth, mlp_ratio=4, stem="patch"):
    """Lists (name, shape, kind) of a timm-named ViT without head and position embedding.

    Args:
        patch: side of a patch in pixels (the convolutional stem needs 16).
        dim: width of the tokens. The number of heads shapes no tensor.
        depth: number of blocks.
        mlp_ratio: hidden width of a block's MLP over `dim`.
        stem: "patch" (one convolution) or "conv" (four 3x3 stride-2
            convolutions with BN and ReLU, then a 1x1 convolution).
    """
    out = [("cls_token", (1, 1, dim), "bias")]
    if stem == "patch":
        out.append(("patch_embed.proj.weight", (dim, 3, patch, patch), "fan_in"))
        out.append(("patch_embed.proj.bias", (dim,), "bias"))
    elif stem == "conv":
        cin, cout = 3, dim // 8
        for i in range(4):
            p = f"patch_embed.proj.{3 * i}"
            out.append((f"{p}.weight", (cout, cin, 3, 3), "fan_in"))
            out.extend(_bn(f"patch_embed.proj.{3 * i + 1}", cout))
            cin, cout = cout, cout * 2
        out.append(("patch_embed.proj.12.weight", (dim, cin, 1, 1), "fan_in"))
        out.append(("patch_embed.proj.12.bias", (dim,), "bias"))
    else:
        raise ValueError(f"unknown stem {stem!r}")

    def norm(name):
        out.append((f"{name}.weight", (dim,), "gamma"))
        out.append((f"{name}.bias", (dim,), "beta"))

    def linear(name, cout, cin):
        out.append((f"{name}.weight", (cout, cin), "linear"))
        out.append((f"{name}.bias", (cout,), "bias"))

    for i in range(depth):
        norm(f"blocks.{i}.norm1")
        linear(f"blocks.{i}.attn.qkv", 3 * dim, dim)
        linear(f"blocks.{i}.attn.proj", dim, dim)
        norm(f"blocks.{i}.norm2")
        linear(f"blocks.{i}.mlp.fc1", mlp_ratio * dim, dim)
        linear(f"blocks.{i}.mlp.fc2", dim, mlp_ratio * dim)
    norm("norm")
    return out


def mlp_shapes(name, layers, cin, hidden, cout, last_bn=True):
    """Lists (name, shape, kind) of a projector or predictor.

    Linear layers without bias; BN and ReLU after each but the last; after the
    last, with `last_bn`, BN without scale and shift (running statistics only).
    """
    out = []
    for i in range(layers):
        last = i == layers - 1
        a, b = (cin if i == 0 else hidden), (cout if last else hidden)
        out.append((f"{name}.{3 * i}.weight", (b, a), "linear"))
        if not last:
            out.extend(_bn(f"{name}.{3 * i + 1}", b))
        elif last_bn:
            out.extend(_bn(f"{name}.{3 * i + 1}", b, affine=False))
    return out


def encoder_state(seed, shapes):
    """Returns {name: float32 array} for a list of shapes; the same seed gives the same bits."""
    return {name: value(seed, name, shape, kind) for name, shape, kind in shapes}


def value(seed, name, shape, kind):
    """Returns the float32 tensor called `name`."""
    draw = _stream(seed, name)
    if kind == "conv":
        x = draw.standard_normal(shape) * np.sqrt(2.0 / (shape[0] * shape[2] * shape[3]))
    elif kind in ("linear", "fan_in"):
        x = draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    elif kind in ("gamma", "var"):
        x = draw.uniform(0.5, 1.5, shape)
    elif kind in ("beta", "mean", "bias"):
        x = draw.standard_normal(shape) * 0.1
    else:
        raise ValueError(f"unknown kind {kind!r}")
    return x.astype(np.float32)


def probe(name, shape):
    """Returns float64 standard normal numbers: the direction `name` is projected on in the stored statistics."""
    return _stream(0, "probe/" + name).standard_normal(shape)


def cotangent(seed, shape):
    """Returns float32 standard normal numbers: the weights of a test loss sum(output * cotangent)."""
    return _stream(seed, "cotangent").standard_normal(shape).astype(np.float32)


def views(seed1, seed2, mix, step, n, size):
    """Returns the two float32 views (n, 3, size, size) of the global batch at `step`."""
    x1 = images(seed1 + step, n, size)
    x2 = np.float32(mix[0]) * x1 + np.float32(mix[1]) * images(seed2 + step, n, size)
    return x1, x2


def _bn(name, c, affine=True):
    out = [(f"{name}.weight", (c,), "gamma"), (f"{name}.bias", (c,), "beta")] if affine else []
    return out + [(f"{name}.running_mean", (c,), "mean"), (f"{name}.running_var", (c,), "var")]


def _stream(seed, name):
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
