"""What a run's encoder makes of its images: features of training and test images, classes by kNN, spread of views.

N images, D width of the pooled features, C of the head's output, S side of a view.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from moco_tf.config import find
from moco_tf.config.options import DataOptions, Pretrain
from moco_tf.data.normalisation import Normalisation
from moco_tf.data.pipeline import TrainBatches, eval_batches
from moco_tf.data.records import BadImages
from moco_tf.data.sources import Source
from moco_tf.data.views.geometry import resize_center_crop_one
from moco_tf.data.views.recipes import View
from moco_tf.errors import UserError
from moco_tf.evaluation import features as evaluation
from moco_tf.evaluation import neighbours, uniformity
from moco_tf.formats.load import load
from moco_tf.methods import base
from moco_tf.reporting.runs import Run
from moco_tf.reporting.settings import settings
from moco_tf.run import prepare
from moco_tf.run.folder import RunFolder
from moco_tf.training import device
from moco_tf.training.collectives import SingleProcess

_BATCH = 128


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Readable images of a source, labels (-1: none) and normalised pooled features NxD."""

    source: Source
    indices: np.ndarray
    labels: np.ndarray
    features: np.ndarray

    def image(self, row: int) -> np.ndarray:
        """The image as stored, uint8 HxWx3."""
        return self.source.image(int(self.indices[row]))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run's images as its encoder sees them.

    predicted: class of every test image by kNN, None without labels. similarities, nearest: to the bank's rows, the
    nearest first. note, sampled: what is to be said where there are no test images, and where not all images were
    taken.
    """

    checkpoint: str
    bank: Embedded
    test: Embedded
    class_names: tuple[str, ...]
    predicted: np.ndarray | None
    similarities: np.ndarray
    nearest: np.ndarray
    k: int
    note: str
    sampled: str


def examine(run: Run, data_dir: str | None, bank_images: int, test_images: int) -> Subject:
    """Computes a run's features and what follows from them.

    Args:
        run: with flags and a checkpoint.
        data_dir: replaces the run's own.
        bank_images, test_images: at most so many, drawn with the run's seed.

    Raises:
        UserError: no encoder, no images, or features that are not finite.
    """
    found = settings(RunFolder(run.folder), data_dir)
    trained, o = found.trained, found.evaluated
    loaded = load(str(run.folder), device.dtype_policy(trained.device.precision))
    bank, test, *notes = _splits(o.data, trained.run.seed, bank_images, test_images)
    embed = evaluation.embedder(loaded.encoder, "backbone", loaded.mean, loaded.std)
    resize = evaluation.test_geometry(bank, o.data.image_size or loaded.image_size, o.encoder.test_resize)
    seen, asked = (_embedded(embed, images, resize, trained.data.max_bad_images) for images in (bank, test))
    k = min(o.knn.k[0], len(seen.features))  # of several values the first counts
    similarities, nearest = neighbours.nearest(seen.features, asked.features, min(8, len(seen.features)))
    predicted = None
    if bank.num_classes >= 2 and (asked.labels >= 0).any() and (seen.labels >= 0).all():
        weights = (o.knn.knn_temperature[0], o.knn.weighting)
        predicted = neighbours.classify(seen.features, seen.labels, asked.features, bank.num_classes, k, *weights)[:, 0]
    return Subject(loaded.path, seen, asked, bank.class_names, predicted, similarities, nearest, k, *notes)


def _splits(data: DataOptions, seed: int, bank_images: int, test_images: int) -> tuple[Source, Source, str, str]:
    """(some training images, some test images, note, sampled); see Subject."""
    train = prepare.source(data, "train", SingleProcess())
    note = sampled = ""
    try:
        test = prepare.source(data, "test", SingleProcess())
        if train.num_examples > bank_images or test.num_examples > test_images:
            sampled = f"moco_tf.knn takes all {test.num_examples:,} and {train.num_examples:,} of them."
    except UserError as error:
        order = np.random.default_rng(seed).permutation(train.num_examples)
        count = min(test_images, train.num_examples // 4)
        if not count:
            raise
        note = f"No test images ({error}): training images that are left out of the bank stand for them."
        train, test = train.subset(np.sort(order[count:])), train.subset(np.sort(order[:count]))
    return _some(train, bank_images, seed), _some(test, test_images, seed), note, sampled


def _some(source: Source, count: int, seed: int) -> Source:
    if count >= source.num_examples:
        return source
    chosen = np.random.default_rng(seed).choice(source.num_examples, count, replace=False)
    return source.subset(np.sort(chosen))


def _embedded(embed: Callable, source: Source, geometry: tuple[int, int], max_bad_images: int) -> Embedded:
    """Unlike `features.extract` it says which images were readable."""
    compute = tf.function(lambda x: embed(evaluation.prepare_batch(x, geometry)), reduce_retracing=True)
    prepare_one = None if source.fixed_size else lambda image: resize_center_crop_one(image, *geometry)
    batches = eval_batches(source, _BATCH, prepare_one=prepare_one, bad_images=BadImages(max_bad_images))
    parts = [(indices, labels, compute(tf.constant(images)).numpy()) for images, labels, indices in batches]
    indices, labels, found = (np.concatenate(column) for column in zip(*parts))
    if not np.isfinite(found).all():
        raise UserError("the encoder gives features that are infinite or not a number; use an earlier checkpoint")
    return Embedded(source, indices, labels, evaluation.normalised(found))


def spread(run: Run, data_dir: str | None, images: int) -> dict[str, tuple[float, float] | None]:
    """Alignment and uniformity of two random views of test images, by what they are of; None where a feature is zero.

    Args:
        run: with flags and a checkpoint.
        data_dir: replaces the run's own.
        images: at most so many, drawn with the run's seed.

    Raises:
        UserError: no encoder, no images, or views that cannot be made.
    """
    found = settings(RunFolder(run.folder), data_dir)
    o = found.trained
    loaded = load(str(run.folder), device.dtype_policy(o.device.precision))
    source = _splits(found.evaluated.data, o.run.seed, 1, images)[1]
    views = prepare.random_views(o.views, loaded.image_size, (loaded.mean, loaded.std))
    prepare.check_crop(o.views.views, views, source)
    both = tf.function(
        lambda images: (loaded.encoder.features(images), loaded.encoder(images)),
        reduce_retracing=True,
    )
    parts = [[output.numpy() for images in pair for output in both(images)] for pair in view_pairs(o, source, views)]
    pooled, head, other_pooled, other_head = (evaluation.normalised(np.concatenate(column)) for column in zip(*parts))
    figures = {"pooled features": _figures(pooled, other_pooled)}
    if not find.find("method", o.method.method).classifies:
        figures = {"output of the head": _figures(head, other_head)} | figures
    return figures


def _figures(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    if len(x) < 2 or not min(np.linalg.norm(x, axis=1).min(), np.linalg.norm(y, axis=1).min()) > 0.5:
        return None  # a feature of zero, or that is not finite, has no direction
    return uniformity.alignment(x, y), (uniformity.uniformity(x) + uniformity.uniformity(y)) / 2


def view_pairs(o: Pretrain, source: Source, views: tuple[View, View]) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Two random views of every image, normalised, BxSxSx3 each, made as a training step makes them."""
    batches = TrainBatches(
        source,
        min(_BATCH, source.num_examples),
        o.run.seed,
        crops=prepare.crops(views),
        bad_images=BadImages(o.data.max_bad_images),
        drop_remainder=False,
    )
    rest = [prepare.in_step(view, source) for view in views]
    for number, (images, *_) in enumerate(batches.batches(0)):
        first, second, *_ = base.unpack((images,))
        count = len(first)
        seeds = (tf.constant([o.run.seed * 16 + use, number]) for use in (base.FIRST_VIEW, base.SECOND_VIEW))
        each = zip(rest, (first, second), seeds)
        yield tuple(view(tf.constant(x), seed, tf.range(count), count) for view, x, seed in each)


def sample_views(run: Run, data_dir: str | None, count: int) -> tuple[list[np.ndarray], int]:
    """(pairs of views of training images, each 2xSxSx3 uint8, normalisation undone; views that a step looks at)."""
    o = settings(RunFolder(run.folder), data_dir).trained
    train = prepare.source(o.data, "train", SingleProcess())
    mean, std = _normalisation(o, run, train)
    views = prepare.random_views(o.views, prepare.image_size(o.data.image_size, train), (mean, std))
    prepare.check_crop(o.views.views, views, train)
    first, second = next(view_pairs(o, _some(train, count, o.run.seed), views))
    pairs = np.stack([first, second], axis=1) * np.float32(std) + np.float32(mean)  # Nx2xSxSx3
    return list(np.uint8(np.clip(pairs, 0, 1) * 255 + 0.5)), find.find("method", o.method.method).num_views


def _normalisation(o: Pretrain, run: Run, train: Source) -> Normalisation:
    try:
        loaded = load(str(run.folder))
        return loaded.mean, loaded.std
    except UserError:  # no checkpoint: they would be the same
        return prepare.normalisation(o.data, train, RunFolder(run.folder))
