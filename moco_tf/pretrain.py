"""Pre-trains an encoder by momentum contrast or one of its family.

    python -m moco_tf.pretrain --flagfile=flags/pretrain/cifar10_moco.cfg --workdir=runs/cifar10
    horovodrun -np 8 python -m moco_tf.pretrain --flagfile=flags/pretrain/imagenet_moco_v2.cfg --data_dir=/data ...

The same command again goes on from the run folder's newest whole checkpoint.
"""

import collections
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl import flags

from moco_tf import build, evaluate, options, program
from moco_tf.contrast.collapse import has_collapsed
from moco_tf.data import pipeline
from moco_tf.data.normalisation import Normalisation
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import features, neighbours
from moco_tf.methods import base
from moco_tf.methods.base import Method
from moco_tf.networks.cost import cost
from moco_tf.training import checkpoint, schedules
from moco_tf.training.collectives import Collectives
from moco_tf.training.runlog import RunLog, make_folder
from moco_tf.training.waiting import InputWait


def define_flags() -> None:
    """Defines this program's flags."""
    options.define_data()
    options.define_run()
    options.define_encoder()
    options.define_method()
    options.define_optimizer(learning_rate=0.03, epochs=200, weight_decay=1e-4, schedule="cosine")
    options.define_monitor()
    options.define_knn()


def main(o: object, flagfile: str) -> None:
    """Pre-trains with the given options."""
    ranks = build.connect(o)
    check(o, ranks)
    workdir = pathlib.Path(o.workdir)
    train = build.source(o, "train", ranks)
    size = build.image_size(o, train)
    if base.find(o.method).uses_labels:
        evaluate.check_labels(train, train)
    test = build.source(o, "test", ranks) if o.knn_every else None
    mean_and_std = build.normalisation(o, train)
    view = build.random_view(o, size, mean_and_std)
    build.check_crop(o.views, view, train)
    batches = pipeline.TrainBatches(
        train,
        o.batch_size,
        o.seed,
        ranks.rank,
        ranks.size,
        crop=view.crop,
        one_view=base.find(o.method).num_views == 1,
        max_bad_images=o.max_bad_images,
        bad_images_file=str(workdir / "unreadable.txt"),
    )
    monitor = KnnMonitor(o, train, test, size, mean_and_std, ranks) if test else None
    method = build.method(o, ranks, build.in_step(view, train), train)
    make_folder(workdir)
    start = resume(method, workdir, ranks)
    method.synchronise()
    per_epoch = batches.steps_per_epoch
    total = min(o.steps or o.epochs * per_epoch, o.epochs * per_epoch)
    if ranks.rank == 0:
        build.keep_normalisation(o, train, mean_and_std)
        (workdir / "flags.cfg").write_text(flagfile)
        introduce(o, method, train, size, ranks, start, total)
    log = RunLog(workdir, ranks.rank == 0, total, start)
    fit(o, method, batches, start, total, log, monitor, lambda step: save(o, method, step, size, mean_and_std, ranks))
    log.close()
    if ranks.rank == 0:
        print(f"done: {total} steps; the run folder is {workdir}", flush=True)


