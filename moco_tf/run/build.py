"""From options to objects: what the programs have in common."""

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from moco_tf.data.normalisation import Normalisation, found, keep, known, measure
from moco_tf.data.sources import ArraySource, Source, load
from moco_tf.data.views import recipes as views
from moco_tf.errors import UserError
from moco_tf.methods import base
from moco_tf.methods.base import View
from moco_tf.networks.encoder import Encoder
from moco_tf.training import collectives, device, optimizers, schedules


def connect(o: object) -> collectives.Collectives:
    """Joins the other ranks and configures this process."""
    ranks = collectives.connect()
    device.configure(o.threads, ranks.local_size)
    keras.utils.set_random_seed(o.seed)
    return ranks


def source(o: object, split: str, ranks: collectives.Collectives) -> Source:
    """The images of a split."""
    with first_rank_first(ranks):  # a download happens once
        return held_out(o, split) if o.holdout else load(o.dataset, split, o.data_dir)


@contextlib.contextmanager
def first_rank_first(ranks: collectives.Collectives) -> Iterator[None]:
    """The other ranks begin when rank 0 has finished, however long it takes."""
    if ranks.rank != 0 or ranks.size == 1:
        while ranks.size > 1 and not _first_has_finished(ranks, False):
            pass
        yield
        return
    finished = threading.Event()
    teller = threading.Thread(target=_tell_when_finished, args=(ranks, finished), daemon=True)
    teller.start()
    try:
        yield
    finally:
        finished.set()
        teller.join()


def _tell_when_finished(ranks: collectives.Collectives, finished: threading.Event) -> None:
    # Again and again: ranks that waited in one collective for a download would be taken for a job that hangs.
    with contextlib.suppress(tf.errors.OpError):  # a rank is lost: this rank's next exchange says so
        while not _first_has_finished(ranks, finished.wait(10)):
            pass


def _first_has_finished(ranks: collectives.Collectives, mine: bool) -> bool:
    with tf.device("/CPU:0"):
        return float(ranks.mean([tf.constant(float(mine))])[0]) > 0


def held_out(o: object, split: str) -> Source:
    """The training images without --holdout of them, or these: the same ones every time."""
    images = load(o.dataset, "train", o.data_dir)
    if o.holdout >= images.num_examples:
        raise UserError(
            f"--holdout={o.holdout} came, expected less than {images.num_examples}, the number of training images in "
            f"{images.name}; give a smaller one"
        )
    order = np.random.default_rng(0).permutation(images.num_examples)
    return images.subset(np.sort(order[: o.holdout] if split == "test" else order[o.holdout :]))


def image_size(o: object, images: Source) -> int:
    """Side of a view: --image_size, or the data set's own size, or 224."""
    return o.image_size or (min(images.image_shape) if images.image_shape else 224)


def encoder(o: object, classes: int = 0) -> Encoder:
    """A fresh encoder; with classes, its head is a linear classifier."""
    built = Encoder(
        o.arch,
        o.stem,
        o.width,
        o.bn_splits,
        "linear" if classes else o.head,
        classes or o.feature_dim,
        o.hidden_dim,
        o.head_init,
        dtype=device.dtype_policy(o.precision),
    )
    built.save_memory(o.accumulate, o.recompute)
    return built


def normalisation(o: object, train: Source) -> Normalisation:
    """--normalise; where the data set's own is not known, what the run folder keeps, or what is measured now."""
    own = known(o.normalise, o.dataset)
    return own or (found(normalisation_file(o), train) if o.workdir else measure(train))


def keep_normalisation(o: object, train: Source, mean_and_std: Normalisation) -> None:
    """Keeps a measured normalisation in the run folder, for the run that goes on from there."""
    if not known(o.normalise, o.dataset):
        keep(normalisation_file(o), train, mean_and_std)


def normalisation_file(o: object) -> pathlib.Path:
    """Where a measured normalisation is kept."""
    return pathlib.Path(o.workdir) / "normalisation.json"


