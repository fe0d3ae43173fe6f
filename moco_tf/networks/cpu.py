"""Convolutions that are faster on a CPU than TensorFlow's: by matrix products, in the backward pass or in both.

Winograd's form takes 16 multiplications for 2x2 outputs of a 3x3 convolution in place of 36: F(2x2, 3x3) of Lavin and
Gray (2016). Inputs are cut into tiles of 4x4 pixels, two apart, one for 2x2 outputs. Tiles and kernels go through small
linear maps to 4x4 places; there the convolution is a matrix product for each place; another map leads back (section
4.1). All maps are the same along rows and columns. Gradients go the same way back, through the transposed maps.
"""

from collections.abc import Callable

import tensorflow as tf

Tensors = list[tf.Tensor]


def conv2d(x: tf.Tensor, kernel: tf.Tensor, strides: int, padding: str) -> tf.Tensor | None:
    """tf.nn.conv2d(x, kernel, strides, padding) in a form that is faster on a CPU; None: there is none.

    Args:
        x: BxHxWxC.
        kernel: kxkxCxD.
        strides: 1 or 2.
        padding: "SAME" (of an odd k with stride 1) or "VALID".

    Returns:
        BxOxPxD.
    """
    if winograd_is_faster(x, kernel, strides):
        return winograd(x, kernel)
    if _products_are_faster(x, kernel.shape[0], strides):
        return _conv2d_with_products(x, kernel, strides, padding)
    return None


def winograd_is_faster(x: tf.Tensor, kernel: tf.Tensor, strides: int) -> bool:
    """Whether `winograd` can be taken and is faster than oneDNN's, forward and backward: measured.

    Of 128 channels at 16x16 it is faster too, but there the tiles, four times the input, take too much memory.
    """
    batch, height, width, channels = x.shape
    if kernel.shape[:2] != (3, 3) or strides != 1 or x.dtype != tf.float32 or None in (batch, height, width):
        return False
    tiles = batch * height * width // 4  # too few of them do not make up for the kernel's map
    return height % 2 == 0 == width % 2 and min(channels, kernel.shape[3]) >= 256 and tiles >= 256


