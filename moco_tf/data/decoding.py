"""Decodes images: TensorFlow reads what it reads exactly, Pillow reads the rest.

TensorFlow's part are JPEGs (grey or RGB) and PNGs of up to 8 bits a channel, which it decodes to the same values as
Pillow; an exported graph holds nothing else. BMP, GIF, TIFF, WebP, CMYK and so on are read by Python called from the
graph. Only the input pipeline, which is never exported, may do that.

Every size is read by the decoder itself before it allocates memory: a few bytes can promise gigabytes.
"""

import functools
import io
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from PIL import Image

MAX_PIXELS = 178_956_970  # 512 MiB of RGB; Pillow draws the line against decompression bombs at the same place
# Not all that Pillow knows: some of its readers start programs (EPS), some take almost anything for an image.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "JPEG2000", "AVIF", "PPM")
EXACT = "JPEG (grey or RGB) and PNG of up to 8 bits a channel"
DEEP = "more than 8 bits a channel"
CMYK = "CMYK: converted to RGB, the fourth band (black) included"
MORE_BANDS = "four or more bands not declared as RGBA: the first three are taken for RGB, the others dropped"
_PNG = b"\x89PNG"
_BITS, _SAMPLES, _EXTRA = 258, 277, 338  # tags of TIFF: bits and number of samples, and what those beyond RGB are
_TOO_MANY = f"too many pixels came, expected at most {MAX_PIXELS:,}"
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # at half of MAX_PIXELS


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)])
def decode_rgb(data: tf.Tensor, white: tf.Tensor = 0) -> tf.Tensor:
    """An image's bytes, a scalar string, to uint8 HxWx3 as Pillow's convert("RGB") gives it; of an animation, frame 1.

    A fourth band is dropped, except CMYK's. EXIF's orientation is not looked at.

    Args:
        data: the bytes.
        white: int32, what becomes 255 in images of more than 8 bits a channel; 0: these are not read.

    Raises:
        tf.errors.OpError: it is no image, is damaged, has too many pixels, or a value above `white`.
    """

    def deep_png() -> tf.Tensor:  # of which Pillow would give 8 bits
        return _in_python(_to_8_bits, _decode_png(data, tf.uint16), white)

    image = tf.case(
        [(is_exact(data), lambda: _decode(data)), (_png_bits(data) > 8, deep_png)],
        default=lambda: _in_python(_read, data, white),
    )
    return tf.ensure_shape(image, [None, None, 3])


def in_python(function: Callable, arguments: list[tf.Tensor], dtype: tf.DType | list[tf.DType]) -> Any:
    """Calls Python from the graph of the input pipeline, which is never exported. No other graph may do so."""
    return tf.numpy_function(function, arguments, dtype, stateful=False)  # noqa: TID251


def decode_exact(data: tf.Tensor) -> tf.Tensor:
    """The same of what TensorFlow reads exactly, by graph operations alone; fails on other images."""
    exact = _checked(data, is_exact(data), f"Unknown image file format, expected {EXACT}; convert it")
    return tf.ensure_shape(_decode(exact), [None, None, 3])


def is_exact(data: tf.Tensor) -> tf.Tensor:
    """Whether TensorFlow decodes an image to the same values as Pillow: scalar bool. Fails on a JPEG without a size."""
    bits = _png_bits(data)
    return tf.cond(
        tf.io.is_jpeg(data), lambda: tf.io.extract_jpeg_shape(data)[2] < 4, lambda: (bits >= 0) & (bits <= 8)
    )


@functools.cache
def extensions() -> tuple[str, ...]:
    """Of the names of images, in small letters: what can be read, and what is to be listed as unreadable."""
    known = (name for name, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))
    return (*known, ".heic", ".heif", ".jxl")


def is_image(path: str) -> bool:
    """Whether a file is an image by its first bytes, whatever its name."""
    try:
        with open(path, "rb") as file, opened(file):
            return True
    except ValueError as error:
        return str(error) == _TOO_MANY
    except OSError:
        return False


def look(file: BinaryIO) -> tuple[str, int]:
    """What of an image is lost in RGB of 8 bits, beside a declared alpha: ("", 0) for the usual ones.

    Returns:
        DEEP and its largest value, or the words for an image of four bands or more and 0.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    start = file.read(26)
    file.seek(0)
    if start[:4] == _PNG:
        return (DEEP, int(_pixels(file.read()).max())) if start[24:25] == b"\x10" else ("", 0)
    with opened(file) as image:
        if image.mode[0] == "I":
            return DEEP, int(_pixels(image).max())
        if image.mode == "CMYK":
            return CMYK, 0
        tags = getattr(image, "tag_v2", {})  # TIFF's
        declared = tags.get(_EXTRA, (0,))[0] in (1, 2)
        return (MORE_BANDS if tags.get(_SAMPLES, 1) > 3 and not declared else ""), 0


def _pixels(image: Image.Image | bytes, mode: str | None = None) -> np.ndarray:
    """An image of Pillow's, in its own mode or this one, or a PNG of 16 bits. Raises ValueError."""
    try:
        if isinstance(image, bytes):
            return _decode_png(image, tf.uint16).numpy()
        return np.asarray(image.convert(mode) if mode else image)
    except Exception as error:  # readers raise whatever damaged bytes lead to
        raise ValueError(str(error) or type(error).__name__) from None