def fit(
    o: object,
    method: Method,
    batches: pipeline.TrainBatches,
    start: int,
    total: int,
    log: RunLog,
    monitor: "KnnMonitor | None",
    save_checkpoint: Callable[[int], None],
) -> None:
    """Takes the steps from start to total, with metrics, kNN monitor and checkpoints when they are due."""
    per_epoch = batches.steps_per_epoch
    train_step = tf.function(method.train_step)
    meter, wait = Meter(o.batch_size), InputWait()
    watch = CollapseWatch(method, log)
    for step, batch in wait.timed(steps(batches, start, total)):
        learning_rate = build.learning_rate(o, step - 1, per_epoch)
        method.optimizer.learning_rate.assign(learning_rate)
        if o.key_momentum_schedule == "cosine" and hasattr(method, "key_momentum"):
            method.key_momentum.assign(schedules.key_momentum(step - 1, o.epochs * per_epoch, o.key_momentum, "cosine"))
        meter.add(train_step(batch))
        log.advance()
        epoch, last = step / per_epoch, step == total
        if last or step % o.log_every == 0:
            values = meter.read()
            values["input_wait"] = wait.share(values["images_per_second"] / o.batch_size)
            top1 = next(value for name, value in values.items() if name.endswith("_top1"))
            log.show(loss=values["loss"], top1=top1, images_s=values["images_per_second"])
            log.write(step, epoch=epoch, learning_rate=learning_rate, **values)
            watch(step, values)
        if monitor and (last or epoch % o.knn_every == 0):
            values = monitor(method)
            log.write(step, epoch=epoch, **values)
            log.say(f"epoch {epoch:.4g}: kNN top-1 {values['knn_top1']:.2%}, top-5 {values['knn_top5']:.2%}")
            meter.restart()
        if last or is_due(step, epoch, o.checkpoint_every, o.checkpoint_steps):
            save_checkpoint(step)
            meter.restart()


def steps(batches: pipeline.TrainBatches, start: int, total: int) -> Iterator[tuple[int, tuple]]:
    """(number of the step from 1 on, (images, labels, indices)) from where start steps were done, across epochs."""
    done = start
    while done < total:
        epoch, place = divmod(done, batches.steps_per_epoch)
        for batch in batches.batches(epoch, place):
            done += 1
            yield done, batch
            if done == total:
                return


def is_due(step: int, epoch: float, every_epochs: int, every_steps: int) -> bool:
    """Whether a checkpoint is due after a step."""
    return bool((every_epochs and epoch % every_epochs == 0) or (every_steps and step % every_steps == 0))


def check(o: object, ranks: Collectives) -> None:
    """Refuses options that contradict each other."""
    if not o.workdir:
        raise UserError("--workdir is missing; give the run folder to write to, for example --workdir=runs/first")
    if o.symmetric and o.method != "moco":
        raise UserError(f"--symmetric came with --method={o.method}, expected moco; leave --symmetric out")
    keys = o.batch_size * (1 + o.symmetric)
    if "queue_size" in base.parameters(base.find(o.method)) and keys > o.queue_size:
        raise UserError(
            f"--batch_size={o.batch_size} brings {keys} keys a step, expected at most --queue_size={o.queue_size}; "
            "lower the one or raise the other"
        )
    build.check_schedule(o)
    share = o.batch_size // ranks.size
    if share % o.bn_splits:
        raise UserError(
            f"--batch_size={o.batch_size} gives each of {ranks.size} ranks {share} images, expected a multiple of "
            f"--bn_splits={o.bn_splits}; change the one or the other"
        )


def resume(method: Method, workdir: pathlib.Path, ranks: Collectives) -> int:
    """Restores the newest whole checkpoint on every rank; returns the steps done."""
    newest, complaints = checkpoint.newest_sound(workdir / "checkpoints")
    if ranks.rank == 0:
        for complaint in complaints:
            print(f"skipped: {complaint}", flush=True)
    if newest is None:
        return 0
    checkpoint.restore(newest, method.state())
    if ranks.rank == 0:
        print(f"resuming from {newest}", flush=True)
    return int(method.steps_done.numpy())


def save(o: object, method: Method, step: int, size: int, mean_and_std: Normalisation, ranks: Collectives) -> None:
    """Writes a checkpoint on rank 0, with the running statistics of all ranks."""
    method.average_running_statistics()
    if ranks.rank == 0:
        mean, std = mean_and_std
        about = {"encoder": dict(method.query_encoder.config), "image_size": size, "mean": mean, "std": std}
        about |= {"method": o.method, "dataset": o.dataset, "ranks": ranks.size, "batch_size": o.batch_size}
        checkpoint.save(pathlib.Path(o.workdir) / "checkpoints", step, method.state(), about, o.keep)


