"""The one assembly: from options to the images, views, batches and method that a run has."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from moco_tf.config import define, find
from moco_tf.config.options import (
    DataOptions,
    DeviceOptions,
    EncoderOptions,
    MonitorOptions,
    OptimizerOptions,
    Pretrain,
    ScheduleOptions,
    TrainingDeviceOptions,
    ViewOptions,
)
from moco_tf.contrast.self_test import self_test
from moco_tf.data import normalisation as normalisations
from moco_tf.data.normalisation import Normalisation
from moco_tf.data.order import Share
from moco_tf.data.pipeline import TrainBatches
from moco_tf.data.records import BadImages
from moco_tf.data.sets.find import load
from moco_tf.data.sources import ArraySource, RecordSource, Source
from moco_tf.data.views import recipes
from moco_tf.data.views.geometry import RandomResizedCrop
from moco_tf.errors import UserError
from moco_tf.evaluation.online_probe import OnlineProbe
from moco_tf.evaluation.scores import check_labels
from moco_tf.methods.base import Method, View
from moco_tf.networks.encoder import Encoder
from moco_tf.run.folder import RunFolder
from moco_tf.training import compiled, device, gpu, optimizers, schedules
from moco_tf.training.collectives import Collectives
from moco_tf.training.collectives import connect as connect_ranks

_ON_DEVICE = 2 * 10**9  # bytes of images that a GPU holds by itself: a quarter of the smallest that one trains on


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """What a pre-training works on: built for these ranks, and anew when they change.

    Args:
        options: as given.
        collectives: what crosses ranks.
        train: the training images.
        size: side of a view in pixels.
        mean_and_std: what views are normalised with.
        views: the two random views of an image, crops included; the same one twice unless they differ.
        batches: this rank's batches.
        method: the compiled method.
        learner: the method, or the method with the probe that learns along.
    """

    options: Pretrain
    collectives: Collectives
    train: Source
    size: int
    mean_and_std: Normalisation
    views: tuple[recipes.View, recipes.View]
    batches: TrainBatches
    method: Method
    learner: Method | OnlineProbe


def pretraining(
    o: Pretrain,
    collectives: Collectives,
    train: Source | None = None,
    mean_and_std: Normalisation | None = None,
) -> Pretraining:
    """Checks the options and builds all that a pre-training needs; writes nothing.

    Args:
        o: the options; without a workdir no run folder is read.
        collectives: what crosses ranks.
        train: training images in place of those that the options name.
        mean_and_std: a normalisation in place of the one that they name.

    Raises:
        UserError: options contradict each other, or do not fit the images.
    """
    check(o, collectives)
    kind, folder = find.find("method", o.method.method), RunFolder.of(o.run.workdir) if o.run.workdir else None
    train = train or source(o.data, "train", collectives)
    size = image_size(o.data.image_size, train)
    if kind.uses_labels:
        name = o.method.method
        check_labels(train, train, f"for --method={name}, which learns from labels; give --method=moco, or")
    mean_and_std = mean_and_std or normalisation(o.data, train, folder)
    views = random_views(o.views, size, mean_and_std)
    check_crop(o.views.views, views, train)
    batches = TrainBatches(
        train,
        o.run.batch_size,
        o.run.seed,
        Share(collectives.rank, collectives.size),
        crops(views[: kind.num_views]),
        BadImages(o.data.max_bad_images, str(folder.unreadable) if folder else None, reported=folder is not None),
        o.views.read_order,
    )
    built = method(o, collectives, views, train)
    learner: Method | OnlineProbe = built
    if "probe" in o.monitor.monitor:
        check_labels(train, train, "for the probe that learns along; leave probe out of --monitor, or give")
        learner = OnlineProbe(built, train.num_classes, o.run.batch_size // collectives.size)
    return Pretraining(o, collectives, train, size, mean_and_std, views, batches, built, learner)


def connect(options: DeviceOptions, seed: int, compiles: bool = True) -> Collectives:
    """Joins the other ranks, configures this process and checks its GPU.

    Args:
        options: how this machine computes.
        seed: of initialisation.
        compiles: whether XLA may compile something, which is tested then.
    """
    compiled.start(options.deterministic)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    collectives = connect_ranks()
    device.configure(options.threads, collectives.local_size)
    gpu.check(collectives, self_test if compiles and options.jit_compile != "false" else None)
    keras.utils.set_random_seed(seed)
    return collectives


def placed(batches: TrainBatches, options: TrainingDeviceOptions) -> TrainBatches:
    """The same batches; their images are all on the device if --data_on_device says so.

    Raises:
        UserError: it asks for images that are read from files.
    """
    images = batches.source
    if options.data_on_device == "true" and not isinstance(images, ArraySource):
        raise UserError(
            f"--data_on_device=true came, but the images of {images.name} are read from files as they are needed, "
            "expected a data set that is held in memory; leave it out"
        )
    fit = isinstance(images, ArraySource) and images.images.nbytes <= _ON_DEVICE
    if options.data_on_device == "true" or (options.data_on_device == "auto" and device.has_gpu() and fit):
        batches.keep_on_device()
    return batches


def steps_per_call(options: TrainingDeviceOptions, one_piece: bool, on_device: bool, log_every: int) -> int:
    """--steps_per_call: by itself more than one where the host takes longer to start a step than a GPU to take it.

    So it is with small images, which the GPU holds: a stack of batches is indices then. With large ones it would be
    gigabytes, and a step takes so long that the host is ahead anyway.

    Args:
        options: of the device.
        one_piece: whether the whole step is compiled as one piece.
        on_device: whether the device holds all images.
        log_every: steps; a call ends there, and space for more would be wasted.
    """
    return min(log_every, options.steps_per_call or (10 if device.has_gpu() and one_piece and on_device else 1))


def check_calls(options: TrainingDeviceOptions, collectives: Collectives) -> None:
    """Refuses several steps a call on several ranks, which exchange within a step."""
    if options.steps_per_call > 1 and collectives.size > 1:
        raise UserError(
            f"--steps_per_call={options.steps_per_call} came on {collectives.size} ranks, expected 0 or 1: they "
            "exchange within a step; leave it out"
        )


def source(options: DataOptions, split: str, collectives: Collectives) -> Source:
    """The images of a split, "train" or "test"; rank 0 loads first, so that a download happens once."""
    if collectives.rank != 0:
        collectives.barrier()
    try:
        found = _held_out(options, split) if options.holdout else load(options.dataset, split, options.data_dir)
        return dataclasses.replace(found, split=split, whole=0) if isinstance(found, RecordSource) else found
    finally:
        if collectives.rank == 0:
            collectives.barrier()


def _held_out(options: DataOptions, split: str) -> Source:
    """The training images without --holdout of them, or these: the same ones every time."""
    images = load(options.dataset, "train", options.data_dir)
    holdout = options.holdout or 0
    if holdout >= images.num_examples:
        raise UserError(
            f"--holdout={holdout} came, expected less than {images.num_examples}, the number of training "
            f"images in {images.name}; give a smaller one"
        )
    order = np.random.default_rng(0).permutation(images.num_examples)
    return images.subset(np.sort(order[:holdout] if split == "test" else order[holdout:]))


def image_size(given: int, images: Source) -> int:
    """Side of a view: what is given, or the data set's own size, or 224."""
    return given or (min(images.image_shape) if images.image_shape else 224)


