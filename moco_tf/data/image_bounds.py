"""How many pixels an encoded image will have, from its headers: a few bytes can promise gigabytes.

It uses graph operations alone, so that an exported model has the check, too. The decoders are not asked, because they
allocate the memory before they find that data is missing.
"""

import tensorflow as tf

MAX_PIXELS = 178_956_970  # 512 MiB of RGB; PIL draws the line against decompression bombs at the same place


def within_bounds(data: tf.Tensor) -> tf.Tensor:
    """The encoded image as it is; fails on one of more than MAX_PIXELS, all frames of an animation together."""
    fits = tf.debugging.assert_less_equal(num_pixels(data), tf.constant(MAX_PIXELS, tf.int64), "too many pixels")
    with tf.control_dependencies([fits] if fits is not None else []):  # eager assertions return None
        return tf.identity(data)


def num_pixels(data: tf.Tensor) -> tf.Tensor:
    """Pixels of a JPEG, PNG, WebP or GIF by its headers: scalar int64.

    0 for the others: the decoder of BMP compares with the file's size, and there is none for the rest.
    """
    cases = [
        (tf.io.is_jpeg(data), lambda: tf.reduce_prod(tf.cast(tf.io.extract_jpeg_shape(data)[:2], tf.int64))),
        (_starts(data, b"\x89PNG", 24), lambda: _png(data)),
        (_starts(data, b"GIF8", 13), lambda: _gif(data)),
        (_starts(data, b"RIFF", 30), lambda: _webp(data)),
    ]
    return tf.case(cases, default=lambda: tf.constant(0, tf.int64))


def _starts(data: tf.Tensor, magic: bytes, size: int) -> tf.Tensor:
    return tf.logical_and(tf.strings.length(data) >= size, tf.strings.substr(data, 0, len(magic)) == magic)


def _numbers(data: tf.Tensor, at: int, size: int) -> tf.Tensor:
    """Bytes as int64."""
    return tf.cast(tf.io.decode_raw(tf.strings.substr(data, at, size), tf.uint8), tf.int64)


def _png(data: tf.Tensor) -> tf.Tensor:
    """Width and height are big-endian, of four bytes, at bytes 16 and 20."""
    sides = tf.linalg.matvec(
        tf.reshape(_numbers(data, 16, 8), [2, 4]), tf.constant([1 << 24, 1 << 16, 256, 1], tf.int64)
    )
    return tf.reduce_prod(sides)


def _webp(data: tf.Tensor) -> tf.Tensor:
    """The canvas of an extended file, or the size in the header of the one chunk, lossless or lossy (RFC 9649)."""
    b = _numbers(data, 12, 18)  # from the first chunk's name on; its contents start at 8

    def little_endian(*at: int) -> tf.Tensor:
        return tf.add_n([b[i] * 256**place for place, i in enumerate(at)])

    bits = little_endian(9, 10, 11, 12)  # of VP8L, after a signature byte: 14 for each side
    extended = (little_endian(12, 13, 14) + 1) * (little_endian(15, 16, 17) + 1)
    lossless = (bits % 2**14 + 1) * (bits // 2**14 % 2**14 + 1)
    lossy = little_endian(14, 15) % 2**14 * (little_endian(16, 17) % 2**14)
    return tf.where(b[3] == ord("X"), extended, tf.where(b[3] == ord("L"), lossless, lossy))


def _gif(data: tf.Tensor) -> tf.Tensor:
    """The sum over all frames, because the decoder reads all of them before the first is taken (GIF89a, section 17 on).

    Frames have sizes of their own, so each block is visited; of the data between them only lengths are looked at.
    """
    b = tf.cast(tf.io.decode_raw(data, tf.uint8), tf.int32)
    size = tf.size(b)

    def at(place: tf.Tensor) -> tf.Tensor:
        return b[tf.minimum(place, size - 1)]

    def after_table(place: tf.Tensor, flags: tf.Tensor) -> tf.Tensor:
        """Behind a colour table, if the flags announce one."""
        return place + tf.where(flags >= 128, 3 * tf.bitwise.left_shift(2, flags % 8), 0)

    def after_data(place: tf.Tensor) -> tf.Tensor:
        """Behind sub-blocks, each of as many bytes as its first one says, the last of none."""
        (end,) = tf.while_loop(
            lambda place: (place < size) & (at(place) > 0), lambda place: (place + at(place) + 1,), (place,)
        )
        return end + 1

    def frame(place: tf.Tensor, pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        width, height = (tf.cast(at(place + i) + 256 * at(place + i + 1), tf.int64) for i in (5, 7))
        pixels += tf.where(place + 10 <= size, width * height, 0)  # else the file is cut here
        return after_data(after_table(place + 10, at(place + 9)) + 1), pixels

    def block(place: tf.Tensor, pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cond(
            at(place) == 0x2C, lambda: frame(place, pixels), lambda: (after_data(place + 2), pixels)
        )  # an image, or an extension

    _, pixels = tf.while_loop(
        lambda place, _: (place < size) & (at(place) != 0x3B),  # the trailer
        block,
        (after_table(tf.constant(13), at(tf.constant(10))), tf.constant(0, tf.int64)),
    )
    return pixels