def introduce(o: object, method: Method, train: Source, size: int, ranks: Collectives, start: int, total: int) -> None:
    """Prints what will run, derived numbers included."""
    config = method.query_encoder.config
    print(
        f"{o.method}: {train.num_examples:,} images of {train.name}, {size} px, views {o.views}\n"
        f"encoder {o.arch} width {o.width}, {o.stem} stem, {config['head']} head to {config['feature_dim']}: "
        f"{cost(method.query_encoder, size)}, {method.query_encoder.compute_dtype}\n"
        f"batch {o.batch_size} = {ranks.size} ranks x {o.batch_size // ranks.size}; "
        f"steps {start} to {total} ({o.epochs} epochs of {train.num_examples // o.batch_size} steps)"
    )
    print("\n".join(method.notes(o.batch_size)), flush=True)


class Meter:
    """Means of a step's metrics and images per second since they were last read."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._sums: dict[str, list] = collections.defaultdict(list)
        self.restart()

    def restart(self) -> None:
        """Leaves the time until now out of the images per second."""
        self._since, self._steps = time.time(), 0

    def add(self, metrics: dict[str, tf.Tensor]) -> None:
        """Counts a step. Values stay on the device until they are read."""
        self._steps += 1
        for name, value in metrics.items():
            self._sums[name].append(value)

    def read(self) -> dict[str, float]:
        """The means since the last reading."""
        values = {name: float(np.mean([v.numpy() for v in column])) for name, column in self._sums.items()}
        seconds = time.time() - self._since
        values["images_per_second"] = self._steps * self._batch_size / max(seconds, 1e-9)
        self._sums.clear()
        self.restart()
        return values


class CollapseWatch:
    """Warns when the features become the same for all images, once until they recover."""

    def __init__(self, method: Method, log: RunLog) -> None:
        self._dim, self._log, self._warned = method.query_encoder.config["feature_dim"], log, False

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Looks at the metrics of a step."""
        std = values.get("feature_std", 1.0)
        collapsed = has_collapsed(std, self._dim)
        if collapsed and not self._warned:
            self._log.say(
                f"warning: the features are collapsing at step {step}: feature_std is {std:.2g}, expected towards "
                f"1/sqrt({self._dim}) = {self._dim**-0.5:.2g}; lower --learning_rate, warm up with --warmup_epochs, or "
                "raise --temperature"
            )
        self._warned = collapsed


class KnnMonitor:
    """Weighted kNN accuracy of the encoder on the test images, against un-augmented training images."""

    def __init__(
        self,
        o: object,
        train: Source,
        test: Source,
        size: int,
        mean_and_std: Normalisation,
        ranks: Collectives,
    ) -> None:
        self._o, self._test, self._mean_and_std, self._ranks = o, test, mean_and_std, ranks
        evaluate.check_labels(train, self._test)
        self._bank = train
        if 0 < o.knn_bank < train.num_examples:
            rows = np.random.default_rng(o.seed).choice(train.num_examples, o.knn_bank, replace=False)
            self._bank = train.subset(np.sort(rows))
        self._geometry = features.test_geometry(train, size)

    def __call__(self, method: Method) -> dict[str, float]:
        """{"knn_top1": share, "knn_top5": share}."""
        o = self._o
        method.average_running_statistics()
        embed = features.embedder(method.query_encoder, o.feature, *self._mean_and_std)
        (bank, bank_labels), (queries, labels) = (
            features.extract(embed, images, self._geometry, 256, self._ranks, o.max_bad_images)
            for images in (self._bank, self._test)
        )
        ranked = neighbours.classify(
            features.normalised(bank),
            bank_labels,
            features.normalised(queries),
            self._test.num_classes,
            min(o.k, len(bank)),
            o.knn_temperature,
            o.weighting,
        )
        top1, top5 = neighbours.accuracy(ranked, labels)
        return {"knn_top1": top1, "knn_top5": top5}


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(options)
    program.run(main)
