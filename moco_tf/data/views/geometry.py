"""Crops, resizes and flips. A resize is PIL's antialiased bilinear filter, one matrix product per direction.

Without antialiasing it is the plain bilinear filter, as OpenCV's and TensorFlow's.
"""

import dataclasses
import math

import tensorflow as tf

from moco_tf.data.views.ops import (
    ImageOp,
    Parameters,
    Run,
    between,
    per_image,
    uniform,
)
from moco_tf.errors import UserError

LARGE = 128  # pixels from which matrix products are slower than going through the rows
CROP_TRIES = 10  # torchvision's number of attempts before the central crop


def resize_matrices(
    start: tf.Tensor,
    length: tf.Tensor,
    in_size: int | tf.Tensor,
    out_size: int | tf.Tensor,
    kept: tf.Tensor | None = None,
    antialias: bool = True,
) -> tf.Tensor:
    """B x out x in weights that resize a window of the pixels of one direction.

    PIL's triangle filter: its half width is the scale, at least 1, and it sees nothing outside the window.

    Args:
        start, length: of each window in pixels, float32 B.
        in_size: pixels of the image.
        out_size: pixels of the resized window.
        kept: which of these are computed, float32 K: the result is B x K x in; default: all.
        antialias: without it the filter's half width is 1.
    """
    kept = tf.range(out_size, dtype=tf.float32) if kept is None else kept
    scale = (length / tf.cast(out_size, tf.float32))[:, None, None]
    start, end = start[:, None, None], (start + length)[:, None, None]
    center = start + (kept[:, None] + 0.5) * scale  # BxKx1
    pixel = tf.range(in_size, dtype=tf.float32) + 0.5  # in
    half_width = tf.maximum(scale, 1.0) if antialias else 1.0
    weights = tf.maximum(0.0, 1 - tf.abs(pixel - center) / half_width)
    weights = tf.where((pixel > start) & (pixel < end), weights, 0.0)
    return weights / tf.reduce_sum(weights, axis=2, keepdims=True)


def resize_planes(planes: tf.Tensor, vertical: tf.Tensor, horizontal: tf.Tensor) -> tf.Tensor:
    """Applies BxSxH and BxSxW weights (or one for all images) to BxHx3xW; rows first as PIL, without its rounding."""
    height, width, size = vertical.shape[2], horizontal.shape[2], (vertical.shape[1], horizontal.shape[1])
    rows = tf.matmul(tf.reshape(planes, (-1, height * 3, width)), horizontal, transpose_b=True)  # Bx3HxS
    resized = vertical @ tf.reshape(rows, (-1, height, 3 * size[1]))  # BxSx3S
    return tf.reshape(resized, (-1, size[0], 3, size[1]))


def resized_crop(planes: tf.Tensor, box: tf.Tensor, size: int, antialias: bool = True) -> tf.Tensor:
    """Crops each image to its box and resizes it to size x size.

    Args:
        planes: BxHx3xW float32.
        box: Bx4 int, top, left, height, width in pixels.
        size: S, the pixels of a side.
        antialias: as in resize_matrices.
    """
    _, height, _, width = planes.shape
    top, left, box_height, box_width = tf.unstack(tf.cast(box, tf.float32), axis=1)
    vertical = resize_matrices(top, box_height, height, size, antialias=antialias)
    return resize_planes(planes, vertical, resize_matrices(left, box_width, width, size, antialias=antialias))