def _decode(data: tf.Tensor) -> tf.Tensor:
    """A JPEG or PNG to uint8 HxWx3; its method for JPEG is the one that Pillow uses."""

    def jpeg() -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(data, tf.int64)
        return tf.io.decode_jpeg(_within_limit(data, shape[0] * shape[1]), 3, dct_method="INTEGER_ACCURATE")

    return tf.cond(tf.io.is_jpeg(data), jpeg, lambda: _decode_png(data, tf.uint8))


def _decode_png(data: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    sides = tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.int32, little_endian=False)
    pixels = tf.reduce_prod(tf.cast(tf.bitcast(sides, tf.uint32), tf.int64))
    return tf.io.decode_png(_within_limit(data, pixels), 3, dtype)


def _in_python(function: Callable[..., np.ndarray], *arguments: tf.Tensor) -> tf.Tensor:
    """uint8 HxWx3 of a function that raises ValueError; raised in the graph TensorFlow would print its traceback."""

    def tried(*values: Any) -> tuple[np.ndarray, str]:
        try:
            return function(*values), ""
        except ValueError as error:
            return np.zeros((0, 0, 3), np.uint8), str(error)

    image, reason = in_python(tried, list(arguments), [tf.uint8, tf.string])
    return _checked(image, tf.equal(reason, ""), reason)


def _within_limit(data: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    return _checked(data, pixels <= MAX_PIXELS, _TOO_MANY)


def _checked(value: tf.Tensor, fits: tf.Tensor, reason: tf.Tensor | str) -> tf.Tensor:
    check = tf.debugging.Assert(fits, [reason])
    with tf.control_dependencies([check] if check is not None else []):  # eager assertions return None
        return tf.identity(value)


def _png_bits(data: tf.Tensor) -> tf.Tensor:
    """Bits of a PNG's channel by its header: scalar int32; -1: it is no PNG."""
    png = (tf.strings.length(data) > 25) & (tf.strings.substr(data, 0, 4) == _PNG)
    return tf.cond(
        png, lambda: tf.cast(tf.io.decode_raw(tf.strings.substr(data, 24, 1), tf.uint8)[0], tf.int32), lambda: -1
    )


def opened(file: BinaryIO) -> Image.Image:
    """The image with its header read. Raises ValueError."""
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(_TOO_MANY) from None
    except Exception:  # readers raise whatever damaged bytes lead to
        raise ValueError(f"Unknown image file format, expected one of {', '.join(FORMATS)}") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(_TOO_MANY)
    return image


def _read(data: bytes, white: int) -> np.ndarray:
    """By Pillow: uint8 HxWx3. Raises ValueError."""
    with opened(io.BytesIO(data)) as image:
        return of_pillow(image, white)


def of_pillow(image: Image.Image, white: int = 0) -> np.ndarray:
    """An image of Pillow's as `decode_rgb` gives it: uint8 HxWx3. Raises ValueError. Args: of `decode_rgb`."""
    if image.mode[0] not in "IF" and max(getattr(image, "tag_v2", {}).get(_BITS, (8,))) > 8:
        raise ValueError("a colour TIFF of 16 bits came, expected 8, as Pillow drops the lower 8; save it as PNG")
    if image.mode[0] in "IF":
        return _to_8_bits(_pixels(image), white)
    image.info.pop("transparency", None)  # else Pillow warns that RGB has none
    return _pixels(image, "RGB")


def _to_8_bits(image: np.ndarray, white: int) -> np.ndarray:
    """uint8 HxWx3 of integers up to white, HxW or HxWx3. Raises ValueError for other values."""
    if image.dtype.kind == "f":
        raise ValueError("floating point came, expected integers; convert it to 8 bits")
    if not white:
        raise ValueError("more than 8 bits a channel came, expected 8, since no range of values is known; convert it")
    if image.min() < 0 or image.max() > white:
        raise ValueError(
            f"values from {image.min()} to {image.max()} came, expected 0 to {white} as in the other images of "
            "its data set; convert them all to 8 bits"
        )
    scaled = np.round(image * (255 / white)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, -1) if image.ndim == 2 else scaled
