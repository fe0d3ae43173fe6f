"""Less memory for the activations of a training pass, for more time: recomputation, and micro-batches.

Both leave what a step computes as it is: the backward pass computes activations a second time, with the same batches in
the batch norms, whose running statistics do not move again.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf

from moco_tf.networks.norm import BatchNorm

Encode = Callable[[tf.Tensor], tf.Tensor]


@contextlib.contextmanager
def statistics_fixed(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Inside, training passes leave running statistics where they are."""
    for norm in norms:
        norm.moves = False
    try:
        yield
    finally:
        for norm in norms:
            norm.moves = True


def recomputed(function: Encode, norms: Sequence[BatchNorm]) -> Encode:
    """A function of one tensor whose intermediate values are computed again in the backward pass (Chen et al., 2016).

    Args:
        function: of one tensor, traced once for its value and once more for its gradient.
        norms: the batch norms in it.
    """
    traced = 0

    def counted(x: tf.Tensor) -> tf.Tensor:
        nonlocal traced
        traced += 1
        with statistics_fixed(norms) if traced > 1 else contextlib.nullcontext():
            return function(x)

    return tf.recompute_grad(counted)


def by_micro_batches(
    function: Encode, x: tf.Tensor, count: int, output: tf.TensorSpec, norms: Sequence[BatchNorm]
) -> tf.Tensor:
    """function(x), one micro-batch after the other forward and backward: activations of one are held at a time.

    Row i of x belongs to micro-batch i mod count, so batch norms see what SplitBatchNorm's splits would. The running
    statistics move once a micro-batch. As only outputs are kept, any loss is exact, even one that compares rows of a
    batch; the price is a second forward pass.

    Args:
        function: B/count x ... to B/count x C.
        x: Bx..., B a multiple of count; no gradient flows into it.
        count: of micro-batches.
        output: shape and type of an output row.
        norms: the batch norms in the function.

    Returns:
        BxC.
    """
    split = _split(x, count)
    output = tf.TensorSpec([split.shape[1], *output.shape], output.dtype)

    @tf.custom_gradient
    def encode(split: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(dy: tf.Tensor, variables: list[tf.Variable]) -> tuple[None, list[tf.Tensor]]:
            return None, _summed_gradients(function, split, dy, variables, norms)

        return tf.map_fn(function, split, fn_output_signature=output, parallel_iterations=1), gradient

    y = encode(split)  # count x B/count x C
    return tf.reshape(tf.transpose(y, [1, 0, 2]), [x.shape[0], y.shape[2]])


def _split(x: tf.Tensor, count: int) -> tf.Tensor:
    """Bx... to count x B/count x ..., row i in micro-batch i mod count."""
    rest = x.shape[1:]
    if x.shape[0] is None or x.shape[0] % count:
        raise ValueError(f"a batch of {x.shape[0]} came, expected a multiple of {count} micro-batches")
    order = [1, 0, *range(2, 2 + len(rest))]
    return tf.transpose(tf.reshape(x, [-1, count, *rest]), order)


def _summed_gradients(
    function: Encode, split: tf.Tensor, dy: tf.Tensor, variables: list[tf.Variable], norms: Sequence[BatchNorm]
) -> list[tf.Tensor]:
    def one_more(i: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with statistics_fixed(norms), tf.GradientTape() as tape:
            y = function(split[i])
        gradients = tape.gradient(y, variables, dy[i], unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return i + 1, [s + g for s, g in zip(sums, gradients, strict=True)]

    count = split.shape[0]
    start = (tf.constant(0), [tf.zeros_like(v) for v in variables])
    _, sums = tf.while_loop(lambda i, _: i < count, one_more, start, parallel_iterations=1, maximum_iterations=count)
    return sums
