"""Encodes images again: smaller or in a lower quality where that is asked for, and those that only Pillow reads."""

import io
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from moco_tf.data.decoding import decode_rgb, in_python, is_exact, opened
from moco_tf.data.views.geometry import resize_one

QUALITY = 90  # of JPEGs that are made smaller, where --quality does not say
_STANDARD_SUM = 3688  # of the luminance quantisation table in the JPEG standard, annex K.1: quality 50


def encoder(short_side: int, quality: int | None, white: int = 0) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from an image's bytes to those that are packed, both scalar strings; fails on unreadable ones.

    What is packed TensorFlow reads exactly: a JPEG or PNG of 8 bits is kept, anything else becomes a PNG of the same
    pixels (a WebP that is made smaller, a JPEG).

    Args:
        short_side: in pixels; images with a larger one are resized to it. 0: every image keeps its size.
        quality: 1 to 100 of the JPEGs encoded; JPEGs of a higher one are encoded again, too. None: QUALITY, and only
            what is resized is encoded.
        white: see decode_rgb.
    """

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def encode(data: tf.Tensor) -> tf.Tensor:
        image = decode_rgb(data, white)  # what is kept as it is must be readable, too
        shape = tf.shape(image)[:2]
        short = tf.reduce_min(shape)
        size = short_side * shape // short
        smaller = short > short_side if short_side else tf.constant(False)
        is_jpeg, is_webp = tf.io.is_jpeg(data), tf.strings.substr(data, 0, 4) == b"RIFF"
        lossy = smaller & (is_jpeg | is_webp)
        if quality:
            found = in_python(jpeg_quality, [data], tf.int64)
            lossy |= is_jpeg & (tf.ensure_shape(found, []) > quality)

        def again() -> tf.Tensor:
            resized = tf.cond(smaller, lambda: resize_one(image, size[0], size[1]), lambda: image)
            return tf.cond(
                lossy,
                lambda: tf.io.encode_jpeg(resized, quality=quality or QUALITY, optimize_size=True),
                lambda: tf.io.encode_png(resized),
            )

        return tf.cond(smaller | lossy | ~is_exact(data), again, lambda: tf.identity(data))

    return encode


def jpeg_quality(data: bytes) -> int:
    """The quality of a JPEG, 1 to 100, by the scale of its luminance quantisation table; 0 when it has none.

    Good to 1 from 25 on; below, where many entries stand at their largest value, it comes out higher.
    """
    try:
        with opened(io.BytesIO(data)) as image:
            scale = 100 * sum(getattr(image, "quantization", {})[0]) / _STANDARD_SUM
    except (ValueError, KeyError):
        return 0
    return int(np.clip(round(100 - scale / 2 if scale <= 100 else 5000 / scale), 1, 100))
