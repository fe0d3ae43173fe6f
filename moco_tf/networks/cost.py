"""What a network costs: its parameters and the multiply-adds of one image, counted on the graph that runs."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import tensorflow as tf

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# What multiplies matrices in ways that are not counted here, and what runs a body any number of times: refused, so
# that no number is silently too small.
_UNCOUNTED = (
    *("DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv3D", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"),
    *("Einsum", "XlaDotV2", "XlaConvV2", "If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"),
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters and operations of one image's forward pass.

    Args:
        parameters: numbers that are learnt, biases and batch norms' scales and offsets included, running statistics
            not.
        multiply_adds: of the convolutions and matrix products, one for each multiplication; adding a bias is free.
        normalised: numbers that come out of batch norms.
        image_size: side of the image in pixels.
    """

    parameters: int
    multiply_adds: int
    normalised: int
    image_size: int

    @property
    def thop(self) -> int:
        """What the PyTorch package thop calls FLOPs or MACs: multiply-adds, and two for each output of a batch norm.

        thop counts subtract-and-divide and scale-and-shift (its count_normalization, affine). Its few operations for
        pooling are left out. The "FLOPs" of leftthomas/MoCo are these: 1.31 G to pre-train a ResNet-50 at 32 px, 1.30 G
        for linear evaluation, where convolutions and products alone are 1.30 G both times.
        """
        return self.multiply_adds + 2 * self.normalised

    def __str__(self) -> str:
        return (
            f"{_short(self.parameters)} parameters, {_short(self.multiply_adds)} multiply-adds at {self.image_size} px "
            f"({_short(self.thop)} as thop counts)"
        )


def cost(forward: Callable[[tf.Tensor], tf.Tensor], image_size: int) -> Cost:
    """Traces the forward pass of one RGB image and counts in its graph; nothing is computed.

    Args:
        forward: an Encoder, or any function of images 1xSxSx3 float32, in inference mode. Only what it uses is counted:
            `encoder.features` is the backbone without its head.
        image_size: S, in pixels.

    Raises:
        ValueError: image_size is not positive, or the graph has a shape that is not static, or an operation that this
            does not count.

    Batch norms are seen by their fused kernel, which float64 lacks: there `normalised` is 0.
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected 1 or more")
    images = tf.TensorSpec([1, image_size, image_size, 3], tf.float32)
    traced = tf.function(lambda x: forward(x), autograph=False).get_concrete_function(images)
    multiply_adds = normalised = 0
    for op in _operations(traced.graph):
        if op.type in _UNCOUNTED:
            raise ValueError(f"{op.name} is a {op.type}; expected Conv2D and MatMul, which are what is counted")
        if op.type in ("Conv2D", "MatMul"):
            multiply_adds += _size(op.outputs[0]) * _products(op)
        elif op.type.startswith("FusedBatchNorm"):
            normalised += _size(op.outputs[0])
    # TensorFlow's mark, set when a variable is made: freezing a Keras layer leaves it alone.
    parameters = sum(math.prod(variable.shape) for variable in traced.graph.trainable_variables)
    return Cost(parameters, multiply_adds, normalised, image_size)


def _operations(graph: tf.Graph) -> Iterator[tf.Operation]:
    """The operations of a graph and of the functions that it calls, as often as it calls them."""
    for op in graph.get_operations():
        yield op
        if op.type in _CALLS:
            # There is no public way from a call to the graph of its body; a serialised graph has no input shapes.
            yield from _operations(graph._get_function(op.get_attr("f").name).graph)


def _products(op: tf.Operation) -> int:
    """Multiplications for each number that comes out."""
    if op.type == "Conv2D":
        kernel = op.inputs[1]
        return _size(kernel) // kernel.shape[-1]  # height x width x input channels of a group
    return _size(op.inputs[0]) // op.outputs[0].shape[0]  # the inner dimension, transposed or not


def _size(tensor: tf.Tensor) -> int:
    if not tensor.shape.is_fully_defined():
        raise ValueError(f"{tensor.name} has the shape {tensor.shape}; expected a static one, to count in")
    return tensor.shape.num_elements()


def _short(count: int) -> str:
    """1_297_809_408 -> "1.30 G"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