def random_view(o: object, size: int, mean_and_std: Normalisation) -> views.View:
    """--views with a normalisation."""
    recipe = (o.crop_scale, o.exact_blur, o.antialias, o.uniform_ratio)
    return views.view(o.views, size, *mean_and_std, *recipe, fast=o.fast_views)


def in_step(view: views.View, images: Source) -> View:
    """What of a view happens in the step: all of it, or what follows the crop where images differ in size."""
    return InStep(view if isinstance(images, ArraySource) else view.without_crop())


@dataclasses.dataclass(frozen=True)
class InStep:
    """A view as a method calls it."""

    view: views.View

    def __call__(self, x: tf.Tensor, seed: tf.Tensor, positions: tf.Tensor, count: int) -> tf.Tensor:
        return self.view(x, seed, rows=positions, count=count)

    def in_pieces(self) -> View:
        """The same for a CPU, from compiled pieces."""
        return self.view.in_pieces()


def method(o: object, ranks: collectives.Collectives, view: View, train: Source) -> base.Method:
    """The pre-training method, its constructor's arguments the flags of the same names, with its optimizer."""
    kind = base.find(o.method)
    classes = train.num_classes if kind.classifies else 0
    query_encoder = encoder(o, classes)
    own = {name: getattr(o, name) for name in base.parameters(kind) if hasattr(o, name)}
    if "key_encoder" in base.parameters(kind):
        own["key_encoder"] = encoder(o)
    if "num_examples" in base.parameters(kind):
        own["num_examples"] = train.num_examples
    built = kind(
        query_encoder,
        **own,
        collectives=ranks,
        views=(view, view),
        jit_compile=pieces_to_compile(o, ranks),
        seed=o.seed,
        bn=o.bn,
        compression=o.compression,
    )
    built.compile(optimizer(o))
    return built


def pieces_to_compile(o: object, ranks: collectives.Collectives) -> str:
    """What XLA compiles, see `Method`: with SyncBN not the encoders, which have collectives inside.

    Raises:
        UserError: the flags ask for both.
    """
    pieces = device.pieces_to_compile(o.jit_compile)
    if o.bn != "sync" or ranks.size == 1 or pieces != "all":
        return pieces
    if o.jit_compile == "true":
        raise UserError(
            f"--bn=sync came with --jit_compile=true on {ranks.size} ranks, expected auto or false: XLA cannot compile "
            "the collectives inside of the encoder; change the one or the other"
        )
    return "views"


def optimizer(o: object) -> keras.optimizers.Optimizer:
    """The optimizer, before its first step."""
    if o.optimizer == "sgd":
        return optimizers.SGD(o.learning_rate, o.momentum, o.weight_decay, o.nesterov)
    if o.optimizer == "lars":
        return optimizers.LARS(o.learning_rate, o.momentum, o.weight_decay)
    return optimizers.Adam(o.learning_rate, weight_decay=o.weight_decay)


def check_schedule(o: object) -> None:
    """Refuses flags of the learning rate that contradict each other."""
    try:
        learning_rate(o, 0, 1)
    except ValueError as error:
        raise UserError(f"the flags of the learning rate do not fit: {error}") from None


def check_crop(name: str, view: views.View, images: Source) -> None:
    """Refuses a view without a crop for images of many sizes."""
    if view.crop is None and not isinstance(images, ArraySource):
        raise UserError(
            f"the view {name!r} has no crop, and the images of {images.name} differ in size; give a view that crops, "
            "such as crop_flip"
        )


def learning_rate(o: object, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0."""
    return schedules.learning_rate(
        step,
        steps_per_epoch=steps_per_epoch,
        epochs=o.epochs,
        base=o.learning_rate,
        schedule=o.schedule,
        per=o.schedule_per,
        first_epoch=o.first_epoch,
        milestones=o.milestones,
        decay=o.decay,
        final=o.final_learning_rate,
        warmup_epochs=o.warmup_epochs,
        warmup_start=o.warmup_start,
    )
