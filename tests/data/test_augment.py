"""The augmentation operations against torchvision's outputs, NumPy oracles and their distributions."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from support import parity_files

from moco_tf.data.views.blur import (
    GaussianBlur,
    blur_by_shifts,
    blur_rows_and_columns,
    box_kernel,
    box_radius,
    gaussian_kernel,
)
from moco_tf.data.views.colour import (
    ColorJitter,
    Normalize,
    RandomGrayscale,
    Solarize,
    adjust_hue,
    blend,
)
from moco_tf.data.views.geometry import (
    RandomHorizontalFlip,
    RandomResizedCrop,
    flip_left_right,
    resize_center_crop,
    resize_one,
    resized_crop,
)
from moco_tf.data.views.ops import from_planes, to_planes, to_unit_range
from moco_tf.errors import UserError

SEED = tf.constant([3, 4])
APPLIED = {"applied": tf.constant([True])}
ADJUST = {
    "brightness": lambda planes, factor: blend(planes, factor, 0 * factor, 0 * factor),
    "contrast": lambda planes, factor: blend(planes, factor, 1 - factor, 0 * factor),
    "saturation": lambda planes, factor: blend(planes, factor, 0 * factor, 1 - factor),
    "hue": adjust_hue,
}
# From torchvision, in 1/255: the mean absolute difference, the share of pixels with one above 2, and the largest.
TOLERANCE = {
    # PIL truncates to 8 bits, which costs 0.5 on the average: of the 3,072 numbers of a small image 0.5 +- 0.02.
    "brightness": (0.53, 0, 1.001),
    "contrast": (0.53, 0, 1.001),
    "saturation": (0.53, 0, 1.25),  # the gray is rounded before
    "hue": (1e-3, 0, 1.001),  # the same 8 bits, but that a half may be rounded either way
    "grayscale": (0.3, 0, 0.501),
    "blur": (0.65, 0.012, 2.6),  # PIL rounds six times
    "crop": (0.35, 0, 1.001),  # PIL rounds twice
    "resize": (0.35, 0, 1.001),
    "hflip": (1e-4, 0, 1e-3),
}


def random_images(count, height, width, seed=0):
    return np.random.default_rng(seed).random((count, height, width, 3)).astype(np.float32)


def on_planes(function, images, *arguments):
    """Calls a function of planes on images."""
    return from_planes(function(to_planes(images), *arguments))


def on_images(function, images, *arguments):
    """The same, with arrays."""
    return on_planes(function, tf.constant(images), *arguments).numpy()


# ---- torchvision's outputs


def case():
    return np.load(parity_files.path("augment.npz"))


def case_names():
    """Keys of the case file, or one stand-in that skips where the file is absent."""
    try:
        keys = case().files
    except pytest.skip.Exception:
        return ["rgb/absent"]
    return [key for key in keys if key.startswith(("rgb/", "small/")) and not key.endswith("input")]


def compute(name, images):
    """What our operation gives for a case called e.g. hue_0.1 or crop_top_left_height_width_to_size."""
    kind, *arguments = name.split("_")
    if kind in ADJUST:
        return on_images(ADJUST[kind], images, tf.constant([float(arguments[0])]))
    if kind == "grayscale":
        return RandomGrayscale(0.2).apply(images, APPLIED)
    if kind == "blur":
        return GaussianBlur((0.1, 2.0)).apply(images, {**APPLIED, "sigma": tf.constant([float(arguments[0])])})
    if kind == "hflip":
        return RandomHorizontalFlip().apply(images, APPLIED)
    if kind == "crop":
        box = tf.constant([[int(a) for a in arguments[:4]]])
        return on_images(resized_crop, images, box, int(arguments[5]))
    assert name == "resize_short36_center32"
    return resize_center_crop(tf.cast(tf.round(images * 255), tf.uint8), 36, 32) / 255


@pytest.mark.parametrize("key", case_names())
def test_equals_torchvision(key):
    group, name = key.split("/")
    images = to_unit_range(tf.constant(case()[f"{group}/input"][None]))
    difference = np.abs(np.asarray(compute(name, images))[0] * 255 - case()[key])
    found = difference.mean(), (difference.max(axis=2) > 2).mean(), difference.max()
    assert all(figure <= bound for figure, bound in zip(found, TOLERANCE[name.split("_")[0]])), found


@pytest.mark.parametrize("group", ["rgb", "small"])
def test_truncated_as_pil_the_blends_are_equal(group):
    """PIL truncates a blend to 8 bits: that is where their tolerance goes, and not into the factors or the bases."""
    images = to_unit_range(tf.constant(case()[f"{group}/input"][None]))
    for kind in ("brightness", "contrast"):
        for factor in ("0.6", "0.85", "1.4"):
            ours = np.floor(compute(f"{kind}_{factor}", images)[0] * 255 + 1e-3)
            difference = np.abs(ours - case()[f"{group}/{kind}_{factor}"])
            assert difference.max() <= 1 and difference.mean() <= 0.03


@pytest.mark.parametrize("group", ["rgb", "small"])
def test_one_image_in_a_pipeline_equals_torchvision(group):
    ours = resize_center_crop(tf.constant(case()[f"{group}/input"])[None], 36, 32)[0].numpy()
    difference = np.abs(ours.astype(float) - case()[f"{group}/resize_short36_center32"])
    assert difference.mean() <= 0.3 and difference.max() <= 1


@pytest.mark.parametrize("scale", [0.2, 0.08])
def test_crop_has_torchvisions_distribution(scale):
    """Deciles over 20,000 boxes in a 120 x 160 image; the standard error of a difference is below 0.005."""
    op = RandomResizedCrop(32, (scale, 1.0))
    top, left, height, width = op.box(op.draw(SEED, 20000), 120, 160).numpy().T
    expected = case()
    deciles = np.linspace(0, 1, 11)
    area = np.quantile(height * width / (120 * 160), deciles)
    log_aspect = np.quantile(np.log(width / height), deciles)
    np.testing.assert_allclose(area, expected[f"rrc_{scale}/area_quantiles"], atol=0.015)
    np.testing.assert_allclose(log_aspect, expected[f"rrc_{scale}/log_aspect_quantiles"], atol=0.015)
    np.testing.assert_allclose([top.mean(), left.mean()], expected[f"rrc_{scale}/top_mean_left_mean"], atol=0.6)


# ---- NumPy oracles


def naive_resize(pixels, start, length, out):
    """PIL's triangle filter on one row of pixels, tap by tap."""
    scale = length / out
    support = max(scale, 1.0)
    result = []
    for o in range(out):
        center = (o + 0.5) * scale
        taps = [(max(0.0, 1 - abs(i + 0.5 - center) / support), pixels[start + i]) for i in range(length)]
        result.append(sum(w * p for w, p in taps) / sum(w for w, _ in taps))
    return np.array(result)


