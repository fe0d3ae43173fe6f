"""Features of a data set are those of its images, resized and cut once."""

import types

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from moco_tf.data.records import BadImages
from moco_tf.data.sets.find import load
from moco_tf.data.sources import ArraySource
from moco_tf.errors import RankError, UserError
from moco_tf.evaluation import features, scores
from moco_tf.training.collectives import SingleProcess


def test_image_files_are_resized_and_cut_once(tmp_path):
    y, x = np.mgrid[:64, :80]
    image = np.stack([3 * x, 3 * y, x + y], -1).astype(np.uint8)
    (tmp_path / "train").mkdir()
    tf.io.write_file(str(tmp_path / "train" / "0.png"), tf.io.encode_png(image))
    source = load("folder", "train", str(tmp_path))
    geometry = features.test_geometry(source, 32)
    found, _ = features.extract(tf.identity, source, geometry, 1, SingleProcess())
    # The short side becomes 256/224 of 32.
    resized = PIL.Image.fromarray(image).resize((37 * 80 // 64, 37), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found[0] * 255, np.asarray(resized, np.float32)[2:34, 7:39], atol=1.01)
    np.testing.assert_allclose(found, features.prepare_batch(tf.constant(image[None]), geometry), atol=1e-6)


@pytest.mark.parametrize("test_resize, taken", [(0, True), (32, True), (36, False)])
def test_an_image_of_the_networks_size_is_taken_as_it_is(test_resize, taken, tmp_path):
    """Whatever holds it: files beside others, an array, a saved model; but not where a resize is asked for."""
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in ((32, 32), (40, 32), (32, 32), (50, 64))]
    for number, image in enumerate(images):
        tf.io.write_file(str(tmp_path / f"{number}.png"), tf.io.encode_png(image))
    source = load("folder", "train", str(tmp_path))
    files, _ = features.extract(
        tf.identity, source, features.test_geometry(source, 32, test_resize), 3, SingleProcess()
    )
    saved = tf.function(
        lambda x: features.prepare_batch(x, (test_resize, 32)), [tf.TensorSpec([None, None, None, 3], tf.uint8)]
    )
    for image, file in zip(images, files):
        held = ArraySource("array", image[None])
        geometry = features.test_geometry(held, 32, test_resize)
        array, _ = features.extract(tf.identity, held, geometry, 3, SingleProcess())
        for other in (array[0], saved(image[None])[0]):
            np.testing.assert_array_equal(other, file)
        if image.shape == (32, 32, 3):
            assert np.array_equal(np.round(file * 255), image) == taken


def test_a_rank_whose_images_cannot_be_read(tmp_path):
    (tmp_path / "train").mkdir()
    for number in range(4):
        data = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)) if number % 2 == 0 else b"no image"
        tf.io.write_file(str(tmp_path / "train" / f"{number}.png"), data)
    source = load("folder", "train", str(tmp_path))
    for rank in (0, 1):
        given = tf.identity, source, (8, 8), 2, types.SimpleNamespace(rank=rank, size=2)
        if rank == 0:
            assert list(features.extract_share(*given)[2]) == [0, 2]
            continue
        with pytest.raises(RankError, match="folder: none of a rank's 2 images can be read"):
            features.extract_share(*given, bad_images=BadImages(9))


def test_images_without_a_label_are_refused():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    whole, part = (ArraySource("digits", images, labels, ("a", "b")) for labels in ([0, 1, 1], [0, -1, 1]))
    scores.check_labels(whole, whole)
    for pair in ((whole, part), (part, whole)):
        with pytest.raises(UserError, match="1 of 3 images in digits have no label"):
            scores.check_labels(*pair)


def test_features_that_are_zero(capsys):
    """Of all ranks' features together, said once: here three of five a rank, on two ranks."""

    class Two(SingleProcess):
        rank, size = 0, 2

    zero = np.ones([5, 4], np.float32)
    zero[[0, 2, 3]] = 0
    features.check_finite(zero, Two())
    assert capsys.readouterr().out == "warning: 6 of 10 features are all zero: they are alike to any other\n"
    Two.rank = 1
    features.check_finite(zero, Two())
    assert not capsys.readouterr().out
    zero[4, 1] = np.inf
    with pytest.raises(UserError, match="not all finite"):
        features.check_finite(zero, Two())
