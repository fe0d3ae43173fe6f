"""From options to objects: what the programs have in common."""

import keras

from moco_tf.data import views
from moco_tf.data.normalisation import normalisation
from moco_tf.data.sources import ArraySource, Source, load
from moco_tf.methods.base import View
from moco_tf.methods.moco import MoCo
from moco_tf.networks.encoder import Encoder
from moco_tf.training import collectives, device, optimizers, schedules


def connect(o: object) -> collectives.Collectives:
    """Joins the other ranks and configures this process."""
    ranks = collectives.connect()
    device.configure(o.threads, ranks.local_size)
    keras.utils.set_random_seed(o.seed)
    return ranks


def source(o: object, split: str, ranks: collectives.Collectives) -> Source:
    """The images of a split. Rank 0 goes first, so that a download happens once."""
    if ranks.rank != 0:
        ranks.barrier()
    try:
        return load(o.dataset, split, o.data_dir)
    finally:
        if ranks.rank == 0:
            ranks.barrier()


def image_size(o: object, images: Source) -> int:
    """Side of a view: --image_size, or the data set's own size, or 224."""
    return o.image_size or (min(images.image_shape) if images.image_shape else 224)


def encoder(o: object) -> Encoder:
    """A fresh encoder."""
    return Encoder(
        o.arch,
        o.stem,
        o.width,
        o.bn_splits,
        o.head,
        o.feature_dim,
        o.hidden_dim,
        o.head_init,
        dtype=device.dtype_policy(o.precision),
    )


def random_view(o: object, size: int) -> views.View:
    """--views with the data set's normalisation."""
    mean, std = normalisation(o.normalise, o.dataset)
    return views.view(o.views, size, mean, std, o.crop_scale, o.exact_blur)


def in_step(view: views.View, images: Source) -> View:
    """What of a view happens in the step: all of it, or what follows the crop where images differ in size."""
    view = view if isinstance(images, ArraySource) else view.without_crop()
    return lambda x, seed, positions, count: view(x, seed, rows=positions, count=count)


def method(o: object, ranks: collectives.Collectives, view: View) -> MoCo:
    """The pre-training method, compiled with its optimizer."""
    moco = MoCo(
        encoder(o),
        encoder(o),
        queue_size=o.queue_size,
        key_momentum=o.key_momentum,
        temperature=o.temperature,
        symmetric=o.symmetric,
        key_update=o.key_update,
        shuffle_bn=o.shuffle_bn,
        collectives=ranks,
        views=(view, view),
        jit_compile=device.pieces_to_compile(o.jit_compile),
        seed=o.seed,
    )
    moco.compile(optimizer(o))
    return moco


def optimizer(o: object) -> keras.optimizers.Optimizer:
    """The optimizer, before its first step."""
    if o.optimizer == "sgd":
        return optimizers.SGD(o.learning_rate, o.momentum, o.weight_decay, o.nesterov)
    if o.optimizer == "lars":
        return optimizers.LARS(o.learning_rate, o.momentum, o.weight_decay)
    return optimizers.Adam(o.learning_rate, weight_decay=o.weight_decay)


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