def normalisation(options: DataOptions, train: Source, folder: RunFolder | None) -> Normalisation:
    """--normalise; where the data set's own is not known, what the run folder keeps, or what is measured now."""
    own = normalisations.known(options.normalise, options.dataset)
    return own or (normalisations.found(folder.normalisation, train) if folder else normalisations.measure(train))


def keep_normalisation(options: DataOptions, train: Source, folder: RunFolder, mean_and_std: Normalisation) -> None:
    """Keeps a measured normalisation in the run folder, for the run that goes on from there.

    Args:
        options: which normalisation was asked for.
        train: the images that were measured.
        folder: the run folder.
        mean_and_std: what was measured.
    """
    if not normalisations.known(options.normalise, options.dataset):
        normalisations.keep(folder.normalisation, train, mean_and_std)


def random_views(options: ViewOptions, size: int, mean_and_std: Normalisation) -> tuple[recipes.View, recipes.View]:
    """--views with a normalisation."""
    return recipes.views(options.views, size, *mean_and_std, options.crop_scale, options.fast_views)


def crops(views: Iterable[recipes.View]) -> list[RandomResizedCrop]:
    """Those of the views that have one, for images that are cropped before the step."""
    return [view.crop for view in views if view.crop]


def check_crop(name: str, views: Iterable[recipes.View], images: Source) -> None:
    """Refuses views without a crop for images of many sizes."""
    if not images.fixed_size and any(view.crop is None for view in views):
        raise UserError(
            f"the view {name!r} has no crop, and the images of {images.name} differ in size; give a view that crops, "
            "such as crop_flip"
        )


def in_step(view: recipes.View, images: Source) -> View:
    """What of a view happens in the step: all of it, or what follows the crop where images differ in size."""
    return InStep(view if images.fixed_size else view.without_crop())


@dataclasses.dataclass(frozen=True)
class InStep:
    """A view as a method calls it."""

    view: recipes.View

    def __call__(self, x: tf.Tensor, seed: tf.Tensor, positions: tf.Tensor, count: int) -> tf.Tensor:
        return self.view(x, seed, rows=positions, count=count)

    def in_pieces(self) -> View:
        """The same for a CPU, from compiled pieces."""
        return self.view.in_pieces()


def encoder(options: EncoderOptions, precision: str, classes: int = 0) -> Encoder:
    """A fresh encoder; with classes, its head is a linear classifier."""
    own: Any = options.own
    built = Encoder(
        arch=options.arch,
        bn_splits=options.bn_splits,
        head="linear" if classes else options.head,
        feature_dim=classes or options.feature_dim,
        hidden_dim=options.hidden_dim,
        head_init=options.head_init,
        dtype=device.dtype_policy(precision),
        **own,
    )
    built.save_memory(options.accumulate, options.recompute)
    return built


