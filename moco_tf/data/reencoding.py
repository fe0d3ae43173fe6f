"""Encodes images again, smaller or in a lower quality, where that is asked for; keeps all others byte for byte."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from moco_tf.data.sources import decode_rgb
from moco_tf.data.views.geometry import resize_one

QUALITY = 90  # of JPEGs that are made smaller, where --quality does not say
_STANDARD_SUM = 3688  # of the luminance quantisation table in the JPEG standard, annex K.1: quality 50


def encoder(short_side: int, quality: int | None) -> Callable[[tf.Tensor], tf.Tensor]:
    """A graph function from an image's bytes to those that are packed, both scalar strings; fails on unreadable ones.

    A GIF becomes a PNG of its first frame, as TFDS reads all frames.

    Args:
        short_side: in pixels; images with a larger one are resized to it. 0: every image is kept as it is.
        quality: 1 to 100 of the JPEGs encoded; JPEGs of a higher one are encoded again, too. None: QUALITY, and only
            what is resized is encoded.
    """

    def encode(data: tf.Tensor) -> tf.Tensor:
        image = decode_rgb(data)
        shape = tf.shape(image)[:2]
        short = tf.reduce_min(shape)
        size = short_side * shape // tf.maximum(short, 1)
        smaller = short > short_side if short_side else tf.constant(False)

        def again() -> tf.Tensor:
            resized = tf.cond(smaller, lambda: resize_one(image, size[0], size[1]), lambda: image)
            return tf.cond(
                tf.io.is_jpeg(data) | _starts(data, b"RIFF"),  # JPEG or WebP
                lambda: tf.io.encode_jpeg(resized, quality=quality or QUALITY, optimize_size=True),
                lambda: tf.io.encode_png(resized),
            )

        wanted = smaller | _starts(data, b"GIF8")
        if quality:
            found = tf.numpy_function(_quality_of, [data], tf.int64, stateful=False)
            wanted |= tf.ensure_shape(found, []) > quality
        with tf.control_dependencies([short]):  # what is kept as it is must be readable, too
            return tf.cond(wanted, again, lambda: tf.identity(data))

    return encode


def _starts(data: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.strings.substr(data, 0, 4) == magic


def _quality_of(data: bytes | np.ndarray) -> int:
    return jpeg_quality(data if isinstance(data, bytes) else data.item())  # eagerly called, TensorFlow gives an array


def jpeg_quality(data: bytes) -> int:
    """The quality of a JPEG, 1 to 100, by the scale of its luminance quantisation table; 0 when it has none.

    Good to 1 from 25 on; below, where many entries stand at their largest value, it comes out higher.
    """
    at = 2
    while len(data) > at + 4 and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDB and data[at + 4] & 15 == 0:  # a quantisation table, number 0 the first of its segment
            wide = data[at + 4] >> 4  # 16 bits an entry, or 8
            table = np.frombuffer(data[at + 5 : at + 5 + (64 << wide)], ">u2" if wide else "u1")
            scale = 100 * float(table.sum()) / _STANDARD_SUM
            return int(np.clip(round(100 - scale / 2 if scale <= 100 else 5000 / scale), 1, 100))
        at += 2 + length
    return 0