def winograd(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolution with stride 1 and padding 1 by Winograd's products, which its gradients take too.

    Sums are nine times shorter than a convolution's, which makes up for the additions before and after: of 256 channels
    at 8x8 all errors in float32 are 5e-7 of the result (standard deviations), where oneDNN's are 8e-7 of outputs and
    gradients by inputs, 2e-7 of kernels. In bfloat16, which would round between, the errors would grow.

    Args:
        x: BxHxWxC, H and W even.
        kernel: 3x3xCxD.

    Returns:
        BxHxWxD.
    """
    _, height, width, _ = x.shape

    @tf.custom_gradient
    def conv(x: tf.Tensor, kernel: tf.Tensor) -> tuple:
        kernels = _of_kernel(kernel)
        y = _to_outputs([tf.matmul(t, k) for t, k in zip(_of_input(x), kernels)], height, width)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            at_places = _to_outputs_transposed(dy)
            by_tile = [tf.matmul(d, k, transpose_b=True) for d, k in zip(at_places, kernels)]
            by_kernel = [tf.matmul(t, d, transpose_a=True) for t, d in zip(_of_input(x), at_places)]
            return _of_input_transposed(by_tile, height, width), _of_kernel_transposed(by_kernel)

        return y, gradient

    return conv(x, kernel)


def _of_input(x: tf.Tensor) -> Tensors:
    """The tiles at each of the 16 places, row by row: matrices of (B H/2 W/2) x C."""
    _, height, width, channels = x.shape
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    x = tf.reshape(x, [-1, height // 2 + 1, 2, width // 2 + 1, 2, channels])  # pixel 2i + p of a row is [i, p]

    def along(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> Tensors:
        return [a - c, b + c, c - b, b - d]

    rows = along(x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0], x[:, 1:, 1])
    places = [p for r in rows for p in along(r[:, :, :-1, 0], r[:, :, :-1, 1], r[:, :, 1:, 0], r[:, :, 1:, 1])]
    return [tf.reshape(place, [-1, channels]) for place in places]


def _of_input_transposed(places: Tensors, height: int, width: int) -> tf.Tensor:
    places = [tf.reshape(place, [-1, height // 2, width // 2, place.shape[-1]]) for place in places]

    def along(axis: int, a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> tf.Tensor:
        """From the 4 places to pixels, of which neighbouring tiles share two."""
        first, last = tf.stack([a, b - c + d], axis + 1), tf.stack([b + c - a, -d], axis + 1)
        others = [[0, 0]] * (first.shape.rank - axis - 1)
        pixels = tf.pad(first, [[0, 0]] * axis + [[0, 1]] + others) + tf.pad(last, [[0, 0]] * axis + [[1, 0]] + others)
        size = 2 * pixels.shape[axis]
        pixels = tf.reshape(pixels, [-1, *pixels.shape[1:axis], size, *pixels.shape[axis + 2 :]])
        return tf.gather(pixels, tf.range(1, size - 1), axis=axis)

    rows = [along(2, *places[4 * i : 4 * i + 4]) for i in range(4)]
    return along(1, *rows)


def _of_kernel(kernel: tf.Tensor) -> Tensors:
    def along(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor) -> Tensors:
        ends, middle = (a + c) / 2, b / 2
        return [a, ends + middle, ends - middle, c]

    return [place for row in along(*tf.unstack(kernel)) for place in along(*tf.unstack(row))]


def _of_kernel_transposed(places: Tensors) -> tf.Tensor:
    def along(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> Tensors:
        ends = (b + c) / 2
        return [a + ends, (b - c) / 2, ends + d]

    return tf.stack([tf.stack(row) for row in _from_places(along, places)])


def _to_outputs(places: Tensors, height: int, width: int) -> tf.Tensor:
    filters = places[0].shape[-1]
    places = [tf.reshape(place, [-1, height // 2, width // 2, filters]) for place in places]

    def along(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> Tensors:
        return [a + b + c, b - c - d]

    rows = [tf.stack(row, axis=3) for row in _from_places(along, places)]
    return tf.reshape(tf.stack(rows, axis=2), [-1, height, width, filters])


def _to_outputs_transposed(dy: tf.Tensor) -> Tensors:
    _, height, width, filters = dy.shape
    dy = tf.reshape(dy, [-1, height // 2, 2, width // 2, 2, filters])

    def along(a: tf.Tensor, b: tf.Tensor) -> Tensors:
        return [a, a + b, a - b, -b]

    rows = along(dy[:, :, 0], dy[:, :, 1])
    return [tf.reshape(place, [-1, filters]) for r in rows for place in along(r[:, :, :, 0], r[:, :, :, 1])]


def _from_places(along: Callable[..., Tensors], places: Tensors) -> list[Tensors]:
    """A map along the columns and then along the rows of the 4x4 places."""
    columns = [along(*places[j::4]) for j in range(4)]
    return [along(*row) for row in zip(*columns)]


def _products_are_faster(x: tf.Tensor, size: int, strides: int) -> bool:
    """Whether products are faster than the kernel's own gradient: measured at 4x4 to 32x32 outputs.

    oneDNN's backward pass by weights reaches a third of the forward pass' rate on small maps in bfloat16, and half of
    it in float32 with stride 2; products reach it. A 1x1 convolution's gradient is one product.
    """
    height, width = x.shape[1:3]
    if x.dtype not in (tf.bfloat16, tf.float32) or None in (height, width) or height % strides or width % strides:
        return False
    if size == strides == 1:
        return True
    outputs = height * width if strides == 1 else ((height - size) // strides + 1) * ((width - size) // strides + 1)
    return outputs <= (64 if x.dtype == tf.bfloat16 else 16)


def _conv2d_with_products(x: tf.Tensor, kernel: tf.Tensor, strides: int, padding: str) -> tf.Tensor:
    @tf.custom_gradient
    def conv2d(x: tf.Tensor, kernel: tf.Tensor) -> tuple:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            by_input = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x),
                filter=kernel,
                out_backprop=dy,
                strides=[1, strides, strides, 1],
                padding=padding,
            )
            return by_input, kernel_gradient(x, dy, kernel.shape[0], strides, padding)

        return tf.nn.conv2d(x, kernel, strides, padding), gradient

    return conv2d(x, kernel)


def kernel_gradient(x: tf.Tensor, dy: tf.Tensor, size: int, strides: int, padding: str) -> tf.Tensor:
    """A convolution's gradient in its kernel, size x size x C x D, as one matrix product for each place of the kernel.

    Args:
        x: the convolution's input, BxHxWxC, H and W multiples of the stride.
        dy: the gradient in its output, BxOxPxD.
        size: k.
        strides: 1 or 2.
        padding: "SAME" (of an odd k with stride 1) or "VALID".
    """
    pad = size // 2 if padding == "SAME" else 0
    x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]) if pad else x
    _, height, width, channels = x.shape
    out_height, out_width, filters = dy.shape[1:]
    # [s, t, b, i, j] is pixel (s + i strides, t + j strides): a strided slice in place of it takes ten times as long.
    phases = tf.reshape(x, [-1, height // strides, strides, width // strides, strides, channels])
    phases = tf.transpose(phases, [2, 4, 0, 1, 3, 5]) if strides > 1 else phases[None, None, :, :, 0, :, 0]
    rows = tf.reshape(dy, [-1, filters])

    def product(i: int, j: int) -> tf.Tensor:
        top, left = i // strides, j // strides
        seen = phases[i % strides, j % strides, :, top : top + out_height, left : left + out_width]
        return tf.matmul(tf.reshape(seen, [-1, channels]), rows, transpose_a=True)

    products = [product(i, j) for i in range(size) for j in range(size)]
    return tf.reshape(tf.stack(products), [size, size, channels, filters])
