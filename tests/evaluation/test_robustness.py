"""Altered test images against our own views' blur, TensorFlow's JPEG and NumPy; accuracies through kNN."""

import numpy as np
import pytest
import tensorflow as tf

from moco_tf.data.sources import ArraySource
from moco_tf.data.views.blur import GaussianBlur
from moco_tf.evaluation import knn, robustness
from moco_tf.training.collectives import SingleProcess


@pytest.fixture(scope="module")
def image():
    """Smooth, as photographs are: JPEG keeps most of it."""
    y, x = np.mgrid[0:48, 0:40] / 8
    return np.uint8(127 + 100 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2))


def test_three_strengths_of_four_kinds():
    assert list(robustness.alterations()) == [
        *("blur 1", "blur 2", "blur 3", "noise 0.04", "noise 0.08", "noise 0.16"),
        *("jpeg 50", "jpeg 25", "jpeg 10", "dark 0.7", "dark 0.5", "dark 0.3"),
    ]


@pytest.mark.parametrize("strength", robustness.STRENGTHS["blur"])
def test_blur_is_that_of_the_views(image, strength):
    parameters = {"sigma": tf.constant([0.4 * strength], tf.float32), "applied": tf.constant([True])}
    expected = GaussianBlur().apply(tf.constant(image[None] / 255, tf.float32), parameters)[0] * 255
    difference = np.abs(robustness.alter(image, "blur", strength) - expected.numpy())
    assert difference.mean() < 1 and difference.max() < 3  # Pillow rounds after each pass


@pytest.mark.parametrize("quality", robustness.STRENGTHS["jpeg"])
def test_jpeg_is_that_of_tensorflow(image, quality):
    coded = tf.io.encode_jpeg(image, quality=int(quality))
    expected = tf.io.decode_jpeg(coded, dct_method="INTEGER_ACCURATE").numpy().astype(int)
    found = robustness.alter(image, "jpeg", quality)
    assert np.abs(found - expected).max() <= 1 and np.abs(found.astype(int) - image).mean() > 0.3


@pytest.mark.parametrize("share", robustness.STRENGTHS["dark"])
def test_dark_is_a_share_of_the_light(image, share):
    assert np.abs(robustness.alter(image, "dark", share) - share * image).max() <= 1


@pytest.mark.parametrize("strength", robustness.STRENGTHS["noise"])
def test_noise_has_its_deviation_and_is_an_images_own(strength):
    gray = np.full((64, 64, 3), 128, np.uint8)
    found = robustness.alter(gray, "noise", strength, 5)
    assert found.std() == pytest.approx(255 * strength, rel=0.03) and abs(found.mean() - 128) < 1
    change = robustness.alterations()[f"noise {strength:g}"]
    batch = change(np.stack([gray] * 2), np.array([9, 5]))
    np.testing.assert_array_equal(batch[1], found)  # wherever in whatever batch it comes
    assert (batch[0] != batch[1]).mean() > 0.8


def test_accuracy_on_altered_images():
    """Half of the classes differ in brightness alone: darkness takes these away, and the bank stays as it is."""
    levels = np.array([40, 60, 130, 200])
    images = np.broadcast_to(levels[np.arange(40) % 4, None, None, None], (40, 8, 8, 3)).astype(np.uint8)
    source = ArraySource("levels", images, np.arange(40) % 4, ("a", "b", "c", "d"))

    def embed(x):
        mean = tf.reduce_mean(x, axis=[1, 2, 3])
        return tf.stack([tf.cos(mean), tf.sin(mean)], axis=1)

    found = knn.measure(
        *(embed, source, source, ((8, 8), (8, 8)), [1], [0.1], "weighted", 16, SingleProcess()),
        alterations={"same": lambda images, _: images, "darker": lambda images, _: np.uint8(images * 0.65)},
    )
    # 26, 39, 84.5, 130 are nearest to 40, 40, 60 and 130
    assert found.outcomes[0].top1 == found.altered["same"] == 1 and found.altered["darker"] == 0.25
