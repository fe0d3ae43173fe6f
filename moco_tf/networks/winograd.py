"""3x3 convolutions with 16 multiplications for 2x2 outputs in place of 36: F(2x2, 3x3) of Lavin and Gray (2016).

Inputs are cut into tiles of 4x4 pixels, two apart, one for 2x2 outputs. Tiles and kernels go through small linear maps
to 4x4 places; there the convolution is a matrix product for each place; another map leads back (section 4.1). All maps
are the same along rows and columns. Gradients go the same way back, through the transposed maps.
"""

from collections.abc import Callable

import tensorflow as tf

Tensors = list[tf.Tensor]


def is_faster(x: tf.Tensor, kernel: tf.Tensor, strides: int) -> bool:
    """Whether conv2d can be taken and is faster on a CPU than oneDNN's, forward and backward: measured.

    Of 128 channels at 16x16 it is faster too, but there the tiles, four times the input, take too much memory.
    """
    batch, height, width, channels = x.shape
    if kernel.shape[:2] != (3, 3) or strides != 1 or x.dtype != tf.float32 or None in (batch, height, width):
        return False
    tiles = batch * height * width // 4  # too few of them do not make up for the kernel's map
    return height % 2 == 0 == width % 2 and min(channels, kernel.shape[3]) >= 256 and tiles >= 256


def conv2d(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolution with stride 1 and padding 1; its gradients take such products too.

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

    def along(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor, axis: int) -> tf.Tensor:
        """From the 4 places to pixels, of which neighbouring tiles share two."""
        first, last = tf.stack([a, b - c + d], axis + 1), tf.stack([b + c - a, -d], axis + 1)
        others = [[0, 0]] * (first.shape.rank - axis - 1)
        pixels = tf.pad(first, [[0, 0]] * axis + [[0, 1]] + others) + tf.pad(last, [[0, 0]] * axis + [[1, 0]] + others)
        size = 2 * pixels.shape[axis]
        pixels = tf.reshape(pixels, [-1, *pixels.shape[1:axis], size, *pixels.shape[axis + 2 :]])
        return tf.gather(pixels, tf.range(1, size - 1), axis=axis)

    rows = [along(*places[4 * i : 4 * i + 4], axis=2) for i in range(4)]
    return along(*rows, axis=1)


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