def test_crop_of_moco_tensorflow():
    """The aspect ratio itself is uniform, and the resize is plain bilinear, as TensorFlow's own: batched and alone."""
    crop = RandomResizedCrop(20, (0.3, 0.5), uniform_ratio=True, antialias=False)
    _, _, height, width = crop.box(crop.draw(tf.constant([3, 4]), 20_000), 120, 160).numpy().T
    deciles = np.arange(0.1, 1, 0.1)
    np.testing.assert_allclose(np.quantile(width / height, deciles), 3 / 4 + deciles * (4 / 3 - 3 / 4), atol=0.015)
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    seed = tf.constant([5, 6])
    box = crop.one_box(120, 160, seed).numpy()
    window = image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    expected = tf.image.resize(window, (20, 20), antialias=False).numpy()
    planes = resized_crop(to_planes(tf.constant(image[None], tf.float32)), tf.constant([box]), 20, antialias=False)
    np.testing.assert_allclose(from_planes(planes)[0], expected, atol=1e-3)
    np.testing.assert_array_equal(crop.crop_one(tf.constant(image), seed), np.round(expected))


def test_resized_crop_equals_naive_resize():
    """Non-square input, shrinking one way and growing the other, and an image smaller than the crop."""
    boxes = [(0, 0, 9, 13), (2, 3, 7, 5), (8, 12, 1, 1), (1, 0, 3, 13)]
    images = random_images(len(boxes), 9, 13)
    ours = on_images(resized_crop, images, tf.constant(boxes), 11)
    assert ours.shape == (len(boxes), 11, 11, 3) and ours.dtype == np.float32
    for image, result, (top, left, height, width) in zip(images.astype(np.float64), ours, boxes):
        rows = np.apply_along_axis(naive_resize, 1, image, left, width, 11)
        expected = np.apply_along_axis(naive_resize, 0, rows, top, height, 11)
        np.testing.assert_allclose(result, expected, atol=2e-6)


