"""Features of a data set are those of its images, resized and cut once."""

import types

import numpy as np
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
    assert geometry == (37, 32)
    found, _ = features.extract(tf.identity, source, geometry, 1, SingleProcess())
    wanted = features.prepare_batch(tf.constant(image[None]), geometry)
    np.testing.assert_allclose(found, wanted, atol=1 / 255)  # the file's crop is rounded to whole grey levels


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
