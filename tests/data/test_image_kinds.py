"""Image files of every common kind: decoded as PIL decodes them, or unreadable with a reason; never a crash."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moco_tf.data import sources
from moco_tf.data.pipeline import TrainBatches, eval_batches
from moco_tf.data.records import BadImages
from moco_tf.data.sets import find

# Smooth, so that JPEG decoders that round differently differ little.
PHOTO = np.stack([*np.meshgrid(*[np.linspace(20, 230, n) for n in (48, 40)]), np.full((40, 48), 120)], -1)
PHOTO = Image.fromarray(PHOTO.astype(np.uint8))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated():
    """A camera's file: lying, with the word that it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PHOTO, "JPEG", quality=95, exif=exif)


def animated():
    frames = [PHOTO.quantize(64), PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT).quantize(64)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def deep():
    """A PNG of 16 bits, grey."""
    grey = np.asarray(PHOTO.convert("L"), np.uint16) * 257
    return encoded(Image.fromarray(grey), "PNG")


GOOD = {
    "rgb.jpg": lambda: encoded(PHOTO, "JPEG", quality=95),
    "progressive.jpg": lambda: encoded(PHOTO, "JPEG", quality=95, progressive=True),
    "cmyk.jpg": lambda: encoded(PHOTO.convert("CMYK"), "JPEG", quality=95),
    "grey.jpg": lambda: encoded(PHOTO.convert("L"), "JPEG", quality=95),
    "rotated.jpg": rotated,
    "animated.gif": animated,
    "palette.png": lambda: encoded(PHOTO.quantize(64), "PNG"),
    "alpha.png": lambda: encoded(PHOTO.convert("RGBA"), "PNG"),
    "black_and_white.png": lambda: encoded(PHOTO.convert("1"), "PNG"),
    "bitmap.bmp": lambda: encoded(PHOTO, "BMP"),
    "a_png.jpg": lambda: encoded(PHOTO, "PNG"),
    "a_jpeg.png": lambda: encoded(PHOTO, "JPEG", quality=95),
}


@pytest.mark.parametrize("name", GOOD)
def test_decoded_as_pil_does(name):
    """Also as PyTorch's image folders do: the first frame, not turned by EXIF, whatever the name's ending says."""
    data = GOOD[name]()
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
    found = sources.decode_rgb(tf.constant(data)).numpy().astype(int)
    assert found.shape == want.shape == (40, 48, 3)
    tolerance = 0 if data[:2] != b"\xff\xd8" else 4
    assert np.abs(found - want).max() <= tolerance


def test_sixteen_bits_keep_the_upper_eight():
    found = sources.decode_rgb(tf.constant(deep())).numpy()
    np.testing.assert_array_equal(found, np.asarray(PHOTO.convert("L"))[..., None].repeat(3, -1))


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
    "truncated.gif": animated()[:60],
    "truncated.bmp": encoded(PHOTO, "BMP")[:-1000],
    "no_pixels.bmp": b"BM" + bytes(60),
    "tiff.tif": encoded(PHOTO, "TIFF"),
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


class Corner:
    def crop_one(self, image, seed):
        return image[:8, :8]


def test_training_goes_on_with_others_in_their_place(folder, tmp_path):
    source, file = find.load("folder", "train", str(folder)), tmp_path / "unreadable.txt"
    batches = TrainBatches(source, 8, 0, crops=[Corner()], bad_images=BadImages(len(BAD), str(file)))
    seen = {source.describe(int(i)).rsplit("/", 1)[-1] for _, _, indices in batches.batches(0) for i in indices}
    assert seen <= set(GOOD) and listed(file).keys() == BAD.keys()
