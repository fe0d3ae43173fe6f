"""Pre-trains an encoder by momentum contrast or one of its family.

    python -m moco_tf.pretrain --flagfile=flags/pretrain/cifar10_moco.cfg --workdir=runs/cifar10
    horovodrun -np 8 python -m moco_tf.pretrain --flagfile=flags/pretrain/imagenet_moco_v2.cfg --data_dir=/data ...

The same command again goes on from the run folder's newest whole checkpoint.
"""

import pathlib

import numpy as np
from absl import flags

from moco_tf.config import options
from moco_tf.data import pipeline
from moco_tf.data.normalisation import Normalisation
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import features, knn
from moco_tf.methods import base
from moco_tf.methods.base import Method
from moco_tf.networks.cost import cost
from moco_tf.run import build, evaluate, loop, program
from moco_tf.run import statistics as rank_statistics
from moco_tf.run.resume import resume
from moco_tf.training import checkpoint_writer, elastic
from moco_tf.training.agree import on_first_rank
from moco_tf.training.collectives import Collectives
from moco_tf.training.lock import RunLock
from moco_tf.training.runlog import RunLog, make_folder, write_whole
from moco_tf.training.stop import Signals, signals
from moco_tf.training.watchdog import Watchdog


def define_flags() -> None:
    """Defines this program's flags."""
    options.define_data()
    options.define_run()
    options.define_encoder()
    options.define_method()
    options.define_compression()
    options.define_optimizer(learning_rate=0.03, epochs=200, weight_decay=1e-4, schedule="cosine")
    options.define_monitor()
    options.define_knn()


def main(o: object, flagfile: str) -> None:
    """Pre-trains with the given options."""
    with signals() as received:
        ranks = build.connect(o)
        if not o.workdir:
            raise UserError("--workdir is missing; give the run folder to write to, for example --workdir=runs/first")
        run = prepare(o, ranks)
        make_folder(pathlib.Path(o.workdir))
        with RunLock(pathlib.Path(o.workdir)) as lock:
            on_first_rank(ranks, lock.acquire)
            pretrain(run, flagfile, received)


def prepare(o: object, ranks: Collectives) -> loop.Run:
    """Checks the options and builds all that a run needs; writes nothing. workdir None: reads no run folder."""
    check(o, ranks)
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
        bad_images_file=str(pathlib.Path(o.workdir) / "unreadable.txt") if o.workdir else None,
        order=o.read_order,
    )
    monitor = KnnMonitor(o, train, test, size, mean_and_std, ranks) if test else None
    method = build.method(o, ranks, build.in_step(view, train), train)
    # In float16 gradients overflow now and then, and the loss scale sees to it.
    method.guard.every_gradient = o.nan_policy == "skip" and method.loss_scale is None
    return loop.Run(o, ranks, train, size, mean_and_std, batches, method, monitor)


def pretrain(run: loop.Run, flagfile: str, received: Signals) -> None:
    """Goes on from the run folder's newest checkpoint, to the end or until the run is asked to stop."""
    o, ranks, workdir = run.o, run.ranks, pathlib.Path(run.o.workdir)
    found = resume(o, run.method, ranks, run.train.num_examples)
    if ranks.rank == 0:
        build.keep_normalisation(o, run.train, run.mean_and_std)
        write_whole(workdir / "flags.cfg", flagfile)
        introduce(o, run.method, run.train, run.size, ranks, found.step, run.total)
    log = RunLog(workdir, ranks.rank == 0, run.total, found.step)
    watchdog = Watchdog(o.step_timeout, ranks.rank, ranks.size, "moco_tf.pretrain", elastic.is_elastic())
    with received.deferred(), checkpoint_writer.Writer(workdir / "checkpoints", o.keep) as writer, watchdog:
        loop.fit(run, found, log, writer, received, watchdog)
    log.close()
    ranks.barrier()  # what these processes do next finds the last checkpoint, which rank 0 has written
    if ranks.rank == 0:
        print(f"done: {run.total} steps; the run folder is {workdir}", flush=True)


def check(o: object, ranks: Collectives) -> None:
    """Refuses options that contradict each other."""
    if o.symmetric and o.method != "moco":
        raise UserError(f"--symmetric came with --method={o.method}, expected moco; leave --symmetric out")
    keys = o.batch_size * (1 + o.symmetric)
    if "queue_size" in base.parameters(base.find(o.method)) and keys > o.queue_size:
        raise UserError(
            f"--batch_size={o.batch_size} brings {keys} keys a step, expected at most --queue_size={o.queue_size}; "
            "lower the one or raise the other"
        )
    build.check_schedule(o)
    build.pieces_to_compile(o, ranks)
    if o.bn == "sync" and o.bn_splits > 1:
        raise UserError(
            f"--bn=sync came with --bn_splits={o.bn_splits}, expected 1: its batch is that of all ranks; leave one out"
        )
    if o.bn == "sync" and (o.accumulate > 1 or o.recompute):
        raise UserError(
            "--bn=sync came with --accumulate or --recompute, expected neither: a second forward pass would exchange "
            "the statistics once more; leave the one or the other out"
        )
    share = o.batch_size // ranks.size
    if share % (o.bn_splits * o.accumulate):
        raise UserError(
            f"--batch_size={o.batch_size} gives each of {ranks.size} ranks {share} images, expected a multiple of "
            f"--bn_splits={o.bn_splits} times --accumulate={o.accumulate}; change the one or the other"
        )


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
        """{"knn_top1": share, "knn_top5": share} of the first --k and --knn_temperature; top-1 of the others too."""
        o = self._o
        embed = features.embedder(method.query_encoder, o.feature, *self._mean_and_std)
        with rank_statistics.averaged(method):
            (first, *more), _ = knn.measure(
                embed,
                self._bank,
                self._test,
                (self._geometry, self._geometry),
                o.k,
                o.knn_temperature,
                o.weighting,
                256,
                self._ranks,
                o.max_bad_images,
                require_finite=False,
            )
        others = {f"knn_top1_k{other.k}_t{other.temperature:g}": other.top1 for other in more}
        return {"knn_top1": first.top1, "knn_top5": first.top5, **others}


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(options)
    program.run(main)
