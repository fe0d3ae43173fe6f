"""Measures a pre-training recipe: its step, its input, both together.

    python -m moco_tf.bench --flagfile=flags/pretrain/cifar10_moco.cfg
    python -m moco_tf.bench --flagfile=flags/pretrain/cifar10_moco.cfg --fake --compare=torch --json=figures.json
    horovodrun -np 8 python -m moco_tf.bench --flagfile=flags/pretrain/imagenet_moco_v2.cfg --fake

Takes every flag of moco_tf.pretrain. The step is measured on random images that are on the device already, with the
recipe's views and without (prepared float images). With --fake that is all, and no data set is needed. Images a second
are of all ranks. Nothing is saved but the figures.
"""

import json
import pathlib
import types
from collections.abc import Callable

import tensorflow as tf

from moco_tf.benchmark import compare, exchanges, images, machine, table, timing, work
from moco_tf.config import define
from moco_tf.config.options import Bench as Bench_
from moco_tf.data import pipeline
from moco_tf.data.normalisation import normalisation
from moco_tf.data.order import Share
from moco_tf.data.records import BadImages
from moco_tf.errors import UserError
from moco_tf.methods import base
from moco_tf.run import loop, prepare, program
from moco_tf.training import schedules
from moco_tf.training.collectives import Collectives, Horovod
from moco_tf.training.counting import Counting

# Flags that say where things are on this machine: they cost no time, and a benchmark's file is for others to read.
_PLACES = ("--data_dir=", "--workdir=", "--json=", "--torch_python=")


def main(options: Bench_) -> None:
    """Measures with the given options."""
    o = types.SimpleNamespace(**define.values_of(options))
    ranks = prepare.connect(options.device, options.run.seed)
    check(options, o, ranks)
    recorded = [line for line in define.flagfile(options).splitlines() if not line.startswith(_PLACES)]
    figures = Bench(options, o, ranks).figures() | {"flags": recorded}
    if ranks.rank == 0:
        print(table.table(figures), flush=True)
        if o.json:
            pathlib.Path(o.json).write_text(json.dumps(figures, indent=1) + "\n")


def check(options: Bench_, o: object, ranks: Collectives) -> None:
    """Refuses options that contradict each other, before anything is measured."""
    prepare.check(options, ranks)
    if o.json and not pathlib.Path(o.json).absolute().parent.is_dir():
        raise UserError(f"--json={o.json} is in a folder that is not there; make it, or give another file")
    if o.compare == "torch":
        compare.check(o, ranks.size)


