"""The named views as a whole: in eager, graph and compiled form, over ranks, and what they do to a batch of images."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf
from support import parity_files

from moco_tf.data.views import geometry as augment_geometry
from moco_tf.data.views import recipes as views
from moco_tf.data.views.blur import GaussianBlur
from moco_tf.errors import UserError

SEED = tf.constant([5, 6])
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def random_images(count, height, width, seed=0):
    return tf.constant(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("name", sorted(views.VIEWS))
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (24, 40)])
def test_shape_dtype_and_range(name, size):
    for view in views.views(name, 24 if name != "none" else size[0]):
        result = view(random_images(4, *size), SEED)
        assert result.shape == ((4, 24, 24, 3) if name != "none" else (4, *size, 3))
        assert result.dtype == tf.float32
        assert result.numpy().min() >= -1e-6 and result.numpy().max() <= 1 + 1e-6


def test_images_smaller_than_the_crop_grow():
    assert views.view("moco_v2", 32)(random_images(2, 20, 16), SEED).shape == (2, 32, 32, 3)


def check_same(found, expected):
    """In units of the standard deviation, 1/5: equal to rounding, but where that moves one of the hue's 8-bit numbers.

    The pixel then moves by a level or two, and a blur takes its neighbours along.
    """
    difference = np.abs(found - expected)
    assert (difference > 5e-5).mean() <= 0.003 and difference.max() <= 6 / 255 * 5


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2"])
def test_eager_graph_and_compiled_agree(name):
    """Non-square input, both orders of grayscale and jitter, all operations."""
    view = views.view(name, 24, MEAN, STD)
    images = random_images(16, 28, 32)
    eager = view(images, SEED).numpy()
    for jit_compile in (False, True):
        compiled = tf.function(view.__call__, jit_compile=jit_compile)(images, SEED).numpy()
        check_same(compiled, eager)


@pytest.mark.parametrize("name", ["moco_v2", "cifar"])
def test_ranks_together_give_the_views_of_one_process(name):
    """An image's view belongs to its global position: 2 and 4 ranks, contiguous or dealt out, change nothing."""
    view = views.view(name, 32)
    images = random_images(8, 32, 32)
    whole = view(images, SEED).numpy()
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [1, 5], [7, 0, 3]):
        own = view(tf.gather(images, rows), SEED, rows=tf.constant(rows), count=8)
        np.testing.assert_allclose(own, whole[rows], atol=1e-6)


def test_batch_of_unknown_size_in_a_graph():
    view = views.view("cifar", 32)
    images = random_images(5, 32, 32)
    graph = tf.function(
        view.__call__, input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.uint8), tf.TensorSpec(2, tf.int32)]
    )
    np.testing.assert_allclose(graph(images, SEED), view(images, SEED), atol=1e-5)


def test_the_two_views_of_a_step_are_independent():
    view = views.view("moco_v2", 32)
    first, second = view.draw(tf.constant([1, 0]), 2000), view.draw(tf.constant([1, 1]), 2000)
    for one, two in zip(tf.nest.flatten(first), tf.nest.flatten(second)):
        one, two = (tf.cast(values, tf.float64).numpy().reshape(2000, -1)[:, 0] for values in (one, two))
        assert abs(np.corrcoef(one, two)[0, 1]) <= 4 / math.sqrt(2000)


def test_operations_of_one_view_are_independent():
    crop, flip, jitter, gray, blur = views.view("moco_v2", 32).draw(SEED, 4000)
    columns = [crop["area"][:, 0], flip["applied"], jitter["applied"], jitter["hue"], gray["applied"], blur["applied"]]
    correlation = np.corrcoef([tf.cast(column, tf.float64) for column in columns])
    assert np.abs(correlation - np.eye(len(columns))).max() <= 4 / math.sqrt(4000)


def test_normalisation_comes_last():
    images = random_images(4, 32, 32)
    plain, normalised = views.view("cifar", 32)(images, SEED), views.view("cifar", 32, MEAN, STD)(images, SEED)
    np.testing.assert_allclose(normalised, (plain - MEAN) / STD, atol=1e-5)


def test_view_none_only_normalises():
    images = random_images(2, 20, 30)
    result = views.view("none", 32, MEAN, STD)(images, SEED)
    np.testing.assert_allclose(result, (images.numpy() / 255 - MEAN) / STD, atol=1e-5)


