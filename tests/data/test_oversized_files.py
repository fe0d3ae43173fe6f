"""Images and archives of few bytes that claim to hold very much are refused before they are unpacked."""

import gzip
import io
import re
import struct

import numpy as np
import pytest
import tensorflow as tf

from moco_tf.data import image_bounds, sources
from moco_tf.data.sets import fashion_mnist
from moco_tf.errors import UserError
from moco_tf.formats import tensorpack

# Images: a decoder would turn their few bytes into as many pixels as they claim


def lzw_of_zeros(pixels):
    """GIF's compression of so many pixels of colour 0: each code stands for one more of them than the last."""
    bits, width, out, free, length, done = [], 3, bytearray(), 6, 2, 1

    def put(code):
        bits.extend(code >> i & 1 for i in range(width))

    put(4), put(0)
    while done < pixels:
        put(min(free, 4095))
        done += length
        if free < 4095:
            free, length = free + 1, length + 1
            width += free == 1 << width and width < 12
    put(5)
    out += np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()
    return bytes(out)


def gif(*frames, table=b"\0\0\0\xff\xff\xff", extension=b""):
    """A GIF with frames of these (width, height), each with a comment before it."""
    flags = 0x80 if table else 0
    data = b"GIF89a" + struct.pack("<HHBBB", 8, 8, flags, 0, 0) + table
    for width, height in frames:
        packed = lzw_of_zeros(width * height)
        blocks = b"".join(bytes([len(packed[i : i + 255])]) + packed[i : i + 255] for i in range(0, len(packed), 255))
        local = b"" if table else b"\0\0\0\xff\xff\xff"
        data += extension + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0x80 if local else 0) + local
        data += b"\2" + blocks + b"\0"
    return data + b";"


def webp_lossless(width, height):
    """The header, and of the data a few bytes."""
    chunk = b"VP8L" + struct.pack("<IBI", 10, 0x2F, (width - 1) | (height - 1) << 14) + bytes(5)
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def webp_extended(width, height):
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<II", 10, 0) + sides
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def webp_lossy(width, height):
    chunk = b"VP8 " + struct.pack("<I", 10) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def png(width, height):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + bytes(9)


COMMENT = b"!\xfe\3abc\0"


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (png(60000, 60000), 3_600_000_000),
        (gif((14000, 14000)), 196_000_000),
        (gif(*[(8000, 3000)] * 8, extension=COMMENT), 192_000_000),
        (webp_lossless(16383, 16384), 16383 * 16384),
        (webp_extended(1 << 20, 4096), 1 << 32),
        (webp_lossy(16383, 16383), 16383**2),
    ],
)
def test_images_of_too_many_pixels_are_refused_by_their_headers(data, pixels):
    assert len(data) < 120_000
    assert int(image_bounds.num_pixels(tf.constant(data))) == pixels
    decode = tf.function(sources.decode_rgb)
    for function in (sources.decode_rgb, decode):
        with pytest.raises(tf.errors.InvalidArgumentError, match="too many pixels"):
            function(tf.constant(data))


@pytest.mark.parametrize("table", [b"\0\0\0\xff\xff\xff", b"", bytes(3 * 256)])
@pytest.mark.parametrize("extension", [b"", COMMENT])
def test_a_gif_of_some_frames_is_read(table, extension):
    data = gif((40, 30), (7, 5), table=table, extension=extension)
    if len(table) > 6:
        data = data[:10] + b"\x87" + data[11:]
    assert int(image_bounds.num_pixels(tf.constant(data))) == 40 * 30 + 7 * 5
    assert sources.decode_rgb(tf.constant(data)).shape == (30, 40, 3)


def test_other_images_and_nonsense_have_their_sizes():
    image = tf.zeros([31, 17, 3], tf.uint8)
    for encode in (tf.io.encode_jpeg, tf.io.encode_png):
        assert int(image_bounds.num_pixels(encode(image))) == 31 * 17
    whole = gif((40, 30), extension=COMMENT)
    for data in [b"", b"GIF89a", b"RIFF", b"BM", *(whole[:cut] for cut in range(0, len(whole), 3))]:
        assert int(image_bounds.num_pixels(tf.constant(data))) in (0, 40 * 30)


def test_webp_of_pil_is_read():
    image = pytest.importorskip("PIL.Image")
    for lossless in (False, True):
        file = io.BytesIO()
        image.new("RGB", (33, 21), (200, 10, 10)).save(file, "WEBP", lossless=lossless)
        assert int(image_bounds.num_pixels(tf.constant(file.getvalue()))) == 33 * 21
        assert sources.decode_rgb(tf.constant(file.getvalue())).shape == (21, 33, 3)


# Archives


def test_npz_that_claims_too_much_is_refused(tmp_path):
    """Two small members, whose uncompressed sizes in the central directory are made to say 4 GiB each."""
    path = tmp_path / "bomb.npz"
    np.savez(path, **{"conv0/W": np.zeros(9), "conv0/bn/gamma": np.zeros(9)})
    bomb = bytearray(path.read_bytes())
    for match in list(re.finditer(b"PK\1\2", bomb)):
        bomb[match.start() + 24 : match.start() + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(bomb)
    with pytest.raises(UserError, match="claim to hold 8589934560 of arrays"):
        tensorpack.read(str(path))


def test_npz_with_an_object_array_is_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(UserError, match="not a readable .npz"):
        tensorpack.read(str(tmp_path / "objects.npz"))


def test_gzip_bomb_is_read_no_further_than_it_may_be_right(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">III", 60000, 28, 28))
        for _ in range(160):
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match=rf"{(1 << 26) - 16} bytes of data came, expected 47040000"):
        fashion_mnist.read_idx(str(path), dims=3)