def naive_box(area, ratio, corner, height, width, bounds=(3 / 4, 4 / 3)):
    """The published algorithm, with the random numbers given: candidates of (area, ratio) and a relative corner."""
    for a, r in zip(area, ratio):
        w, h = round(math.sqrt(a * height * width * r)), round(math.sqrt(a * height * width / r))
        if 0 < w <= width and 0 < h <= height:
            return int(corner[0] * (height - h + 1)), int(corner[1] * (width - w + 1)), h, w
    if width / height < bounds[0]:
        h, w = round(width / bounds[0]), width
    elif width / height > bounds[1]:
        h, w = height, round(height * bounds[1])
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (375, 500), (60, 7), (7, 60)])
def test_boxes_equal_the_published_algorithm(size):
    """Narrow images often need the central crop; a few boxes may round the other way in float32."""
    op = RandomResizedCrop(32, (0.2, 1.0))
    drawn = op.draw(SEED, 2000)
    boxes = op.box(drawn, *size).numpy()
    area, log_ratio, corner = (drawn[key].numpy().astype(np.float64) for key in ("area", "log_ratio", "corner"))
    expected = [naive_box(*row, *size) for row in zip(area, np.exp(log_ratio), corner)]
    assert (boxes == expected).all(axis=1).mean() >= 0.999
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, 0] + boxes[:, 2] <= size[0]).all() and (boxes[:, 1] + boxes[:, 3] <= size[1]).all()


def naive_box_blur(pixels, radius):
    """One extended box blur of a row with replicated edges."""
    reach = int(radius) + 1
    padded = np.pad(pixels, reach, mode="edge")
    edge = radius - int(radius)
    weights = np.array([edge] + [1.0] * (2 * int(radius) + 1) + [edge]) / (2 * radius + 1)
    return np.array([weights @ padded[i : i + 2 * reach + 1] for i in range(len(pixels))])


def test_exact_blur_equals_three_box_blurs_each_way():
    sigma = np.array([0.1, 0.7, 1.3, 2.0])
    images = random_images(4, 9, 12)
    applied = tf.ones(4, tf.bool)
    ours = GaussianBlur().apply(images, {"sigma": tf.constant(sigma, tf.float32), "applied": applied}).numpy()
    for image, result, radius in zip(images.astype(np.float64), ours, box_radius(tf.constant(sigma)).numpy()):
        for axis in (1, 1, 1, 0, 0, 0):
            image = np.apply_along_axis(naive_box_blur, axis, image, radius)
        np.testing.assert_allclose(result, image, atol=2e-6)


