"""Image files of every common kind: decoded as Pillow decodes them, or unreadable with a reason; never a crash."""

import dataclasses
import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moco_tf.data import decoding, records
from moco_tf.data.order import EVERYTHING, Share
from moco_tf.data.pipeline import TrainBatches, eval_batches
from moco_tf.data.records import BadImages, UnreadableImages
from moco_tf.data.reencoding import encoder
from moco_tf.data.sets import find
from moco_tf.training.files import one_line

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (40, 48, 3), np.uint8))  # noise: no two neighbours are alike
GREY, ALPHA = PHOTO.convert("L"), Image.fromarray(RNG.integers(0, 256, (40, 48), np.uint8))
DEEP = RNG.integers(0, 4096, (40, 48)).astype(np.uint16)  # of 12 bits, as cameras and microscopes give them
DEEP[0, :2] = 0, 4095
WHITE = 4095
IMAGES = {
    **{mode: PHOTO.convert(mode) for mode in ("1", "L", "RGB", "CMYK", "YCbCr")},
    "P": PHOTO.quantize(200),
    "PA": Image.merge("PA", (PHOTO.quantize(200), ALPHA)),
    "LA": Image.merge("LA", (GREY, ALPHA)),
    "RGBA": Image.merge("RGBA", (*PHOTO.split(), ALPHA)),
    "I;16": Image.fromarray(DEEP),
}
MODES = {  # what each format can hold
    "PNG": ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "BMP": ("1", "L", "P", "RGB"),
    "DIB": ("1", "L", "P", "RGB"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "P", "PA", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16"),
    "WEBP": ("L", "P", "RGB", "RGBA"),
    "JPEG2000": ("L", "RGB", "RGBA", "LA", "YCbCr", "I;16"),
    "AVIF": ("L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
}


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated():
    """A camera's file: lying, with the word that it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PHOTO, "JPEG", quality=95, exif=exif)


def animated(kind, **options):
    frames = [PHOTO, PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    frames = [frame.quantize(64) for frame in frames] if kind == "GIF" else frames
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def small_frame():
    """A GIF whose first frame of 48x40 lies at (5, 3) on a canvas of 60x50."""
    data = bytearray(encoded(PHOTO.quantize(64), "GIF"))
    data[6:10] = struct.pack("<HH", 60, 50)
    at = data.index(struct.pack("<BHHHH", 0x2C, 0, 0, 48, 40)) + 1
    data[at : at + 4] = struct.pack("<HH", 5, 3)
    return bytes(data)


def tiff(pixels, photometric=2, extra=()):
    """A TIFF of these HxWxC pixels, whose samples beyond the photometric ones are said to be `extra`."""
    height, width, bands = pixels.shape
    bits = 8 * pixels.itemsize
    entries = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, photometric), (277, 3, 1, bands)]
    entries += [(278, 4, 1, height), (279, 4, 1, pixels.nbytes)]
    at = 8 + 2 + 12 * (len(entries) + 2 + bool(extra)) + 4
    entries += [(258, 3, bands, at), (273, 4, 1, at + 2 * bands)]
    entries += (
        [(338, 3, len(extra), int.from_bytes(struct.pack("<2H", *extra, *(0,) * (2 - len(extra))), "little"))]
        if extra
        else []
    )
    data = b"II*\0" + struct.pack("<IH", 8, len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + bytes(4)
    return data + struct.pack(f"<{bands}H", *(bits,) * bands) + pixels.tobytes()


FIVE = np.concatenate([np.asarray(PHOTO), RNG.integers(0, 256, (40, 48, 2), np.uint8)], -1)
GOOD = {
    **{
        f"{mode.replace(';', '')}.{kind.lower()}": lambda mode=mode, kind=kind: encoded(IMAGES[mode], kind)
        for kind, modes in MODES.items()
        for mode in modes
        if mode != "I;16"
    },
    "progressive.jpg": lambda: encoded(PHOTO, "JPEG", quality=95, progressive=True),
    "rotated.jpg": rotated,
    **{f"animated.{kind.lower()}": lambda kind=kind: animated(kind) for kind in ("GIF", "PNG", "TIFF", "AVIF")},
    "animated.webp": lambda: animated("WEBP", lossless=True),
    "default_image.png": lambda: animated("PNG", default_image=True),
    "small_frame.gif": small_frame,
    "transparent_colour.png": lambda: encoded(IMAGES["P"], "PNG", transparency=3),
    "transparent_colours.png": lambda: encoded(IMAGES["P"], "PNG", transparency=bytes(range(200))),
    "transparent_rgb.png": lambda: encoded(PHOTO, "PNG", transparency=(1, 2, 3)),
    "transparent.gif": lambda: encoded(IMAGES["P"], "GIF", transparency=3),
    **{f"{bits}_bits.png": lambda bits=bits: encoded(PHOTO.quantize(2**bits), "PNG", bits=bits) for bits in (1, 2, 4)},
    **{
        f"{way}.tiff": lambda way=way: encoded(PHOTO, "TIFF", compression=way)
        for way in ("tiff_lzw", "jpeg", "packbits")
    },
    "a_png.jpg": lambda: encoded(PHOTO, "PNG"),
    "a_jpeg.png": lambda: encoded(PHOTO, "JPEG", quality=95),
    "four_bands.tif": lambda: tiff(FIVE[..., :4], extra=(0,)),
    "four_undeclared.tif": lambda: tiff(FIVE[..., :4]),
    "five_bands.tif": lambda: tiff(FIVE, extra=(0, 0)),
}


EXPORT = tf.function(decoding.decode_exact, input_signature=[tf.TensorSpec([], tf.string)])
PACK = encoder(0, None)


def exported(data):
    """What the graph of an export makes of an image: the image, or None where it refuses."""
    try:
        return EXPORT(tf.constant(data)).numpy()
    except tf.errors.InvalidArgumentError as error:
        assert "Unknown image file format, expected JPEG (grey or RGB) and PNG of up to 8 bits" in one_line(error)
        return None


@pytest.mark.parametrize("name", GOOD)
def test_decoded_as_pillow_does(name):
    """Also as PyTorch's image folders do: the first frame, not turned by EXIF, whatever the name's ending says."""
    data = GOOD[name]()
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert want.shape == ((50, 60, 3) if name == "small_frame.gif" else (40, 48, 3)) and want.std() > 1
    np.testing.assert_array_equal(decoding.decode_rgb(tf.constant(data)), want)
    alone = exported(data)
    assert (alone is not None) == (data[:4] == b"\x89PNG" or data[:3] == b"\xff\xd8\xff" and "CMYK" not in name)
    if alone is not None:
        np.testing.assert_array_equal(alone, want)
    packed = PACK(tf.constant(data)).numpy()  # as it was where TensorFlow reads it, else the same pixels
    np.testing.assert_array_equal(exported(packed), want)
    assert (packed == data) == (alone is not None)


@pytest.mark.parametrize("kind", [kind for kind, modes in MODES.items() if "I;16" in modes])
def test_sixteen_bits_are_scaled_by_their_range(kind):
    data = encoded(IMAGES["I;16"], kind)
    want = np.round(DEEP / 4095 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    assert len(np.unique(want)) == 256
    np.testing.assert_array_equal(decoding.decode_rgb(tf.constant(data), WHITE), want)
    np.testing.assert_array_equal(exported(encoder(0, None, WHITE)(tf.constant(data)).numpy()), want)
    assert decoding.look(io.BytesIO(data)) == (decoding.DEEP, 4095) and exported(data) is None
    for white, words in ((0, "no range of values is known"), (1023, "values from 0 to 4095 came, expected 0 to 1023")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            decoding.decode_rgb(tf.constant(data), white)


def test_sixteen_bits_in_colour():
    """Which Pillow would cut to their upper 8: of 12 bits four would be left."""
    deep = RNG.integers(0, 4096, (40, 48, 3)).astype(np.uint16)
    for image in (deep, np.concatenate([deep, DEEP[..., None]], -1)):
        found = decoding.decode_rgb(tf.io.encode_png(image), WHITE)
        np.testing.assert_array_equal(found, np.round(deep / 4095 * 255))
    with pytest.raises(tf.errors.InvalidArgumentError, match="a colour TIFF of 16 bits came, expected 8"):
        decoding.decode_rgb(tf.constant(tiff(deep)), WHITE)
    with pytest.raises(tf.errors.InvalidArgumentError, match="floating point came, expected integers"):
        decoding.decode_rgb(tf.constant(encoded(GREY.convert("F"), "TIFF")), WHITE)


def test_what_is_unusual_is_said():
    said = {name: decoding.look(io.BytesIO(make()))[0] for name, make in GOOD.items()}
    assert {name for name, words in said.items() if words == decoding.CMYK} == {"CMYK.tiff", "CMYK.jpeg"}
    bands = {"four_bands.tif", "four_undeclared.tif", "five_bands.tif"}
    assert {name for name, words in said.items() if words == decoding.MORE_BANDS} == bands
    assert set(said.values()) == {"", decoding.CMYK, decoding.MORE_BANDS}


JPEG = encoded(PHOTO, "JPEG", quality=95)
BAD = {
    "truncated.jpg": JPEG[: len(JPEG) // 2],
    "header_only.jpg": JPEG[:20],
    "no_end.jpg": JPEG[:-300],
    "scrambled.jpg": JPEG[:200] + bytes(255 - b for b in JPEG[200:]),
    "zero_bytes.jpg": b"",
    "zeros.jpg": bytes(5000),
    "web_page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    "truncated.png": encoded(PHOTO, "PNG")[:-60],
    "truncated.gif": animated("GIF")[:60],
    "truncated.bmp": encoded(PHOTO, "BMP")[:-1000],
    "no_pixels.bmp": b"BM" + bytes(60),
    "truncated.webp": encoded(PHOTO, "WEBP")[:-100],
    "truncated.tif": encoded(PHOTO, "TIFF")[:-100],
    "float.tif": encoded(GREY.convert("F"), "TIFF"),
    "program.tif": encoded(PHOTO, "EPS"),
    "new.jxl": b"\xff\x0a" + bytes(99),
    "phone.heic": b"\0\0\0\x18ftypheic" + bytes(99),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good and bad files side by side, without labels."""
    root = tmp_path_factory.mktemp("kinds")
    for name, make in GOOD.items():
        (root / name).write_bytes(make())
    for name, data in BAD.items():
        (root / name).write_bytes(data)
    return root


def listed(path):
    return dict(line.rsplit("/", 1)[-1].split("\t") for line in path.read_text().splitlines())


def test_bad_files_are_listed_with_a_reason_and_left_out(folder, tmp_path):
    source, file = find.load("folder", "train", str(folder)), tmp_path / "unreadable.txt"
    resize = lambda image: tf.cast(tf.image.resize(image, [8, 8]), tf.uint8)  # noqa: E731
    batches = eval_batches(source, 5, prepare_one=resize, bad_images=BadImages(len(BAD), str(file)))
    found = [source.describe(int(i)).rsplit("/", 1)[-1] for _, _, indices in batches for i in indices]
    assert sorted(found) == sorted(GOOD)
    reasons = listed(file)
    assert reasons.keys() == BAD.keys() and all(reasons.values())


def test_unreadable_images_of_ranks_and_splits(folder, tmp_path):
    """By hand: three that two ranks of an earlier start listed, with one met twice; two splits of one size."""
    source, file = find.load("folder", "train", str(folder)), tmp_path / "unreadable.txt"
    allowed = BadImages(9, str(file))
    assert list(UnreadableImages(source, allowed, EVERYTHING).known()) == []
    for rank, indices in enumerate(([4, 1], [1, 3])):
        for index in indices:
            UnreadableImages(source, allowed, Share(rank, 2)).add(index, "cut off")
    (tmp_path / "unreadable.rank7.txt").write_text("/test/of/another/set.png\tcut off\n")
    assert list(UnreadableImages(source, allowed, EVERYTHING).known()) == [1, 3, 4]
    records.left_out()
    for split, count in (("train", 3), ("test", 1)):
        unreadable = UnreadableImages(dataclasses.replace(source, split=split), BadImages(9), EVERYTHING)
        for index in range(count):
            unreadable.add(index, "cut off")
    of, words = f"of {source.num_examples} images of folder", "could not be read and are left out"
    assert records.left_out() == [f"3 {of} (train) {words}", f"1 {of} (test) {words}"]
    whole = dataclasses.replace(source, split="train")
    for part in ([0, 1, 2], [1, 2, 3, 4], [2, 5]):  # two images in three parts of a split: said once, of the whole
        unreadable = UnreadableImages(whole.subset(np.array(part)), BadImages(9), EVERYTHING)
        for index in np.flatnonzero(np.isin(part, [1, 2])):
            unreadable.add(int(index), "cut off")
    assert records.left_out() == [f"2 {of} (train) {words}"]


class Corner:
    def crop_one(self, image, seed):
        return image[:8, :8]


def test_training_goes_on_with_others_in_their_place(folder, tmp_path):
    source, file = find.load("folder", "train", str(folder)), tmp_path / "unreadable.txt"
    batches = TrainBatches(
        source, 8, 0, crops=[Corner()], bad_images=BadImages(len(BAD), str(file)), drop_remainder=False
    )
    seen = {source.describe(int(i)).rsplit("/", 1)[-1] for _, _, indices in batches.batches(0) for i in indices}
    assert seen <= set(GOOD) and listed(file).keys() == BAD.keys()
