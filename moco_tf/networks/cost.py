"""What a network costs: its parameters and the multiply-adds of one image, counted on the graph that runs."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import tensorflow as tf

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Operations that multiply matrices in ways that are not counted here, or run a body any number of times.
_UNCOUNTED = (
    *("Conv2DBackpropInput", "Conv3D", "XlaDotV2", "XlaConvV2"),
    *("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"),
)


class NotCounted(Exception):
    """The graph has something that is not counted; its text says what."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters and operations of one image's forward pass.

    Args:
        parameters: numbers that are learnt, biases and batch norms' scales and offsets included, running statistics
            not.
        multiply_adds: of the convolutions and matrix products, one for each multiplication; adding a bias is free.
            None where the graph has something that is not counted.
        normalised: numbers that come out of batch norms; None likewise.
        image_size: side of the image in pixels.
        not_counted: what that something is.
    """

    parameters: int
    multiply_adds: int | None
    normalised: int | None
    image_size: int
    not_counted: str = ""

    @property
    def thop(self) -> int | None:
        """What the PyTorch package thop calls FLOPs or MACs: multiply-adds, and two for each output of a batch norm.

        thop counts subtract-and-divide and scale-and-shift (its count_normalization, affine). Its few operations for
        pooling are left out. The "FLOPs" of leftthomas/MoCo are these: 1.31 G to pre-train a ResNet-50 at 32 px, 1.30 G
        for linear evaluation, where convolutions and products alone are 1.30 G both times.
        """
        if self.multiply_adds is None or self.normalised is None:
            return None
        return self.multiply_adds + 2 * self.normalised

    def __str__(self) -> str:
        parameters = f"{_short(self.parameters)} parameters"
        if self.multiply_adds is None or self.thop is None:
            return f"{parameters}, multiply-adds not counted: {self.not_counted}"
        return (
            f"{parameters}, {_short(self.multiply_adds)} multiply-adds at {self.image_size} px "
            f"({_short(self.thop)} as thop counts)"
        )


def cost(forward: Callable[[tf.Tensor], tf.Tensor], image_size: int) -> Cost:
    """Traces the forward pass of one RGB image and counts in its graph; nothing is computed.

    Args:
        forward: an Encoder, or any function of images 1xSxSx3 float32, in inference mode. Only what it uses is counted:
            `encoder.features` is the backbone without its head.
        image_size: S, in pixels.

    Raises:
        ValueError: image_size is not positive.

    Batch norms are seen by their fused kernel, which float64 lacks: there `normalised` is 0.
    """
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected 1 or more")
    images = tf.TensorSpec([1, image_size, image_size, 3], tf.float32)
    graph = tf.function(lambda x: forward(x), autograph=False).get_concrete_function(images).graph
    # TensorFlow's mark, set when a variable is made: freezing a Keras layer leaves it alone.
    parameters = sum(math.prod(variable.shape) for variable in graph.trainable_variables)
    operations = list(_operations(graph))
    try:
        multiply_adds = sum(_multiply_adds(op) for op in operations)
        normalised = sum(_size(op.outputs[0]) for op in operations if op.type.startswith("FusedBatchNorm"))
    except NotCounted as reason:
        return Cost(parameters, None, None, image_size, str(reason))
    return Cost(parameters, multiply_adds, normalised, image_size)


def _operations(graph: tf.Graph) -> Iterator[tf.Operation]:
    """The operations of a graph and of the functions that it calls, as often as it calls them."""
    for op in graph.get_operations():
        yield op
        if op.type in _CALLS:
            # There is no public way from a call to the graph of its body; a serialised graph has no input shapes.
            yield from _operations(graph._get_function(op.get_attr("f").name).graph)


def _multiply_adds(op: tf.Operation) -> int:
    if op.type in _UNCOUNTED:
        raise NotCounted(op.type)
    if op.type not in (*_PRODUCTS, "Einsum"):
        return 0
    for tensor in op.inputs:
        _size(tensor)  # all are static from here on
    return _of_einsum(op) if op.type == "Einsum" else _size(op.outputs[0]) * _PRODUCTS[op.type](op)


def _of_convolution(op: tf.Operation) -> int:
    kernel = op.inputs[1]
    return _size(kernel) // kernel.shape[-1]  # height x width x input channels of a group


def _of_depthwise(op: tf.Operation) -> int:
    return math.prod(op.inputs[1].shape[:2])


def _of_matmul(op: tf.Operation) -> int:
    return _size(op.inputs[0]) // op.outputs[0].shape[0]  # the inner dimension, transposed or not


def _of_batch_matmul(op: tf.Operation) -> int:
    return op.inputs[0].shape[-2 if op.get_attr("adj_x") else -1]


# Multiplications for each number that comes out of an operation.
_PRODUCTS = {"Conv2D": _of_convolution, "DepthwiseConv2dNative": _of_depthwise, "MatMul": _of_matmul}
_PRODUCTS |= dict.fromkeys(("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _of_batch_matmul)


def _of_einsum(op: tf.Operation) -> int:
    """All multiplications of an Einsum: one for each combination of indices of its two operands."""
    equation = op.get_attr("equation").decode()
    operands, result = equation.split("->")
    parts = operands.split(",")
    # Where one operand has an index to itself that does not come out, sums come first and save multiplications.
    counted = len(parts) == 2 and set(parts[0]) ^ set(parts[1]) <= set(result)
    if not counted or "." in equation or any(len(set(part)) < len(part) for part in parts):
        raise NotCounted(f"Einsum {equation}")
    sizes: dict[str, int] = {}
    for part, tensor in zip(parts, op.inputs):
        sizes |= dict(zip(part, tensor.shape.as_list()))
    return math.prod(sizes.values())


def _size(tensor: tf.Tensor) -> int:
    if not tensor.shape.is_fully_defined():
        raise NotCounted(f"{tensor.op.type} of shape {tensor.shape}")
    return tensor.shape.num_elements()


def _short(count: int) -> str:
    """1_297_809_408 -> "1.30 G"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
