"""Pre-training: what the loop is told, and what is printed of it."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from moco_tf.config import define
from moco_tf.config.options import Pretrain
from moco_tf.contrast.collapse import has_collapsed
from moco_tf.data.sets import folder as folder_of_images
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.methods.base import Method, forward_passes
from moco_tf.networks.cost import cost
from moco_tf.run import advice, automatic, calls, compile_choice, initial, loop, monitor, prepare, verdict
from moco_tf.run.folder import RunFolder
from moco_tf.run.learner import TrainingTask
from moco_tf.run.prepare import Pretraining
from moco_tf.training import compiled, device, schedules
from moco_tf.training.collectives import Collectives
from moco_tf.training.files import write_whole
from moco_tf.training.stop import signals

_TIMED = 10  # calls from which the time of a training is estimated


def pretrain(o: Pretrain) -> None:
    """Pre-trains in the run folder, or goes on in it.

    Raises:
        UserError: options do not fit, or the run cannot go on.
        Stopped: the run was asked to stop; its checkpoint is written.
    """
    with signals() as received:
        collectives = prepare.connect(o.device, o.run.seed)
        if not o.run.workdir:
            raise UserError("--workdir is missing; give the run folder to write to, for example --workdir=runs/first")
        train = None
        if o.automatic.auto:
            train = prepare.source(o.data, "train", collectives)
            o, fresh = automatic.chosen(o, train, collectives)
            if fresh:
                say_time(o, collectives, train)
        faster = compile_choice.chosen(o, collectives, lambda each: seconds_of_a_step(each, collectives))
        run = dataclasses.replace(prepare.pretraining(faster, collectives, train), options=o)
        training = training_of(run)

        def introduce(start: int) -> None:
            prepare.keep_normalisation(o.data, run.train, training.folder, run.mean_and_std)
            print("\n".join(introduction(run, start, training.total)), flush=True)

        done = loop.train(training, "moco_tf.pretrain", received, introduce)
    if collectives.rank == 0:
        print(f"done: {done} steps; the run folder is {training.folder.path}", flush=True)
        if done == training.total and verdict.is_own(o.data.dataset):
            print(
                *verdict.lines(training.folder, run.method.query_encoder.config["feature_dim"], can_be_probed(run)),
                sep="\n",
            )


def can_be_probed(run: Pretraining) -> bool:
    """Whether there are classes, and test images besides."""
    data = run.options.data
    tested = bool(data.holdout) or data.dataset != "folder" or folder_of_images.has_splits(data.data_dir)
    return tested and run.train.num_classes > 1


def training_of(run: Pretraining) -> TrainingTask:
    """What the loop is told."""
    o, folder = run.options, RunFolder.of(run.options.run.workdir or "")
    batches = prepare.placed(run.batches, o.device)
    return TrainingTask(
        options=o,
        folder=folder,
        learner=run.learner,
        batches=batches,
        batch_size=o.run.batch_size,
        total=advice.total_steps(o.schedule, run.batches.steps_per_epoch),
        collectives=run.collectives,
        checkpoints=o.checkpoints,
        log_every=o.run.log_every,
        rates=lambda step: rates(run, step),
        set_rates=lambda values: set_rates(run.method, values),
        about=lambda: about(run),
        begin=lambda: begin(run, folder),
        evaluation=monitor.of_run(run),
        watch=CollapseWatch(run.method.query_encoder.config["feature_dim"]),
        steps_per_call=prepare.steps_per_call(o.device, run.method.one_piece, batches.on_device, o.run.log_every),
        peak_rate=peak_rate(run),
        keeps_broken=True,
    )


def peak_rate(run: Pretraining) -> float | None:
    """Images a second with which the encoders' passes alone would fill this device; None where that is not known."""
    encoder = run.method.query_encoder
    peak = device.peak_flops(device.name(), encoder.compute_dtype)
    counted = cost(encoder, run.size).multiply_adds if peak else None
    return peak / (2 * forward_passes(run.method) * counted) if peak and counted else None


def seconds_of_a_step(o: Pretrain, collectives: Collectives) -> float:
    """How long a step of such a pre-training takes, on its first batches, without what it would write."""
    training, call = _trial(o, collectives)
    most = training.steps_per_call
    batches = list(itertools.islice(itertools.cycle(training.batches.batches(0)), most))
    return compile_choice.seconds_of(lambda: call(batches)) / most


