"""Features of a data set are those of its images, resized and cut once."""

import numpy as np
import tensorflow as tf

from moco_tf.data.sources import load
from moco_tf.evaluation import features
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