def flip_left_right(planes: tf.Tensor, applied: tf.Tensor) -> tf.Tensor:
    """Mirrors the images where applied (B, bool)."""
    return tf.where(per_image(applied), tf.reverse(planes, axis=(3,)), planes)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(ImageOp):
    """Crop of random area (fraction uniform in scale) and aspect ratio (log-uniform in ratio), resized to size x size.

    As torchvision: the first of ten draws that fits; if none does, the largest central crop of an allowed aspect ratio.
    moco.tensorflow draws the aspect ratio itself uniformly (uniform_ratio) and resizes without antialiasing.
    """

    size: int
    scale: tuple[float, ...]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    uniform_ratio: bool = False
    antialias: bool = True

    def draw(self, seed: tf.Tensor, count: int) -> Parameters:
        """`area` and `log_ratio` (count x 10 candidates), `corner` (count x 2, in [0, 1)); needs no image size."""
        draws = uniform(seed, count, 2 * CROP_TRIES + 2)
        place = draws[:, CROP_TRIES : 2 * CROP_TRIES]
        uniform_log = between(place, *(math.log(r) for r in self.ratio))
        return {
            "area": between(draws[:, :CROP_TRIES], *self.scale),
            "log_ratio": tf.math.log(between(place, *self.ratio)) if self.uniform_ratio else uniform_log,
            "corner": draws[:, 2 * CROP_TRIES :],
        }

    def box(self, parameters: Parameters, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
        """Bx4 int32 (top, left, height, width) inside a height x width image."""
        full = tf.cast(tf.stack([height, width]), tf.float32)  # 2
        area = parameters["area"] * full[0] * full[1]
        ratio = tf.exp(parameters["log_ratio"])
        candidates = tf.round(tf.sqrt(tf.stack([area / ratio, area * ratio], axis=2)))  # Bx10x2
        fits = tf.reduce_all((candidates >= 1) & (candidates <= full), axis=2)  # Bx10
        first = tf.one_hot(tf.argmax(fits, axis=1), CROP_TRIES)[:, :, None]
        box = tf.reduce_sum(first * candidates, axis=1)  # Bx2
        fitting = tf.reduce_any(fits, axis=1, keepdims=True)
        box = tf.where(fitting, box, self._central(full))
        room = full - box
        drawn = tf.minimum(tf.floor(parameters["corner"] * (room + 1)), room)
        corner = tf.where(fitting, drawn, tf.floor(room / 2))
        return tf.cast(tf.concat([corner, box], axis=1), tf.int32)

    def _central(self, full: tf.Tensor) -> tf.Tensor:
        """Height and width of the largest box of an allowed aspect ratio."""
        height, width = full[0], full[1]
        return tf.stack(
            [
                tf.minimum(height, tf.round(width / self.ratio[0])),
                tf.minimum(width, tf.round(height * self.ratio[1])),
            ]
        )

    def apply_planes(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """BxHx3xW -> BxSx3xS."""
        return resized_crop(planes, self.box(parameters, planes.shape[1], planes.shape[3]), self.size, self.antialias)

    def in_pieces(self, planes: tf.Tensor, parameters: Parameters, run: Run) -> tf.Tensor:
        """Large images one by one as crop_one resizes them: a tenth of the products, but nothing that XLA compiles."""
        if min(planes.shape[1], planes.shape[3]) < LARGE:
            return run(self.apply_planes, planes, parameters)
        boxes = run(self.box, parameters, planes.shape[1], planes.shape[3])

        def cropped(one: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            image, (top, left, height, width) = one[0], tf.unstack(one[1])
            window = image[top : top + height, :, left : left + width]
            rows = resize_rows(window, self.size, self.antialias)  # Sx3xw
            columns = resize_rows(tf.transpose(rows, (2, 0, 1)), self.size, self.antialias)  # columns first: SxSx3
            return tf.transpose(columns, (1, 2, 0))

        signature = tf.TensorSpec((self.size, 3, self.size), tf.float32)
        return tf.map_fn(cropped, (planes, boxes), fn_output_signature=signature)

    def one_box(self, height: int | tf.Tensor, width: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The box (4 int32: top, left, height, width) of one image; for decoders that decode only a window."""
        return self.box(self.draw(seed, 1), height, width)[0]

    def crop_one(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """One HxWx3 uint8 image of any size -> SxSx3 uint8, for tf.data; the same distribution as the batched crop."""
        shape = tf.shape(image)
        top, left, height, width = tf.unstack(self.one_box(shape[0], shape[1], seed))
        window = image[top : top + height, left : left + width]
        resized = resize_one(window, self.size, self.size, self.antialias)
        return tf.ensure_shape(resized, (self.size, self.size, 3))


def resize_one(image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor, antialias: bool = True) -> tf.Tensor:
    """Bilinear resize of one HxWx3 uint8 image, rounded to uint8.

    Args:
        image: of any size.
        height, width: of the result, in pixels.
        antialias: PIL's filter, or the plain bilinear one.
    """
    if not antialias:
        return tf.cast(tf.round(tf.image.resize(image, (height, width), method="bilinear")), tf.uint8)
    # What tf.image.resize(antialias=True) computes; but its kernel goes along a row pixel by pixel, three values at a
    # time, and down the rows with long vectors. So both directions go down the rows: 2.6 times faster at 224 px.
    columns = tf.transpose(resize_rows(image, height), (1, 0, 2))  # Wx`height`x3
    resized = tf.transpose(resize_rows(columns, width), (1, 0, 2))
    return tf.cast(tf.round(resized), tf.uint8)


def resize_rows(
    image: tf.Tensor,
    rows: int | tf.Tensor,
    antialias: bool = True,
    first: int | tf.Tensor = 0,
    kept: int | None = None,
) -> tf.Tensor:
    """HxAxB -> KxAxB float32 by the filter of resize_matrices.

    Args:
        image: HxAxB.
        rows: to which H is resized.
        antialias: as in resize_matrices.
        first: the first row that is computed.
        kept: K, how many rows are computed; default: all.
    """
    height, *rest = tf.unstack(tf.shape(image))
    kept = rows if kept is None else kept
    scale = tf.stack([tf.cast(rows, tf.float32) / tf.cast(height, tf.float32), 1.0])
    resized = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, (1, height, 1, rest[0] * rest[1])),
        size=tf.stack([kept, 1]),
        scale=scale,
        translation=tf.stack([-tf.cast(first, tf.float32), 0.0]),
        kernel_type="triangle",
        antialias=antialias,
    )
    return tf.reshape(resized, (kept, *rest))


@dataclasses.dataclass(frozen=True)
class RandomHorizontalFlip(ImageOp):
    """Mirrors left and right with probability p."""

    p: float = 0.5

    def draw(self, seed: tf.Tensor, count: int) -> Parameters:
        """`applied`, count booleans."""
        return {"applied": uniform(seed, count, 1)[:, 0] < self.p}

    def apply_planes(self, planes: tf.Tensor, parameters: Parameters) -> tf.Tensor:
        """Mirrored where applied."""
        return flip_left_right(planes, parameters["applied"])


def resize_center_crop(images: tf.Tensor, resize: int, crop: int) -> tf.Tensor:
    """Short side to `resize`, then the central crop x crop: BxHxWx3 uint8 of any size -> BxSxSx3, rounded to uint8.

    Only what the crop keeps is computed: the whole of a very long image would fill the memory. The arithmetic is the
    same for one image, a batch and a saved model, or rounding would make grey levels of their last bits.
    """
    check_center_crop(resize, crop)
    count, height, width, _ = tf.unstack(tf.shape(images))
    sides = resize * tf.stack([height, width]) // tf.minimum(height, width)
    first = tf.round(tf.cast(sides - crop, tf.float32) / 2)  # half to even, as torchvision
    # Down the rows of all images side by side: HxBWx3, then Wx`crop`Bx3; see resize_one.
    rows = tf.reshape(tf.transpose(images, (1, 0, 2, 3)), (height, count * width, 3))
    rows = tf.reshape(resize_rows(rows, sides[0], first=first[0], kept=crop), (crop, count, width, 3))
    columns = tf.reshape(tf.transpose(rows, (2, 0, 1, 3)), (width, crop * count, 3))
    columns = tf.reshape(resize_rows(columns, sides[1], first=first[1], kept=crop), (crop, crop, count, 3))
    window = tf.cast(tf.round(tf.transpose(columns, (2, 1, 0, 3))), tf.uint8)
    return tf.ensure_shape(window, (images.shape[0], crop, crop, 3))


def check_center_crop(resize: int, crop: int) -> None:
    """A central crop larger than the resized image would need padding, which no recipe asks for."""
    if crop > resize:
        raise UserError(f"centre crop {crop} is larger than the resized short side {resize}; give crop <= resize")
