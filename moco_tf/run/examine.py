"""What a run's encoder makes of its images, for the report: features, classes by kNN, sample views, their spread.

N images, D width of the pooled features, C of the head's output, S side of a view.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import flags

from moco_tf.config import define, find
from moco_tf.config.options import LABEL_FREE, OF_THE_RUN, DataOptions, Pretrain, ReportOptions
from moco_tf.data.normalisation import Normalisation
from moco_tf.data.records import BadImages
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import features, neighbours
from moco_tf.formats.base import Loaded
from moco_tf.formats.load import load
from moco_tf.reporting.examined import Attended, Embedded, Examination, Examined, SampledViews, Spread, attempt
from moco_tf.reporting.results import RunRecord
from moco_tf.run import label_free, prepare, results
from moco_tf.run.folder import RunFolder
from moco_tf.training import device
from moco_tf.training.collectives import SingleProcess

_BATCH = 128
_NEIGHBOURS = 8  # that the page shows
_ATTENDED = 8  # test images whose attention the page shows
_PAIRS = 12  # of views that the page shows


def examine(records: list[RunRecord], o: ReportOptions) -> Examination:
    """Computes what the page shows of images: of the first run, and the spread of views of every run.

    Args:
        records: the runs.
        o: how many images, and where they are now.
    """
    first = records[0]
    for run in records:
        print(f"{run.name}: {attempt(_said, run.folder, o.data_dir)}", flush=True)
    views = attempt(sample_views, first.folder, o.data_dir)
    print(f"{first.name}: computing features", flush=True)
    seen = attempt(embed, first.folder, o)
    print("computing label-free measures", flush=True)
    found = Examination(views, seen, {run.name: attempt(spread, run.folder, o.data_dir) for run in records})
    for what, reason in found.missing().items():
        print(f"no {what}: {reason}", flush=True)
    return found


def _said(folder: RunFolder, data_dir: str | None) -> str:
    """Which images are looked at, in words."""
    return results.said(
        dataclasses.replace(OF_THE_RUN, data_dir=data_dir), recorded(folder, data_dir).data, str(folder.path)
    )


def recorded(folder: RunFolder, data_dir: str | None) -> Pretrain:
    """The options of a run, from its flags.cfg.

    They are parsed and checked as the programs do it: the files may have been edited, or come from elsewhere. Flags
    that they lack have the programs' defaults.

    Args:
        folder: the run folder.
        data_dir: replaces the run's own.

    Raises:
        UserError: the run folder has no flags, or broken ones.
    """
    if "dataset" not in define.texts_of(folder.flags):
        raise UserError(f"{folder.flags} names no --dataset: the run's images are not known")
    try:
        trained = define.parse(Pretrain, ["", f"--flagfile={folder.flags}"])
    except flags.Error as error:
        raise UserError(f"{folder.flags} has {str(error).removeprefix('flag ')}; mend it") from None
    return define.replaced(trained, data_dir=data_dir) if data_dir else trained


def embed(folder: RunFolder, options: ReportOptions) -> Examined:
    """Computes a run's features and what follows from them.

    Args:
        folder: a run folder with flags and a checkpoint.
        options: how many images at most, which the run's seed draws; where they are now.

    Raises:
        UserError: no encoder, no images, or features that are not finite.
    """
    o = recorded(folder, options.data_dir)
    loaded = load(str(folder.path), device.dtype_policy(o.device.precision))
    images = _splits(o.data, o.run.seed, options.bank_images, options.test_images)
    compute = features.embedder(loaded.encoder, "backbone", loaded.mean, loaded.std)
    geometry = features.test_geometry(images.bank, loaded.image_size, loaded.test_resize)
    bad_images = BadImages(o.data.max_bad_images, str(folder.unreadable))
    bank, test = (_embedded(compute, some, geometry, bad_images) for some in (images.bank, images.test))
    labelled = images.bank.num_classes >= 2 and (test.labels >= 0).any() and (bank.labels >= 0).all()
    k = min(o.knn.k[0], len(bank.features))  # of several values the first counts
    shown = min(_NEIGHBOURS, len(bank.features))
    near, rows = neighbours.nearest(bank.features, test.features, max(k, shown) if labelled else shown)
    predicted = None
    if labelled:
        votes = near[:, :k], bank.labels[rows[:, :k]], images.bank.num_classes
        predicted = neighbours.rank_classes(*votes, o.knn.knn_temperature[0], o.knn.weighting)[:, 0]
    return Examined(
        checkpoint=loaded.path,
        bank=bank,
        test=test,
        class_names=images.bank.class_names,
        predicted=predicted,
        similarities=near[:, :shown],
        nearest=rows[:, :shown],
        k=k,
        note=images.note,
        sampled=images.sampled,
        held_out=bool(o.data.holdout),
        attended=_attended(loaded, label_free.some(images.test, _ATTENDED, o.run.seed), geometry, bad_images),
    )


@dataclasses.dataclass(frozen=True)
class _Splits:
    """Some training images, some test images, and the sentences of Examined about them."""

    bank: Source
    test: Source
    note: str
    sampled: str


def _splits(data: DataOptions, seed: int, bank_images: int, test_images: int) -> _Splits:
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
        note = f"No test images ({error}): some training images stand for them and are left out of the bank."
        train, test = train.subset(np.sort(order[count:])), train.subset(np.sort(order[:count]))
    return _Splits(label_free.some(train, bank_images, seed), label_free.some(test, test_images, seed), note, sampled)


def _embedded(
    embed: Callable[[tf.Tensor], tf.Tensor], source: Source, geometry: tuple[int, int], bad_images: BadImages
) -> Embedded:
    """The features of all readable images.

    Args:
        embed: float32 images in [0, 1], BxSxSx3, to features.
        source: the images.
        geometry: of `features.test_geometry`.
        bad_images: how unreadable images are treated.
    """
    found, labels, indices = features.extract_share(embed, source, geometry, _BATCH, SingleProcess(), bad_images)
    features.check_finite(found, SingleProcess())
    return Embedded(source, indices, labels, features.normalised(found))


def _attended(loaded: Loaded, source: Source, geometry: tuple[int, int], bad_images: BadImages) -> Attended | None:
    """What a ViT attends to in some images; None of another encoder.

    Args:
        loaded: the encoder.
        source: the images.
        geometry: of `features.test_geometry`.
        bad_images: how unreadable images are treated.
    """
    backbone, side = loaded.encoder.backbone, geometry[1]
    if not hasattr(backbone, "attention"):
        return None
    pixels, *_ = features.extract_share(features.raw_pixels, source, geometry, _BATCH, SingleProcess(), bad_images)
    pixels = pixels.reshape(-1, side, side, 3)
    x = tf.constant((pixels - np.array(loaded.mean)) / np.array(loaded.std), tf.float32)
    patches = backbone.feature_map(x).numpy()
    weights = backbone.attention(x).numpy()[:, :, 1:].astype(np.float32)  # the class token is no place in the image
    rows, columns = patches.shape[1:3]
    return Attended((pixels * 255 + 0.5).astype(np.uint8), weights.reshape(*weights.shape[:2], rows, columns), patches)


def spread(folder: RunFolder, data_dir: str | None) -> Spread:
    """The label-free measures of a run's encoder on its training images.

    Args:
        folder: a run folder with flags and a checkpoint.
        data_dir: replaces the run's own.

    Raises:
        UserError: no encoder, no images, or views that cannot be made.
    """
    o = recorded(folder, data_dir)
    loaded = load(str(folder.path), device.dtype_policy(o.device.precision))
    train, (mean, std) = prepare.source(o.data, "train", SingleProcess()), map(tf.constant, (loaded.mean, loaded.std))

    def both(images: tf.Tensor) -> tf.Tensor:
        pooled = loaded.encoder.features((images - mean) / std)
        return tf.concat([pooled, loaded.encoder.project(pooled)], axis=1)

    geometry = features.test_geometry(train, loaded.image_size, loaded.test_resize)
    bad_images = BadImages(o.data.max_bad_images, reported=False)
    seen = label_free.see(both, LABEL_FREE, train, geometry, o.views, o.run.seed, SingleProcess(), bad_images)
    width = loaded.encoder.backbone.features
    parts = {"output of the head": slice(width, None), "pooled features": slice(width)}
    if find.find("method", o.method.method).classifies:
        parts.pop("output of the head")
    plain, viewed = seen
    assert plain is not None and viewed is not None
    return {name: label_free.figures((plain[:, part], viewed[:, :, part]), LABEL_FREE) for name, part in parts.items()}


def sample_views(folder: RunFolder, data_dir: str | None, count: int = _PAIRS) -> SampledViews:
    """Pairs of views of training images as the network sees them.

    Args:
        folder: a run folder with flags.
        data_dir: replaces the run's own.
        count: images, drawn with the run's seed.

    Raises:
        UserError: no images, or views that cannot be made.
    """
    o = recorded(folder, data_dir)
    train = prepare.source(o.data, "train", SingleProcess())
    mean, std = _normalisation(o, folder, train)
    views = prepare.random_views(o.views, prepare.image_size(o.data.image_size, train), (mean, std))
    prepare.check_crop(o.views.views, views, train)
    bad_images = BadImages(o.data.max_bad_images, reported=False)
    first, second, _ = next(
        label_free.view_pairs(label_free.some(train, count, o.run.seed), views, o.run.seed, bad_images)
    )
    pairs = np.stack([first, second], axis=1) * np.array(std, np.float32) + np.array(mean, np.float32)
    pixels = (np.clip(pairs, 0, 1) * 255 + 0.5).astype(np.uint8)  # Nx2xSxSx3
    return SampledViews(pixels, find.find("method", o.method.method).num_views)


def _normalisation(o: Pretrain, folder: RunFolder, train: Source) -> Normalisation:
    try:
        loaded = load(str(folder.path))
        return loaded.mean, loaded.std
    except UserError:  # no checkpoint: they would be the same
        return prepare.normalisation(o.data, train, folder)
