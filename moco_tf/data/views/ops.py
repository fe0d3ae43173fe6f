"""What every augmentation op shares: the layout, the random draws, and the methods draw and apply.

An op is a frozen dataclass. `draw` gives the per-image random parameters of a whole *global* batch, so that an image's
parameters belong to its global position and do not depend on how many ranks share the batch; `apply` is deterministic
given its rows of them.

Legend: B batch, H height, W width, S output size. Images are BxHxWx3 float32 in [0, 1]. Inside, they are *planes*,
BxHx3xW: both directions of a resize or a blur are then plain matrix products, (SxH) @ (Hx3W) and (3HxW) @ (WxS), and a
colour's pixels stay contiguous.
"""

import abc
from collections.abc import Callable

import tensorflow as tf

Parameters = dict[str, tf.Tensor]
Run = Callable[..., tf.Tensor]  # run(function, *arguments): how a piece of an operation is called


def call(function: Callable[..., tf.Tensor], *arguments: object) -> tf.Tensor:
    """Runs a piece as it is."""
    return function(*arguments)


class Compiled:
    """Runs pieces compiled by XLA, each by itself and once for all calls with the same shapes."""

    def __init__(self) -> None:
        self._functions: dict[Callable, Callable] = {}

    def __call__(self, function: Callable[..., tf.Tensor], *arguments: object) -> tf.Tensor:
        if function not in self._functions:
            self._functions[function] = tf.function(function, autograph=False, jit_compile=True)
        return self._functions[function](*arguments)


def to_planes(images: tf.Tensor) -> tf.Tensor:
    """BxHxWx3 -> BxHx3xW."""
    return tf.transpose(images, (0, 1, 3, 2))


def from_planes(planes: tf.Tensor) -> tf.Tensor:
    """BxHx3xW -> BxHxWx3."""
    return tf.transpose(planes, (0, 1, 3, 2))


def to_unit_range(images: tf.Tensor) -> tf.Tensor:
    """uint8 images to float32 in [0, 1]; other types are taken to be in [0, 1] already."""
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) * (1 / 255)
    return tf.cast(images, tf.float32)


def uniform(seed: tf.Tensor, count: int, columns: int) -> tf.Tensor:
    """count x columns uniforms in [0, 1), multiples of 2^-24; the same in eager, graph and compiled form.

    Made from Philox's integers: TensorFlow's own float uniforms keep other bits of them when XLA compiles them.
    """
    bits = tf.random.stateless_uniform((count, columns), seed, None, None, tf.uint32, alg="philox")
    return tf.cast(tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.int32), tf.float32) * 2.0**-24


def between(uniforms: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Stretches uniforms in [0, 1) to [low, high)."""
    return low + (high - low) * uniforms


def per_image(vector: tf.Tensor) -> tf.Tensor:
    """B -> Bx1x1x1, which broadcasts over planes."""
    return tf.reshape(vector, (-1, 1, 1, 1))


class ImageOp(abc.ABC):
    """One image operation with per-image random parameters."""

    @abc.abstractmethod
    def draw(self, seed: tf.Tensor, count: int) -> Parameters:
        """Parameters of `count` images, each of leading dimension `count`; seed is an int32 pair."""

    @abc.abstractmethod
    def apply_planes(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """The operation on BxHx3xW float32 in [0, 1]."""

    def in_pieces(self, planes: tf.Tensor, parameters: Parameters, run: Run) -> tf.Tensor:
        """apply_planes as one or several pieces, each of which `run` calls."""
        return run(self.apply_planes, planes, parameters)

    def apply(self, images: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """The operation on BxHxWx3 float32 in [0, 1]; the same parameters give the same result."""
        return from_planes(self.apply_planes(to_planes(images), parameters))