class Bench:
    """A recipe's method, ready to be measured; every rank takes part in every measurement."""

    def __init__(self, options: Bench_, o: object, ranks: Collectives) -> None:
        self.o, self.ranks, self.batch = o, ranks, o.batch_size // ranks.size
        self.counting = Counting(ranks, self.batch)
        # The values of a mean and a deviation cost no time: none are measured.
        mean_and_std = normalisation(o.normalise, o.dataset)
        stand_in = images.stand_in(o.dataset) if o.fake else None
        run = prepare.pretraining(options, self.counting, stand_in, mean_and_std)
        self.options, self.train, self.size, self.views, self.method = (
            options,
            run.train,
            run.size,
            run.views,
            run.method,
        )
        self.method.synchronise()
        self.step = tf.function(self.method.train_step)
        self.start_up: dict[str, object] = {}
        self.collectives: dict[str, dict] = {}

    def figures(self) -> dict[str, object]:
        """Everything that is measured, as the JSON file has it; None where it was not."""
        o = self.o
        stored = images.as_stored(self.method, self.train, self.size, self.batch)
        prepared = images.prepared(self.train, self.size, self.batch)
        found: dict[str, object] = {"recipe": self.recipe(), "bench": self.settings(), "torch": None}
        with_views = None
        if o.compare == "torch":  # first, so that this process' peak of memory is of this step alone
            without_views, with_views, found["torch"] = self.in_turns(prepared, stored)
        step = {"views": with_views or self.repeats(stored, "views")}
        found["collectives"] = self.collectives
        found["input"], found["together"] = (None, None) if o.fake else self.with_input()
        found["peak_memory_bytes"] = machine.peak_memory()
        shuffled = stored[0][-1] if isinstance(stored[0], tuple) else stored[0]
        found["exchanges"] = exchanges.measure(self.method, shuffled, self.counting, o.bench_steps, o.repeats)
        step["prepared"] = without_views if o.compare == "torch" else self.repeats(prepared, "prepared")
        graph = self.step.get_concrete_function(stored)
        found["python_overhead_ms"] = 1000 * timing.python_overhead(graph, stored, self.set_learning_rate)
        found["multiply_adds"] = work.multiply_adds(self.method, self.size, self.batch)
        dtype = self.method.query_encoder.compute_dtype
        for kind in step.values():
            kind |= work.achieved(found["multiply_adds"], kind["ms"]["median"] / 1000, dtype)
        found |= {"step": step, "start_up": self.start_up}
        return found | {"machine": machine.describe(), "versions": machine.versions()}

    def recipe(self) -> dict[str, object]:
        """What is measured."""
        o, config = self.o, self.method.query_encoder.config
        return {
            **{name: getattr(o, name) for name in ("method", "views", "batch_size")},
            **{name: config[name] for name in ("arch", "stem", "width", "bn_splits", "head", "feature_dim")},
            "images": self.train.name,
            "image_size": self.size,
            "precision": self.method.query_encoder.compute_dtype,
            "bn": o.bn,
            "compression": o.compression,
            "compiled": prepare.pieces_to_compile(self.options, self.ranks),
            "ranks": self.ranks.size,
            "horovod": isinstance(self.ranks, Horovod),
        }

    def settings(self) -> dict[str, int]:
        """How it is measured."""
        return {name: getattr(self.o, name) for name in ("bench_steps", "repeats", "warmup_steps")}

    def repeats(self, data: tuple, kind: str) -> dict[str, dict[str, float]]:
        """Rates of the step on one batch of the kind "views" or "prepared"."""
        self.start(data, kind)
        return timing.rates([self.turn(data) for _ in range(self.o.repeats)], self.o.batch_size)

    def start(self, data: tuple, kind: str) -> None:
        """Traces the step for a kind of data and warms it up; notes its collectives and the first step's end."""
        if kind == "prepared":
            views, self.method.views = self.method.views, [base.as_given] * 2
            self.step.get_concrete_function(data)  # float images: of all calls, only theirs find this graph
            self.method.views = views
        else:
            self.collectives = self.counting.during(lambda: self.step.get_concrete_function(data))
        for _ in range(self.warmup_steps):
            timing.wait_for(self.step(data))
            self.start_up = self.start_up or {"seconds": machine.process_seconds(), "step": kind}

    @property
    def warmup_steps(self) -> int:
        """Never less than the one that compiles."""
        return max(1, self.o.warmup_steps)

    def turn(self, data: tuple) -> float:
        """Seconds a step in one repeat."""
        self.ranks.barrier()
        return timing.seconds_per_step(lambda: self.step(data), self.o.bench_steps)

    def in_turns(self, prepared: tuple, stored: tuple) -> tuple[dict, dict | None, dict | None]:
        """A repeat of each in turn: rates of the step on prepared images, those with views, the comparison.

        The latter two are None without PyTorch, the rates with views also where PyTorch's step cannot make them.
        """
        o, batch = self.o, self.o.batch_size
        self.start(prepared, "prepared")
        settings = compare.settings(o, self.method, self.size, self.views[0], self.train)
        rival = compare.TorchStep(compare.python(o), settings)
        try:
            if "missing" in rival.about:
                print(
                    f"no comparison: {compare.python(o)} has no PyTorch ({rival.about['missing']}); "
                    "install torch there, or name another with --torch_python"
                )
                return timing.rates([self.turn(prepared) for _ in range(o.repeats)], batch), None, None
            ours, theirs = self.one_and_the_other(prepared, rival, views=False)
            found = compare.report(rival, ours, theirs, batch) | {"with_views": None}
            rates, found["no_views"] = (
                timing.rates(ours, batch),
                compare.no_views(self.views[0], self.size, self.train, rival),
            )
            if found["no_views"]:
                return rates, None, found
            self.start(stored, "views")
            ours, theirs = self.one_and_the_other(stored, rival, views=True)
            ratios = {"speed_ratio": compare.ratios(ours, theirs)}
            return rates, timing.rates(ours, batch), found | {"with_views": timing.rates(theirs, batch) | ratios}
        finally:
            rival.close()

    def one_and_the_other(self, data: tuple, rival: compare.TorchStep, views: bool) -> tuple[list, list]:
        """Seconds a step of every repeat, ours and PyTorch's."""
        steps = self.o.bench_steps
        if views:
            rival.seconds(1, views)  # its workers start
        turns = [(self.turn(data), rival.seconds(steps, views)) for _ in range(self.o.repeats)]
        ours, theirs = (list(column) for column in zip(*turns))
        return ours, theirs

    def with_input(self) -> tuple[dict, dict]:
        """(rates of the input alone, rates of input and step together with the share of time spent waiting)."""

        def train(number: int, batch: tuple) -> dict[str, tf.Tensor]:
            self.set_learning_rate(number)
            return self.step(batch)

        alone, both = self.loop(lambda number, batch: None), self.loop(train)
        rates = [timing.rates([seconds for seconds, _ in turns], self.o.batch_size) for turns in (alone, both)]
        return rates[0], {**rates[1], "waiting": timing.spread([waited / seconds for seconds, waited in both])}

    def loop(self, use: Callable[[int, tuple], dict[str, tf.Tensor] | None]) -> list[tuple[float, float]]:
        """(seconds a batch, seconds of them waited for it) of every repeat, as pretrain goes through its batches."""
        o, ranks = self.o, self.ranks
        batches = pipeline.TrainBatches(
            self.train,
            o.batch_size,
            o.seed,
            Share(ranks.rank, ranks.size),
            prepare.crops(self.views[: self.method.num_views]),
            BadImages(o.max_bad_images),
            o.read_order,
        )
        steps = loop.steps(batches, 0, self.warmup_steps + o.repeats * o.bench_steps)
        timing.seconds_per_batch(steps, self.warmup_steps, use)
        turns = []
        for _ in range(o.repeats):
            ranks.barrier()
            turns.append(timing.seconds_per_batch(steps, o.bench_steps, use))
        steps.close()
        return turns

    def set_learning_rate(self, number: int = 1) -> None:
        """What pretrain does before step `number`; past the recipe's end the schedule begins again."""
        per_epoch = max(1, self.train.num_examples // self.o.batch_size)
        done = (number - 1) % (per_epoch * self.o.epochs)
        self.method.optimizer.learning_rate.assign(
            schedules.learning_rate(done, per_epoch, self.o.learning_rate, self.options.schedule)
        )


if __name__ == "__main__":
    program.run(main, Bench_)
