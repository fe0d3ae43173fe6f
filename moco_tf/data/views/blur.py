"""Gaussian blur as matrix products: a depthwise convolution compiled for a CPU is 30 to 50 times slower.

A blur reaches a few pixels, so that its matrix is a narrow band. Of large images, where most products would be by zero,
shifted images are summed instead.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from moco_tf.data.views.ops import ImageOp, Parameters, Run, between, per_image, uniform

BOX_PASSES = 3  # PIL's number of box blurs
MAX_TAPS = 23  # S3's true Gaussian
LARGE = 64  # pixels from which shifted sums are faster than matrix products


def box_radius(sigma: tf.Tensor) -> tf.Tensor:
    """Radius of the extended box whose 3-fold repetition has variance sigma^2 (Gwosdek et al. 2011, section 2.2)."""
    variance = sigma**2 / BOX_PASSES
    whole = tf.floor((tf.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + fraction


def box_kernel(sigma: tf.Tensor, reach: int) -> tf.Tensor:
    """Bx(2 reach + 1) weights of one extended box: 1 up to the whole radius, then the fraction, over 2 radius + 1."""
    distance = tf.constant(np.abs(np.arange(-reach, reach + 1)), tf.float32)
    radius = box_radius(sigma)[:, None]
    return tf.clip_by_value(radius + 1 - distance, 0.0, 1.0) / (2 * radius + 1)


def gaussian_kernel(sigma: tf.Tensor, reach: int) -> tf.Tensor:
    """Bx(2 reach + 1) weights of a sampled Gaussian, normalised to sum 1."""
    distance = tf.constant(np.arange(-reach, reach + 1), tf.float32)
    weights = tf.exp(-0.5 * tf.square(distance / sigma[:, None]))
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)


def band_matrices(kernel: tf.Tensor, size: int) -> tf.Tensor:
    """Bx(2R+1) kernels -> BxNxN matrices that convolve N pixels with replicated edges."""
    reach = kernel.shape[1] // 2
    source = np.clip(np.arange(size)[:, None] + np.arange(-reach, reach + 1), 0, size - 1)  # Nx(2R+1)
    one_hot = (source[:, :, None] == np.arange(size)).astype(np.float32)  # Nx(2R+1)xN
    flat = one_hot.transpose(1, 0, 2).reshape(2 * reach + 1, size * size)
    return tf.reshape(kernel @ tf.constant(flat), (-1, size, size))


def repeated(kernel: tf.Tensor, passes: int, size: int) -> tf.Tensor:
    """BxNxN matrices that convolve N pixels `passes` times, with the edges replicated anew in each pass."""
    one = band_matrices(kernel, size)
    power = one
    for _ in range(passes - 1):
        power = power @ one
    return power


def blur_rows_and_columns(planes: tf.Tensor, kernel: tf.Tensor, passes: int) -> tf.Tensor:
    """Convolves both directions `passes` times with per-image kernels, as `repeated`."""
    _, height, _, width = planes.shape
    vertical = repeated(kernel, passes, height)
    horizontal = vertical if width == height else repeated(kernel, passes, width)
    rows = tf.matmul(tf.reshape(planes, (-1, height * 3, width)), horizontal, transpose_b=True)
    blurred = vertical @ tf.reshape(rows, (-1, height, 3 * width))
    return tf.reshape(blurred, (-1, height, 3, width))


def blur_by_shifts(planes: tf.Tensor, kernel: tf.Tensor, passes: int) -> tf.Tensor:
    """What blur_rows_and_columns gives, from shifted images, of at least 4 R + 1 pixels: R is the reach of all passes.

    All passes together are one wider symmetric kernel, but near the edges, which every pass replicates anew: the pixels
    there come from the first and the last rows of a small matrix, whose middle row is that kernel.
    """
    matrix = repeated(kernel, passes, 4 * passes * (kernel.shape[1] // 2) + 1)
    return _blurred_along(_blurred_along(planes, matrix, axis=3), matrix, axis=1)


def _blurred_along(planes: tf.Tensor, matrix: tf.Tensor, axis: int) -> tf.Tensor:
    """Rows (axis 3) or columns (axis 1) of BxHx3xW blurred; matrix is Bx(4R+1)x(4R+1)."""
    reach, size = matrix.shape[1] // 4, planes.shape[axis]

    def part(start: int, length: int) -> tf.Tensor:
        begin, extent = [0, 0, 0, 0], [-1, -1, -1, -1]
        begin[axis], extent[axis] = start, length
        return tf.slice(planes, begin, extent)

    inside = size - 2 * reach
    row = matrix[:, 2 * reach, 2 * reach :]  # Bx(2R+1): the kernel's right half, and zeros
    middle = per_image(row[:, 0]) * part(reach, inside)
    for shift in range(1, reach + 1):
        middle += per_image(row[:, shift]) * (part(reach - shift, inside) + part(reach + shift, inside))

    def edge(start: int, weights: tf.Tensor) -> tf.Tensor:
        pixels, (height, width) = part(start, 2 * reach), (planes.shape[1], planes.shape[3])
        if axis == 1:
            return tf.reshape(weights @ tf.reshape(pixels, (-1, 2 * reach, 3 * width)), (-1, reach, 3, width))
        rows = tf.reshape(pixels, (-1, height * 3, 2 * reach))
        return tf.reshape(tf.matmul(rows, weights, transpose_b=True), (-1, height, 3, reach))

    first = edge(0, matrix[:, :reach, : 2 * reach])
    last = edge(size - 2 * reach, matrix[:, -reach:, -2 * reach :])
    return tf.concat([first, middle, last], axis=axis)


@dataclasses.dataclass(frozen=True)
class GaussianBlur(ImageOp):
    """Blur with sigma uniform in a range, in pixels, applied with probability p (MoCo v2 section 3, SimCLR appendix A).

    exact: PIL's GaussianBlur(radius=sigma), three extended box blurs, as the PyTorch MoCo; otherwise a true Gaussian of
    at most max_taps, 23 in the TensorFlow MoCo.
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5
    exact: bool = True
    max_taps: int = MAX_TAPS

    def draw(self, seed: tf.Tensor, count: int) -> Parameters:
        """`sigma` (count) and `applied` (count, bool)."""
        draws = uniform(seed, count, 2)
        return {"sigma": between(draws[:, 0], *self.sigma), "applied": draws[:, 1] < self.p}

    def apply_planes(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """Blurred where applied."""
        blurred = blur_rows_and_columns(planes, self._kernel(parameters["sigma"]), self._passes)
        return tf.where(per_image(parameters["applied"]), blurred, planes)

    def in_pieces(self, planes: tf.Tensor, parameters: Parameters, run: Run) -> tf.Tensor:
        """By shifts where images are large; in a larger piece XLA would compute what is before anew for each shift."""
        large = min(planes.shape[1], planes.shape[3]) >= max(LARGE, 4 * self._passes * self._reach + 1)
        return run(self._apply_by_shifts if large else self.apply_planes, planes, parameters)

    def _apply_by_shifts(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        blurred = blur_by_shifts(planes, self._kernel(parameters["sigma"]), self._passes)
        return tf.where(per_image(parameters["applied"]), blurred, planes)

    @property
    def _passes(self) -> int:
        return BOX_PASSES if self.exact else 1

    @property
    def _reach(self) -> int:
        """Of one pass, in pixels."""
        if not self.exact:
            return min(self.max_taps // 2, math.ceil(6 * self.sigma[1]))
        variance = self.sigma[1] ** 2 / BOX_PASSES
        return math.floor((math.sqrt(12 * variance + 1) - 1) / 2) + 1

    def _kernel(self, sigma: tf.Tensor) -> tf.Tensor:
        """Bx(2 reach + 1)."""
        return (box_kernel if self.exact else gaussian_kernel)(sigma, self._reach)
