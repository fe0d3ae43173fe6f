"""Means and deviations: which are known, and measured ones against NumPy and PIL."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from moco_tf.data import normalisation, sources
from moco_tf.data.normalisation import MIN_STD, NORMALISATIONS, found, keep, known, measure
from moco_tf.data.sets import find
from moco_tf.errors import UserError

RNG = np.random.default_rng(0)


def colours(count, *shape):
    """Random images with another brightness and contrast in each channel."""
    low, high = np.array([10, 40, 90]), np.array([60, 200, 250])
    return RNG.integers(low, high, [count, *shape, 3]).astype(np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def folder(root, images):
    """A RecordSource of images, or of raw bytes, in files."""
    root.mkdir()
    for i, image in enumerate(images):
        (root / f"{i:04}.png").write_bytes(image if isinstance(image, bytes) else png(image))
    return find.load("folder", "train", str(root))


def test_every_constant_is_of_three_channels():
    for mean, std in NORMALISATIONS.values():
        assert len(mean) == len(std) == 3 and all(0 <= m < 1 for m in mean) and all(0 < s <= 1 for s in std)


@pytest.mark.parametrize(
    ("name", "dataset", "expected"),
    [
        ("none", "cifar10", "none"),
        ("imagenet", "folder", "imagenet"),
        ("auto", "cifar10", "cifar10"),
        ("auto", "cifar100:3.0.2", "cifar100"),
        ("auto", "stl10", "stl10"),
        ("auto", "fashion_mnist", "fashion_mnist"),
        ("auto", "imagenet2012", "imagenet"),
        ("auto", "imagenet2012_subset/10pct:5.*.*", "imagenet"),
        ("auto", "imagenet100", "imagenet"),
        ("auto", "imagenette/160px-v2", "imagenet"),
        ("auto", "imagewang", "imagenet"),
        ("auto", "imagenet_v2/topimages", "imagenet"),
    ],
)
def test_known(name, dataset, expected):
    assert known(name, dataset) == NORMALISATIONS[expected] == normalisation.normalisation(name, dataset)


@pytest.mark.parametrize("dataset", ["folder", "cifar10_1", "oxford_flowers102", "imagenet_sketch", "svhn"])
def test_to_be_measured(dataset):
    assert known("auto", dataset) is None
    assert normalisation.normalisation("auto", dataset) == NORMALISATIONS["imagenet"]


def test_of_an_array():
    images = colours(150, 7, 5)
    mean, std = measure(sources.ArraySource("noise", images))
    np.testing.assert_allclose(mean, images.reshape(-1, 3).mean(0) / 255, rtol=1e-12)
    np.testing.assert_allclose(std, images.reshape(-1, 3).std(0) / 255, rtol=1e-9)
    assert all(type(value) is float for value in (*mean, *std))


def test_of_grey_images(tmp_path):
    images = RNG.integers(0, 255, [20, 6, 6, 1]).astype(np.uint8)
    wanted = [images.mean() / 255] * 3, [images.std() / 255] * 3
    np.testing.assert_allclose(measure(sources.ArraySource("grey", images)), wanted, rtol=1e-9)
    np.testing.assert_allclose(measure(folder(tmp_path / "grey", images[..., 0])), wanted, rtol=1e-9)


def test_images_of_any_size_weigh_the_same(tmp_path):
    images = [colours(1, 2 + 9 * i, 40 - 4 * i)[0] for i in range(9)]
    flat = [image.reshape(-1, 3) / 255 for image in images]
    mean = np.mean([pixels.mean(0) for pixels in flat], axis=0)
    std = np.sqrt(np.mean([((pixels - mean) ** 2).mean(0) for pixels in flat], axis=0))
    np.testing.assert_allclose(measure(folder(tmp_path / "sizes", images)), (mean, std), rtol=1e-9)


def test_unreadable_images_are_left_out(tmp_path):
    images = colours(70, 4, 4)
    files = [*images[:3], b"", b"no image", *images[3:], png(images[0])[:60]]
    np.testing.assert_allclose(
        measure(folder(tmp_path / "some", files)), measure(sources.ArraySource("all", images)), rtol=1e-9
    )
    with pytest.raises(UserError, match="none of its 2 images can be read"):
        measure(folder(tmp_path / "none", [b"", b"no image"]))


def test_the_sample_is_seeded(tmp_path):
    images = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None, None], (200, 3, 3, 3))
    array, files = sources.ArraySource("levels", images), folder(tmp_path / "levels", list(images))
    assert measure(array, 50) == measure(array, 50)
    np.testing.assert_allclose(measure(array, 50), measure(files, 50), rtol=1e-12)
    assert measure(array, 50) != measure(array, 50, seed=1)
    total = measure(array, 1)[0][0] * 255
    assert total == pytest.approx(round(total))  # of one image alone
    assert measure(array, 150)[0][0] == pytest.approx(99.5 / 255, abs=0.03)
    assert measure(array, 200) == measure(array, 10**6, seed=5)  # all of them


def test_images_of_one_colour():
    images = np.full([4, 5, 5, 3], (0, 100, 255), np.uint8)
    wanted = (0, 100 / 255, 1), (MIN_STD,) * 3
    np.testing.assert_allclose(measure(sources.ArraySource("flat", images)), wanted, rtol=1e-6)


def kept(path, source):
    values = found(path, source)
    keep(path, source, values)
    return values


def test_kept_in_a_file(tmp_path, monkeypatch):
    source = sources.ArraySource("noise", colours(30, 4, 4))
    path = tmp_path / "run" / "normalisation.json"
    first = kept(str(path), source)
    assert first == measure(source)
    assert json.loads(path.read_text()) == {"dataset": "noise", "mean": list(first[0]), "std": list(first[1])}
    assert [entry.name for entry in path.parent.iterdir()] == ["normalisation.json"]
    monkeypatch.setattr(normalisation, "measure", lambda source: pytest.fail("measured again"))
    assert kept(path, source) == first


def test_found_first_and_kept_later(tmp_path):
    source = sources.ArraySource("noise", colours(30, 4, 4))
    path = tmp_path / "run" / "normalisation.json"
    values = found(path, source)
    assert values == measure(source) and not path.parent.exists()
    keep(path, source, values)
    keep(path, source, ((0.0,) * 3, (1.0,) * 3))  # the first one stays
    assert found(path, source) == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"mean": [0, 0, 0]}', "cannot be read"),
        ('{"mean": 3, "std": 3}', "cannot be read"),
        ('{"dataset": "other", "mean": [0, 0, 0], "std": [1, 1, 1]}', "'other', expected 'noise'"),
        ('{"dataset": "noise", "mean": [0, 0], "std": [1, 1, 1]}', "three numbers"),
        ('{"dataset": "noise", "mean": [0, 0, 0], "std": [1, 0, 1]}', "three numbers"),
        ('{"dataset": "noise", "mean": [125, 123, 113], "std": [1, 1, 1]}', "three numbers"),
        ('{"dataset": "noise", "mean": [0, 0, 0], "std": [1, NaN, 1]}', "three numbers"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_broken_files(tmp_path, text, expected):
    path = tmp_path / "normalisation.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=expected) as caught:
        kept(path, sources.ArraySource("noise", colours(3, 4, 4)))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and "remove it" in str(caught.value)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        kept(tmp_path / "file" / "normalisation.json", sources.ArraySource("noise", colours(3, 4, 4)))


def test_moments_of_one_image_and_of_a_batch():
    images = colours(2, 3, 4)
    both = normalisation._moments(tf.constant(images))
    np.testing.assert_array_equal(both[1], normalisation._moments(tf.constant(images[1])))
    assert both.shape == (2, 2, 3)