def say_time(o: Pretrain, collectives: Collectives, train: Source) -> None:
    """Says about how long a pre-training will take: from a few steps of one like it, reading of images included."""
    training, call = _trial(o, collectives, train)
    endless = (batch for epoch in itertools.count() for batch in training.batches.batches(epoch))

    def seconds_of(calls: int) -> float:
        began = time.perf_counter()  # of the same number on every rank: time must not end them
        losses = [call(list(itertools.islice(endless, training.steps_per_call))) for _ in range(calls)]
        losses[-1].numpy()
        return time.perf_counter() - began

    with compiled.first_use():
        start = seconds_of(3)
    step = seconds_of(_TIMED) / _TIMED / training.steps_per_call
    endless.close()
    keras.utils.set_random_seed(o.run.seed)  # as if nothing had been measured
    if collectives.rank == 0:
        about = duration(start + step * training.total)
        print(
            f"time: about {about} for {training.total:,} steps, {1000 * step:.3g} ms each as measured now", flush=True
        )


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them, two digits or all before the point."""
    unit, size = ("hours", 3600) if seconds >= 7200 else ("minutes", 60) if seconds >= 120 else ("seconds", 1)
    return f"{seconds / size:{'.2g' if seconds < 100 * size else ',.0f'}} {unit}"


def _trial(
    o: Pretrain, collectives: Collectives, train: Source | None = None
) -> tuple[TrainingTask, Callable[[list], tf.Tensor]]:
    """A training like it that writes nothing, and its call: batches of up to `steps_per_call` steps to their losses."""
    unwritten = define.replaced(o, workdir=None, monitor=("knn",), knn_every=0)
    training = training_of(prepare.pretraining(unwritten, collectives, train))
    call, rates = calls.caller(training), [training.rates(1)] * training.steps_per_call
    return training, lambda batches: call(batches, rates)["loss"]


def begin(run: Pretraining, folder: RunFolder | None) -> None:
    """Starts from what --init names, if it does; says so, and keeps it in the run folder."""
    if path := run.options.encoder.init:
        said = initial.initialise(run.method, path)
        print(initial.line(said), flush=True)
        if folder:
            write_whole(folder.init, json.dumps(said, indent=1) + "\n")


def rates(run: Pretraining, step: int) -> list[float]:
    """What is scheduled for a step, counted from 1: the learning rate, and the key momentum where it changes."""
    o, per_epoch = run.options, run.batches.steps_per_epoch
    found = [schedules.learning_rate(step - 1, per_epoch, o.optimizer.learning_rate, o.schedule)]
    if o.method.key_momentum_schedule == "cosine" and "key_momentum" in o.method.own:
        base = float(str(o.method.own["key_momentum"]))
        found.append(schedules.key_momentum(step - 1, o.schedule.epochs * per_epoch, base, "cosine"))
    return found


def set_rates(method: Method, values: Sequence[tf.Tensor | float]) -> None:
    """Sets what `rates` gave."""
    method.optimizer.learning_rate.assign(values[0])
    for momentum in values[1:]:
        method.key_momentum.assign(momentum)


def about(run: Pretraining) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    o, (mean, std) = run.options, run.mean_and_std
    return {
        "encoder": dict(run.method.query_encoder.config),
        "image_size": run.size,
        "test_resize": o.data.test_resize,
        "mean": mean,
        "std": std,
        "method": o.method.method,
        "dataset": o.data.dataset,
        "ranks": run.collectives.size,
        "batch_size": o.run.batch_size,
        "num_examples": run.train.num_examples,
        "precision": run.method.query_encoder.compute_dtype,
    }


def introduction(run: Pretraining, start: int, total: int) -> list[str]:
    """What will run, derived numbers included."""
    o, train, ranks, encoder = run.options, run.train, run.collectives.size, run.method.query_encoder
    own = ", ".join(f"{name} {value}" for name, value in o.encoder.own.items())
    return [
        f"device: {device.description()}",
        f"{o.method.method}: {train.num_examples:,} images of {train.name}, {run.size} px, views {o.views.views}",
        f"encoder {o.encoder.arch} ({own}), {encoder.config['head']} head to {encoder.config['feature_dim']}: "
        f"{cost(encoder, run.size)}, {encoder.compute_dtype}",
        f"batch {o.run.batch_size} = {ranks} ranks x {o.run.batch_size // ranks}; "
        f"steps {start} to {total} ({o.schedule.epochs} epochs of {train.num_examples // o.run.batch_size} steps)",
        *run.method.notes(o.run.batch_size),
        *advice.of_queue(o.method.own, o.run.batch_size, train.num_examples),
        *advice.of_normalisation(run.mean_and_std),
        *advice.of_steps(o.schedule, run.batches.steps_per_epoch),
    ]


@dataclasses.dataclass
class CollapseWatch:
    """Warns when features become the same for all images, once until they recover, and of a loss scale at its least."""

    dim: int
    warned: bool = False
    scale: float = 2.0

    def __call__(self, step: int, values: dict[str, float]) -> str:
        """The warning for the metrics of a step; empty for none."""
        std = values.get("feature_std", 1.0)
        collapsed = has_collapsed(std, self.dim)
        before, self.scale = self.scale, values.get("loss_scale", 2.0)
        if self.scale <= 1 < before:
            return (
                f"warning: the loss scale is at its least, 1, at step {step}: gradients overflow in float16, and such "
                "steps are left out; give --precision=bfloat16 or float32"
            )
        says, self.warned = collapsed and not self.warned, collapsed
        if not says:
            return ""
        return (
            f"warning: the features are collapsing at step {step}: feature_std is {std:.2g}, expected towards "
            f"1/sqrt({self.dim}) = {self.dim**-0.5:.2g}; lower --learning_rate, warm up with --warmup_epochs, or "
            "raise --temperature"
        )