def method(o: Pretrain, collectives: Collectives, views: tuple[recipes.View, recipes.View], train: Source) -> Method:
    """The pre-training method with its optimizer, its arguments the options of its own.

    Args:
        o: the options.
        collectives: what crosses ranks.
        views: the two random views of an image, crops included.
        train: the training images.
    """
    kind = find.find("method", o.method.method)
    query_encoder = encoder(o.encoder, o.device.precision, train.num_classes if kind.classifies else 0)
    if sync(o) and (o.encoder.accumulate > 1 or o.encoder.recompute) and query_encoder.backbone_norms():
        raise UserError(
            "--bn=sync came with --accumulate or --recompute, expected neither: a second forward pass would exchange "
            "the statistics once more; leave the one or the other out, or take a ViT, whose trunk has no batch norm"
        )
    unknown = sorted(kind.given() - {"query_encoder", "key_encoder", "num_examples"})
    if unknown:
        raise UserError(f"--method={o.method.method} has arguments without a default, {unknown}; give them defaults")
    asked: dict[str, Any] = {}
    if "key_encoder" in kind.given():
        asked["key_encoder"] = encoder(o.encoder, o.device.precision)
    if "num_examples" in kind.given():
        asked["num_examples"] = train.num_examples
    pieces = pieces_to_compile(o, collectives)
    built = kind(
        query_encoder,
        **o.method.own,
        **asked,
        collectives=collectives,
        views=(in_step(views[0], train), in_step(views[1], train)),
        jit_compile=pieces,
        seed=o.run.seed,
        bn=o.method.bn,
        compression=o.method.compression,
    )
    if pieces != device.pieces_to_compile(o.device.jit_compile):  # SyncBN on several ranks
        for each in built.encoders():
            each.compile_backbone()
    built.compile(optimizer(o.optimizer))
    # In float16 gradients overflow now and then, and the loss scale sees to it. On a CPU the fused batch norm and ReLU
    # make 0 of what is not a number, and the loss stays finite.
    reads = o.checkpoints.nan_policy == "skip" or not device.has_gpu()
    built.guard.every_gradient = reads and built.loss_scale is None
    return built


def optimizer(options: OptimizerOptions) -> keras.optimizers.Optimizer:
    """The optimizer, before its first step."""
    o = options
    return optimizers.build(o.optimizer, o.learning_rate, o.momentum, o.weight_decay, o.nesterov)


def pieces_to_compile(o: Pretrain, collectives: Collectives) -> str:
    """What XLA compiles, see `Method`: with SyncBN not the encoders, which have collectives inside.

    Raises:
        UserError: the flags ask for both.
    """
    pieces = device.pieces_to_compile(o.device.jit_compile)
    if not sync(o) or collectives.size == 1 or pieces != "all":
        return pieces
    if o.device.jit_compile == "true":
        raise UserError(
            f"--bn=sync came with --jit_compile=true on {collectives.size} ranks, expected auto or false: XLA cannot "
            "compile the collectives inside of the encoder; change the one or the other"
        )
    return "views"


def sync(o: Pretrain) -> bool:
    """Whether batch norms see the batch of all ranks."""
    return (find.find("method", o.method.method).norms if o.method.bn == "shuffle" else o.method.bn) == "sync"


def check(o: Pretrain, collectives: Collectives) -> None:
    """Refuses options that contradict each other."""
    if o.automatic.auto:
        raise UserError("--auto came, expected settings; only pretrain chooses them: give the flags.cfg of its run")
    find.find("method", o.method.method).check(o.method.own, o.run.batch_size)
    check_schedule(o.schedule, o.optimizer.learning_rate)
    pieces_to_compile(o, collectives)
    check_calls(o.device, collectives)
    _check_norms(o)
    if o.monitor.monitor != MonitorOptions.monitor and not o.monitor.knn_every:
        raise UserError(
            f"--monitor={define.shown(o.monitor.monitor)} came with --knn_every=0, expected the epochs between two "
            "measurements; give --knn_every=1, or more"
        )
    share, splits, micro = o.run.batch_size // collectives.size, o.encoder.bn_splits, o.encoder.accumulate
    if share % (splits * micro):
        raise UserError(
            f"--batch_size={o.run.batch_size} gives each of {collectives.size} ranks {share} images, expected a "
            f"multiple of --bn_splits={splits} times --accumulate={micro}; change the one or the other"
        )


def _check_norms(o: Pretrain) -> None:
    if not sync(o):
        return
    if o.encoder.bn_splits > 1:
        raise UserError(
            f"--bn=sync came with --bn_splits={o.encoder.bn_splits}, expected 1: its batch is that of all ranks; leave "
            "one out"
        )


def check_schedule(options: ScheduleOptions, learning_rate: float) -> None:
    """Refuses flags of the learning rate that contradict each other."""
    try:
        schedules.learning_rate(0, 1, learning_rate, options)
    except ValueError as error:
        raise UserError(f"the flags of the learning rate do not fit: {error}") from None
