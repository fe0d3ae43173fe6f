"""Images and archives of few bytes that claim to hold very much are refused before they are unpacked."""

import gzip
import io
import re
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moco_tf.data import decoding
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


def jpeg(width, height):
    data = bytearray(tf.io.encode_jpeg(tf.zeros([8, 8, 3], tf.uint8)).numpy())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def pillow_file(kind, width, height):
    """A file of Pillow's of 8x8 pixels, made to claim these sides."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, **{"no_jp2": True} if kind == "JPEG2000" else {})
    data = bytearray(file.getvalue())
    if kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "TIFF":
        for tag, value in ((256, width), (257, height)):
            at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
            data[at : at + 4] = struct.pack("<I", value)
    elif kind == "PPM":
        data = bytearray(b"P6 %d %d 255 " % (width, height)) + bytes(99)
    else:
        at = data.index(b"\xff\x51") + 6
        data[at : at + 8] = struct.pack(">II", width, height)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        *(png(60000, 60000), png(1 << 31, 1 << 31), png(13378, 13378), jpeg(60000, 60000), gif((14000, 14000))),
        *(webp_lossless(16383, 16384), webp_extended(1 << 20, 4096), webp_lossy(16383, 16383)),
        *(pillow_file(kind, 20000, 20000) for kind in ("BMP", "TIFF", "PPM", "JPEG2000")),
    ],
    ids=lambda data: f"{data[:6]!r}",
)
def test_images_of_too_many_pixels_are_refused_by_their_headers(data):
    assert len(data) < 120_000
    for function in (decoding.decode_rgb, tf.function(decoding.decode_rgb)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"too many pixels came, expected at most 178,956,970"):
            function(tf.constant(data))
    with pytest.raises(tf.errors.InvalidArgumentError, match="too many pixels|Unknown image file format"):
        tf.function(decoding.decode_exact)(tf.constant(data))


@pytest.mark.parametrize("table", [b"\0\0\0\xff\xff\xff", b"", bytes(3 * 256)])
@pytest.mark.parametrize("extension", [b"", COMMENT])
def test_of_a_gif_the_first_frame_alone_is_read(table, extension):
    """However large the others are together: 24 million pixels here, and then 192 million."""
    data = gif((40, 30), *[(8000, 3000)] * (9 if extension and not table else 1), table=table, extension=extension)
    if len(table) > 6:
        data = data[:10] + b"\x87" + data[11:]
    assert decoding.decode_rgb(tf.constant(data)).shape == (30, 40, 3)


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
