"""Gaussian blur as matrix products: a depthwise convolution compiled for a CPU is 30 to 50 times slower."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from moco_tf.data.augment import ImageOp, Parameters, between, per_image, uniform

BOX_PASSES = 3  # PIL's number of box blurs
MAX_TAPS = 23  # S3's true Gaussian


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


def blur_rows_and_columns(planes: tf.Tensor, kernel: tf.Tensor, passes: int) -> tf.Tensor:
    """Convolves both directions `passes` times with per-image kernels; the edges are replicated anew in each pass."""
    _, height, _, width = planes.shape

    def matrices(size: int) -> tf.Tensor:
        one = band_matrices(kernel, size)
        power = one
        for _ in range(passes - 1):
            power = power @ one
        return power

    vertical = matrices(height)
    horizontal = vertical if width == height else matrices(width)
    rows = tf.matmul(tf.reshape(planes, (-1, height * 3, width)), horizontal, transpose_b=True)
    blurred = vertical @ tf.reshape(rows, (-1, height, 3 * width))
    return tf.reshape(blurred, (-1, height, 3, width))


@dataclasses.dataclass(frozen=True)
class GaussianBlur(ImageOp):
    """Blur with sigma uniform in a range, in pixels, applied with probability p (MoCo v2 section 3, SimCLR appendix A).

    exact: PIL's GaussianBlur(radius=sigma), three extended box blurs, as the PyTorch MoCo; otherwise a true Gaussian of
    at most 23 taps, as the TensorFlow MoCo.
    """

    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5
    exact: bool = True

    def draw(self, seed: tf.Tensor, count: int) -> Parameters:
        """`sigma` (count) and `applied` (count, bool)."""
        draws = uniform(seed, count, 2)
        return {"sigma": between(draws[:, 0], *self.sigma), "applied": draws[:, 1] < self.p}

    def apply_planes(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """Blurred where applied."""
        sigma = parameters["sigma"]
        if self.exact:
            variance = self.sigma[1] ** 2 / BOX_PASSES
            reach = math.floor((math.sqrt(12 * variance + 1) - 1) / 2) + 1
            blurred = blur_rows_and_columns(planes, box_kernel(sigma, reach), BOX_PASSES)
        else:
            reach = min(MAX_TAPS // 2, math.ceil(6 * self.sigma[1]))
            blurred = blur_rows_and_columns(planes, gaussian_kernel(sigma, reach), 1)
        return tf.where(per_image(parameters["applied"]), blurred, planes)
