"""Measures random views on one core: exact, fast (--fast_views), and as PIL makes them one by one; no data set needed.

    python tests/benchmarks/views.py

It needs Pillow, prints a Markdown table of the moco_v2 views' rates, and one of how far fast views are from exact ones.
Everything is measured in one process on one core, in turns; a figure is the median of its turns.
"""

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pil_views  # beside this file
import tensorflow as tf
from PIL import Image

from moco_tf.data.sources import decode_rgb
from moco_tf.data.views import recipes as views
from moco_tf.run import environment

NAME, SCALE = "moco_v2", (0.2, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SECONDS, TURNS = 0.6, 5
BATCHES = {32: 256, 224: 32}
JPEG_QUALITY = 95

Turn = Callable[[], int]  # does some work; returns how much of what is counted


def photos(count: int, height: int, width: int) -> np.ndarray:
    """Random images uint8 NxHxWx3 with about the spectrum of photographs: coarse noise is stronger than fine."""
    rng = np.random.default_rng(0)
    result = np.full((count, height, width, 3), 127.5)
    for pixels in (1, 2, 4, 8, 16, 32, 64):
        size = (-(-width // pixels) + 1, -(-height // pixels) + 1)
        noise = rng.integers(0, 256, (count, *size[::-1], 3), np.uint8)
        for image, octave in zip(result, noise):
            larger = Image.fromarray(octave).resize((size[0] * pixels, size[1] * pixels), Image.Resampling.BICUBIC)
            image += (np.asarray(larger, np.float64)[:height, :width] - 127.5) * min(1, pixels / 32)
    return np.clip(result, 0, 255).astype(np.uint8)


def own_view(size: int, fast: bool) -> views.View:
    """Ours."""
    return views.view(NAME, size, MEAN, STD, crop_scale=SCALE, fast=fast)


def pil_view(size: int) -> pil_views.View:
    """PIL's."""
    jitter = views.JITTER
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    return pil_views.View(size, SCALE, strengths, jitter.p, 0.2, (0.1, 2.0), 0.5, MEAN, STD)


def pil_turn(size: int, images: list[Image.Image]) -> Turn:
    """Views of decoded images."""
    view = pil_view(size)

    def turn() -> int:
        for image in images:
            view(image)
        return len(images)

    return turn


def in_step_turn(size: int, images: np.ndarray, fast: bool) -> Turn:
    """Views of a batch of images of one size, as a step makes them of an ArraySource."""
    view, seeds = tf.function(own_view(size, fast).in_pieces()), iter(range(1 << 30))
    images = tf.constant(images)

    def turn() -> int:
        view(images, tf.constant([0, next(seeds)])).numpy()
        return len(images)

    return turn


def cropped_before_turn(size: int, images: np.ndarray, fast: bool) -> Turn:
    """Views of decoded images, as of a RecordSource: crops one by one in tf.data, the rest in the step."""
    view, batch = own_view(size, fast), len(images)
    rest = tf.function(view.without_crop().in_pieces())
    crops = mapped(tf.data.Dataset.from_tensor_slices(images), view.crop.crop_one).batch(batch, drop_remainder=True)
    crops, seeds = iter(crops), iter(range(1 << 30))

    def turn() -> int:
        rest(next(crops), tf.constant([0, next(seeds)])).numpy()
        return batch

    return turn


def mapped(images: tf.data.Dataset, crop: Callable[[tf.Tensor, tf.Tensor], object]) -> tf.data.Dataset:
    """crop(image, seed) of the images over and over, by one thread."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.experimental_optimization.inject_prefetch = False  # it would work while others are measured
    numbered = tf.data.Dataset.zip(images.repeat(), tf.data.Dataset.counter(dtype=tf.int32))
    return numbered.map(lambda image, number: crop(image, tf.stack([1, number]))).with_options(options)


def pairs_turn(size: int, jpegs: list[bytes], fast: bool) -> Turn:
    """JPEGs decoded once and cropped twice."""
    crop = own_view(size, fast).crop

    def pair(data: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = decode_rgb(data)
        return crop.crop_one(image, seed), crop.crop_one(image, -seed)

    pairs = iter(mapped(tf.data.Dataset.from_tensor_slices(jpegs), pair).batch(len(jpegs)))

    def turn() -> int:
        next(pairs)
        return len(jpegs)

    return turn


def pil_pairs_turn(size: int, jpegs: list[str]) -> Turn:
    """The same with PIL."""

    def turn() -> int:
        for path in jpegs:
            with Image.open(path) as file:
                image = file.convert("RGB")
            for _ in range(2):
                np.asarray(pil_views.random_resized_crop(image, size, SCALE))
        return len(jpegs)

    return turn


def rates(turns: list[Turn], seconds: float, rounds: int) -> list[float]:
    """What each turn counts, a second: medians over rounds in which they take turns."""
    found: list[list[float]] = [[] for _ in turns]
    for turn in turns:
        turn()  # traces, compiles
    for _ in range(rounds):
        for turn, own in zip(turns, found):
            done, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < seconds or not done:
                done += turn()
            own.append(done / passed)
    return [statistics.median(own) for own in found]


def difference(size: int, images: np.ndarray) -> tuple[float, float]:
    """Mean and largest absolute difference of fast from exact views with the same draws, in 1/255."""
    seed = tf.constant([7, 7])
    exact, fast = (
        tf.function(views.view(NAME, size, fast=fast).in_pieces())(images, seed).numpy() for fast in (False, True)
    )
    return 255 * float(np.abs(exact - fast).mean()), 255 * float(np.abs(exact - fast).max())


def measured(seconds: float, rounds: int, batches: dict[int, int], folder: str) -> list[tuple[str, list[float]]]:
    """(what, [PIL's rate, exact, fast]) of each row of the table."""
    small, middle, large = (
        photos(batches[size], height, width) for size, height, width in ((32, 32, 32), (224, 256, 256), (224, 375, 500))
    )
    jpegs = [tf.io.encode_jpeg(image, quality=JPEG_QUALITY).numpy() for image in large]
    paths = [os.path.join(folder, f"{number}.jpg") for number in range(len(jpegs))]
    for path, data in zip(paths, jpegs):
        with open(path, "wb") as file:
            file.write(data)
    opened = [[Image.fromarray(image) for image in images] for images in (small, middle, large)]
    kinds = [
        ("32 px views of 32x32 images", pil_turn(32, opened[0]), functools.partial(in_step_turn, 32, small)),
        ("224 px views of 256x256 images", pil_turn(224, opened[1]), functools.partial(in_step_turn, 224, middle)),
        (
            "224 px views of 500x375 images",
            pil_turn(224, opened[2]),
            functools.partial(cropped_before_turn, 224, large),
        ),
        (
            "500x375 JPEG decoded, two 224 px crops",
            pil_pairs_turn(224, paths),
            functools.partial(pairs_turn, 224, jpegs),
        ),
    ]
    return [(name, rates([pil, own(False), own(True)], seconds, rounds)) for name, pil, own in kinds]


def report(seconds: float, rounds: int, batches: dict[int, int], folder: str) -> str:
    """Both tables."""
    about = f"{environment.machine()['cpu']}, one core; TensorFlow {tf.__version__}, Pillow {Image.__version__}"
    lines = [f"{NAME} views a second; {about}; medians of {rounds} turns", ""]
    lines += ["| | PIL | exact | of PIL's | --fast_views | of PIL's |", "|---|---|---|---|---|---|"]
    for name, (pil, exact, fast) in measured(seconds, rounds, batches, folder):
        lines.append(f"| {name} | {pil:,.0f} | {exact:,.0f} | {exact / pil:.2f} | {fast:,.0f} | {fast / pil:.2f} |")
    lines += ["", "| --fast_views against exact, same draws | mean difference | largest |", "|---|---|---|"]
    for size, side in ((32, 32), (224, 256)):
        mean, largest = difference(size, photos(batches[size], side, side))
        lines.append(f"| {size} px views of {side}x{side} images | {mean:.2f}/255 | {largest:.0f}/255 |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder, tf.device("/CPU:0"):
        print(report(SECONDS, TURNS, BATCHES, folder))


if __name__ == "__main__":
    main()