def test_without_crop_keeps_the_other_draws():
    """What tf.data crops beforehand meets the same flips and colours as in the whole view."""
    view = views.view("moco_v2", 32)
    rest = view.without_crop()
    assert rest.crop is None and rest.ops == view.ops
    whole, parts = view.draw(SEED, 8), rest.draw(SEED, 8)
    assert parts[0] == {}
    tf.nest.map_structure(np.testing.assert_array_equal, whole[1:], parts[1:])
    images = random_images(8, 32, 32)
    cropped = view.crop.apply(tf.cast(images, tf.float32) / 255, whole[0])
    np.testing.assert_allclose(rest(cropped, SEED), view(images, SEED), atol=1e-5)


def test_crop_scale_of_a_view():
    assert views.view("cifar", 32, crop_scale=(0.3, 0.9)).crop.scale == (0.3, 0.9)


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2"])
def test_views_of_moco_tensorflow(name):
    """The same operations, but a true Gaussian of 23 taps, a uniform aspect ratio and no antialiasing."""
    one, other = views.view(name, 32), views.view(f"{name}_s3", 32)
    assert other.crop == dataclasses.replace(one.crop, antialias=False, uniform_ratio=True)
    with_gaussian = [dataclasses.replace(op, exact=False) if isinstance(op, GaussianBlur) else op for op in one.ops]
    assert list(other.ops) == with_gaussian and all(op.max_taps == 23 for op in other.ops if hasattr(op, "max_taps"))


def test_fast_views():
    view = views.view("moco_v2", 32, fast=True)
    assert not view.crop.antialias
    assert [(op.exact, op.max_taps) for op in view.ops if isinstance(op, GaussianBlur)] == [(False, 13)]


def test_both_views_are_one_object_unless_they_differ():
    first, second = views.views("moco_v2", 32, MEAN, STD)
    assert first is second and first == views.view("moco_v2", 32, MEAN, STD)
    first, second = views.views("moco_v3", 32, MEAN, STD, (0.3, 0.9))
    assert [op.p for op in first.ops[-1:]] == [1.0] and [op.p for op in second.ops[-2:]] == [0.1, 0.2]
    assert first.crop == second.crop and first.crop.scale == (0.3, 0.9) and first.normalize == second.normalize
    with pytest.raises(UserError, match="'moco_v3' is a pair of two different ones, expected one"):
        views.view("moco_v3", 32)


def test_unknown_view_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"--views=moco_v4 came.*cifar.*moco_v2.*\(did you mean moco_v"):
        views.view("moco_v4", 32)


def test_views_of_the_users(tmp_path, monkeypatch):
    lines = ["from moco_tf.data.views.colour import RandomGrayscale", "from moco_tf.data.views.recipes import Recipe"]
    gray = [*lines, "RECIPE = Recipe((0.5, 1.0), (RandomGrayscale(p=1.0),))"]
    (tmp_path / "my_views").mkdir()
    (tmp_path / "my_views" / "gray.py").write_text("\n".join(gray))
    (tmp_path / "my_views" / "pair.py").write_text("\n".join([*gray, "RECIPE = RECIPE, Recipe((0.1, 0.2))"]))
    (tmp_path / "my_views" / "wrong.py").write_text("RECIPE = 3")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = views.view("my_views.gray", 16)(random_images(3, 20, 20), SEED).numpy()
    assert result.shape == (3, 16, 16, 3) and np.ptp(result, axis=3).max() < 1e-6
    assert [view.crop.scale for view in views.views("my_views.pair", 16)] == [(0.5, 1.0), (0.1, 0.2)]
    with pytest.raises(UserError, match="has the RECIPE 3, expected a Recipe or two of them"):
        views.view("my_views.wrong", 16)
    with pytest.raises(UserError, match="my_views.nothing is no module that Python finds"):
        views.view("my_views.nothing", 16)


def test_images_of_unknown_size_are_refused_with_the_way_out():
    graph = tf.function(views.view("cifar", 32).__call__)
    with pytest.raises(ValueError, match="crop_one takes any size"):
        graph.get_concrete_function(tf.TensorSpec((4, None, None, 3), tf.uint8), SEED)


# ---- what comes out of the whole pipeline


def within_three_standard_errors(share, p, count):
    return abs(share - p) <= 3 * math.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize(("name", "p"), [("moco_v1", 0.2), ("moco_v2", 0.2), ("cifar", 0.2), ("cifar_mild", 0.1)])
def test_share_of_gray_outputs(name, p):
    view = views.view(name, 8)
    result = view(random_images(3000, 8, 8), SEED).numpy()
    gray = (result.max(axis=3) - result.min(axis=3)).max(axis=(1, 2)) < 1e-5
    assert within_three_standard_errors(gray.mean(), p, 3000)


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2", "cifar", "crop_flip"])
def test_share_of_mirrored_outputs(name):
    """A gray ramp rises to the right unless it is mirrored; no other operation turns it round."""
    ramp = np.broadcast_to(np.linspace(20, 235, 16)[None, None, :, None], (3000, 16, 16, 3)).astype(np.uint8)
    result = views.view(name, 8)(tf.constant(ramp), SEED).numpy()
    mirrored = result[:, :, :4].mean(axis=(1, 2, 3)) > result[:, :, 4:].mean(axis=(1, 2, 3))
    assert within_three_standard_errors(mirrored.mean(), 0.5, 3000)