@pytest.mark.parametrize(("kernel", "passes"), [(box_kernel, 3), (gaussian_kernel, 1)])
def test_blur_by_shifts_equals_matrix_products(kernel, passes):
    """The widest blur and the narrowest, edges included; the smallest height that is possible."""
    images = random_images(3, 25 if passes == 3 else 9, 41)
    kernels = kernel(tf.constant([0.1, 1.1, 2.0]), 2)
    products, shifts = (on_images(blur, images, kernels, passes) for blur in (blur_rows_and_columns, blur_by_shifts))
    np.testing.assert_allclose(shifts, products, atol=1e-6)


def test_three_boxes_have_the_variance_of_the_gaussian():
    sigma = np.linspace(0.1, 2.0, 20)
    kernel = box_kernel(tf.constant(sigma, tf.float32), 2).numpy()
    np.testing.assert_allclose(kernel.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(3 * kernel @ np.arange(-2, 3) ** 2, sigma**2, rtol=1e-4)


def test_true_gaussian_blur_of_a_point_is_the_gaussian():
    image = np.zeros((1, 31, 31, 3), np.float32)
    image[0, 15, 15] = 1
    blurred = GaussianBlur(exact=False).apply(image, {**APPLIED, "sigma": tf.constant([1.5])}).numpy()[0, :, :, 0]
    distance = np.abs(np.arange(31) - 15)
    weights = np.exp(-(distance**2) / (2 * 1.5**2)) * (distance <= 11)
    np.testing.assert_allclose(blurred, np.outer(weights, weights) / weights.sum() ** 2, atol=1e-6)
    assert gaussian_kernel(tf.constant([1.5]), 11).shape == (1, 23)


def pil_hue(pixels, factor):
    """What torchvision makes of a PIL image: the 8-bit hue plus a number of levels that wraps at 256; HxWx3 uint8."""
    hue, saturation, value = Image.fromarray(pixels).convert("HSV").split()
    hue = Image.fromarray(np.asarray(hue) + np.int32(factor * 255).astype(np.uint8))
    return np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_hue_is_pils_for_every_kind_of_colour(jit_compile):
    """Any three of 0, 3 .. 255, with all hues that are a whole level: equal but for halves that round up or down."""
    levels = np.arange(0, 256, 3, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1)  # 86 images of 86 x 86
    shifts = np.linspace(-0.5, 0.5, len(colours)).astype(np.float32)
    turned = tf.function(lambda images, shift: on_planes(adjust_hue, images, shift), jit_compile=jit_compile)
    difference = np.abs(turned(to_unit_range(colours), shifts) * 255 - np.stack(list(map(pil_hue, colours, shifts))))
    assert difference.max() <= 1.001 and (difference > 1e-3).mean() <= 1e-5


def naive_jitter(image, order, brightness, contrast, saturation, hue):
    """The operations one after another, hue by PIL."""
    luma = [19595 / 65536, 38470 / 65536, 7471 / 65536]
    for name in order if hue else [name for name in order if name != "hue"]:
        if name == "hue":
            image = pil_hue(np.floor(image * 255 + 0.5).astype(np.uint8), hue) / 255
        elif name == "brightness":
            image = np.clip(brightness * image, 0, 1)
        else:
            gray = (image @ luma)[..., None]
            base = int(gray.mean() * 255 + 0.5) / 255 if name == "contrast" else gray
            factor = contrast if name == "contrast" else saturation
            image = np.clip(factor * image + (1 - factor) * base, 0, 1)
    return image


@pytest.mark.parametrize("hue", [0.4, 0.0])
def test_jitter_equals_its_operations_in_every_images_own_order(hue):
    names = np.array(["brightness", "contrast", "saturation", "hue"])
    op = ColorJitter(0.4, 0.4, 0.4, hue, p=0.8)
    images = random_images(48, 6, 5)
    drawn = {key: value.numpy() for key, value in op.draw(SEED, 48).items()}
    ours = op.apply(images, drawn).numpy()
    assert 0 < drawn["applied"].sum() < 48 and len(np.unique(drawn["position"], axis=0)) > 15
    for i, image in enumerate(images.astype(np.float64)):
        order = names[np.argsort(drawn["position"][i])]
        expected = naive_jitter(image, order, *(float(drawn[name][i]) for name in names))
        np.testing.assert_allclose(ours[i], expected if drawn["applied"][i] else image, atol=3e-6)


def test_identity_parameters_change_nothing():
    images = random_images(2, 8, 8)
    one, zero = tf.ones(2), tf.zeros(2)
    for name in ADJUST.keys() - {"hue"}:
        np.testing.assert_allclose(on_images(ADJUST[name], images, one), images, atol=1e-6)
    jitter = {"applied": tf.constant([False] * 2), "position": tf.constant([[0, 1, 2, 3]] * 2), "hue": one / 3}
    jitter |= dict.fromkeys(("brightness", "contrast", "saturation"), zero)
    np.testing.assert_array_equal(ColorJitter(1, 1, 1, 0.5).apply(images, jitter), images)
    box = tf.constant([[0, 0, 8, 8]] * 2)
    np.testing.assert_array_equal(on_images(resized_crop, images, box, 8), images)
    np.testing.assert_array_equal(on_images(flip_left_right, images, tf.constant([False, True]))[0], images[0])


def test_black_white_and_gray_pixels_have_no_hue():
    images = np.broadcast_to(np.array([0.0, 1.0, 0.5], np.float32)[:, None, None, None], (3, 4, 4, 3))
    images = np.rint(images * 255) / np.float32(255)
    np.testing.assert_allclose(on_images(adjust_hue, images, tf.fill((3,), 0.3)), images, atol=1e-7)


def test_solarize_is_pils():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    image[0, :2] = [[0, 127, 128], [129, 255, 126]]
    ours = Solarize(p=0.2).apply(to_unit_range(tf.constant(image[None])), APPLIED)
    wanted = np.asarray(ImageOps.solarize(Image.fromarray(image), 128))
    np.testing.assert_allclose(ours[0] * 255, wanted, atol=1e-4)
    left = {"applied": tf.constant([False])}
    np.testing.assert_array_equal(
        Solarize(p=0.2).apply(to_unit_range(image[None]), left), image[None] * np.float32(1 / 255)
    )


def test_hand_computed_pixels():
    """Pure red turned by a third is pure green (85 of 255 levels); its luma is 0.299; half the brightness is 0.5."""
    red = np.zeros((1, 2, 2, 3), np.float32)
    red[..., 0] = 1
    np.testing.assert_allclose(on_images(adjust_hue, red, tf.constant([85.1 / 255]))[0, 0, 0], [0, 1, 0], atol=1e-5)
    np.testing.assert_allclose(on_images(ADJUST["brightness"], red, tf.constant([0.5]))[0, 0, 0], [0.5, 0, 0])
    np.testing.assert_allclose(RandomGrayscale(1).apply(red, APPLIED)[0, 0, 0], [0.299] * 3, atol=1e-5)
    normalized = Normalize((0.5, 0.25, 0.0), (0.5, 1.0, 2.0)).apply(red, {})
    np.testing.assert_allclose(normalized[0, 0, 0], [1, -0.25, 0], atol=1e-7)


# ---- distributions of the draws


def within_three_standard_errors(applied, p):
    applied = np.asarray(applied)
    return abs(applied.mean() - p) <= 3 * math.sqrt(p * (1 - p) / applied.size)


@pytest.mark.parametrize(
    ("op", "p"),
    [
        (RandomHorizontalFlip(), 0.5),
        (RandomGrayscale(0.2), 0.2),
        (ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), 0.8),
        (ColorJitter(0.4, 0.4, 0.4, 0.4), 1.0),
        (GaussianBlur(p=0.5), 0.5),
        (Solarize(p=0.2), 0.2),
    ],
)
def test_operations_are_applied_with_their_probability(op, p):
    assert within_three_standard_errors(op.draw(SEED, 20000)["applied"], p)


def test_jitter_orders_are_uniform():
    """Chi-square over the 24 orders: 23 degrees of freedom, mean 23, standard deviation 6.8."""
    position = ColorJitter(0.4, 0.4, 0.4, 0.1).draw(SEED, 24000)["position"].numpy()
    assert (np.sort(position, axis=1) == np.arange(4)).all()
    counts = np.unique(position, axis=0, return_counts=True)[1]
    assert len(counts) == 24 and ((counts - 1000) ** 2 / 1000).sum() <= 50


def test_factors_are_uniform():
    drawn = ColorJitter(0.4, 0.3, 0.2, 0.1).draw(SEED, 20000)
    sigma = GaussianBlur((0.1, 2.0)).draw(SEED, 20000)["sigma"]
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.7, 1.3), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    deciles = np.linspace(0, 1, 11)
    for values, (low, high) in [(drawn[key], ends) for key, ends in ranges.items()] + [(sigma, (0.1, 2.0))]:
        quantiles = (np.quantile(values, deciles) - low) / (high - low)
        np.testing.assert_allclose(quantiles, deciles, atol=0.014)  # 4 standard errors


def test_draws_of_different_seeds_differ_and_equal_seeds_agree():
    op = RandomResizedCrop(32, (0.2, 1.0))
    first, again, other = (op.draw(tf.constant(seed), 8)["area"].numpy() for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_draws_are_the_same_numbers_when_compiled(jit_compile):
    """TensorFlow's own float uniforms are not: XLA makes them from other bits."""
    op = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    compiled = tf.function(lambda seed: op.draw(seed, 64), jit_compile=jit_compile)(SEED)
    for key, values in op.draw(SEED, 64).items():
        np.testing.assert_allclose(tf.cast(compiled[key], tf.float32), tf.cast(values, tf.float32), atol=1e-6)


# ---- shapes and errors


def test_center_crop_of_batch_of_one_image_and_of_unknown_size_agree():
    """Bit for bit: rounding would make whole grey levels of other last bits."""
    images = tf.constant(np.random.default_rng(1).integers(0, 256, (5, 50, 37, 3)).astype(np.uint8))
    batch = resize_center_crop(images, 36, 33)
    assert batch.shape == (5, 33, 33, 3) and batch.dtype == tf.uint8
    anything = tf.function(
        lambda x: resize_center_crop(x, 36, 33), [tf.TensorSpec([None, None, None, 3], tf.uint8)], autograph=False
    )
    np.testing.assert_array_equal(anything(images), batch)
    np.testing.assert_array_equal(np.concatenate([anything(image[None]) for image in images]), batch)


def test_center_crop_of_a_very_long_image():
    """Resized as a whole it would be 256 x 2,560,000 pixels; only what the crop keeps is computed."""
    image = np.random.default_rng(1).integers(0, 256, (4, 40_000, 3)).astype(np.uint8)
    middle = image[:, 20_000 - 20 : 20_000 + 20]  # the crop shows 3.5 columns of it
    ours, wanted = (resize_center_crop(part[None], 256, 224).numpy().astype(int) for part in (image, middle))
    assert np.abs(ours - wanted).max() <= 1


def test_center_crop_larger_than_the_image_is_refused():
    with pytest.raises(UserError, match="crop 40 is larger than the resized short side 36"):
        resize_center_crop(tf.zeros((1, 50, 50, 3), tf.uint8), 36, 40)


def test_resize_of_one_image_equals_the_batched_resize():
    image = np.random.default_rng(2).integers(0, 256, (21, 30, 3)).astype(np.uint8)
    batched = on_images(resized_crop, image[None] / np.float32(255), tf.constant([[0, 0, 21, 30]]), 16)
    assert np.abs(resize_one(image, 16, 16).numpy() - batched[0] * 255).max() <= 0.51