def ramps():
    """120x160x3 uint8: red rises by 1.5 a column, green by 2 a row, so that a crop's slopes tell its size."""
    rows, columns = np.mgrid[:120, :160]
    return np.stack([1.5 * columns, 2.0 * rows, 0 * rows], axis=2).astype(np.uint8)


def measured_boxes(crops):
    """Heights and widths (negative if mirrored) read off Nx32x32x3 crops of the ramps, values 0 to 255."""
    span = 15 / 32
    width = (crops[:, :, 23, 0] - crops[:, :, 8, 0]).mean(axis=1) / (1.5 * span)
    height = (crops[:, 23, :, 1] - crops[:, 8, :, 1]).mean(axis=1) / (2.0 * span)
    return height, width


def assert_torchvisions_quantiles(crops, scale):
    height, width = measured_boxes(crops)
    expected = np.load(parity_files.path("augment.npz"))
    deciles = np.linspace(0, 1, 11)[1:-1]
    area = np.quantile(height * np.abs(width) / (120 * 160), deciles)
    log_aspect = np.quantile(np.log(np.abs(width) / height), deciles)
    np.testing.assert_allclose(area, expected[f"rrc_{scale}/area_quantiles"][1:-1], atol=0.05)
    np.testing.assert_allclose(log_aspect, expected[f"rrc_{scale}/log_aspect_quantiles"][1:-1], atol=0.04)


@pytest.mark.parametrize(("name", "scale"), [("crop_flip", 0.08)])
def test_batched_crops_have_torchvisions_distribution(name, scale):
    """1,500 crops, applied 300 rows at a time out of one global draw."""
    images = tf.constant(np.broadcast_to(ramps(), (300, 120, 160, 3)))
    view = tf.function(views.view(name, 32).__call__)
    crops = [view(images, SEED, rows=tf.range(i, i + 300), count=1500).numpy() * 255 for i in range(0, 1500, 300)]
    assert_torchvisions_quantiles(np.concatenate(crops), scale)


def test_crops_in_tf_data_have_torchvisions_distribution():
    crop = views.view("moco_v2", 32).crop
    image = tf.constant(ramps())
    data = tf.data.Dataset.range(1500).map(lambda i: crop.crop_one(image, tf.stack([7, tf.cast(i, tf.int32)])))
    assert data.element_spec == tf.TensorSpec((32, 32, 3), tf.uint8)
    crops = np.stack(list(data.as_numpy_iterator())).astype(np.float64)
    assert_torchvisions_quantiles(crops, 0.2)


def test_crop_of_one_image_equals_the_batched_crop():
    """Same seed, same box; the pipeline rounds to 8 bits."""
    crop = views.view("cifar", 24).crop
    image = np.random.default_rng(3).integers(0, 256, (50, 41, 3)).astype(np.uint8)
    batched = crop.apply(image[None] / np.float32(255), crop.draw(SEED, 1)).numpy()[0] * 255
    assert np.abs(crop.crop_one(tf.constant(image), SEED).numpy() - batched).max() <= 0.51


# ---- in pieces


@pytest.mark.parametrize(("name", "size"), [("moco_v2", 100), ("moco_v1", 24), ("cifar", 24)])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("large", [30, 31])
def test_a_view_in_pieces_equals_the_whole(name, size, fast, large, monkeypatch):
    """In chunks of 4, 4 and 2 images, cropped one by one or not; at 100 px the blur goes by shifts."""
    view = views.view(name, size, MEAN, STD, fast=fast)
    monkeypatch.setattr(views, "CHUNK", 4 * 30 * 34)
    monkeypatch.setattr(augment_geometry, "LARGE", large)
    images, rows = random_images(10, 30, 34), tf.range(3, 13)
    pieces = []

    def run(function, *arguments):
        pieces.append(function)
        return function(*arguments)

    result = view.in_pieces(run)(images, SEED, rows, 16)
    check_same(result, view(images, SEED, rows, 16))  # crops one by one place their filter in the window, not the image
    assert pieces.count(pieces[1]) == 3


def test_compiled_pieces_equal_the_whole():
    view = views.view("moco_v2", 100, MEAN, STD)
    images = random_images(4, 30, 34)
    compiled = tf.function(view.in_pieces())(images, SEED)
    check_same(compiled, view(images, SEED))
