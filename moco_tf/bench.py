"""Measures a pre-training recipe: its step, its input, both together.

    python -m moco_tf.bench --flagfile=flags/pretrain/cifar10_moco.cfg
    python -m moco_tf.bench --flagfile=flags/pretrain/cifar10_moco.cfg --fake --compare=torch --json=figures.json
    horovodrun -np 8 python -m moco_tf.bench --flagfile=flags/pretrain/imagenet_moco_v2.cfg --fake

Takes every flag of moco_tf.pretrain. The step is measured on random images that are on the device already, with the
recipe's views and without (prepared float images). With --fake that is all, and no data set is needed. Images a second
are of all ranks. Nothing is saved but the figures.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import tensorflow as tf
from absl import flags

from moco_tf import build, evaluate, loop, options, pretrain, program
from moco_tf.benchmark import compare, images, machine, table, timing, work
from moco_tf.data import pipeline
from moco_tf.data.normalisation import normalisation
from moco_tf.errors import UserError
from moco_tf.methods import base
from moco_tf.training import device
from moco_tf.training.collectives import Collectives, Horovod
from moco_tf.training.counting import Counting

# Flags that say where things are on this machine: they cost no time, and a benchmark's file is for others to read.
_PLACES = ("--data_dir=", "--workdir=", "--json=", "--torch_python=")


def define_flags() -> None:
    """Defines this program's flags: those of pre-training and its own."""
    pretrain.define_flags()
    options.define_bench()


def main(o: object, flagfile: str) -> None:
    """Measures with the given options."""
    ranks = build.connect(o)
    check(o, ranks)
    recorded = [line for line in flagfile.splitlines() if not line.startswith(_PLACES)]
    figures = Bench(o, ranks).figures() | {"flags": recorded}
    if ranks.rank == 0:
        print(table.table(figures), flush=True)
        if o.json:
            pathlib.Path(o.json).write_text(json.dumps(figures, indent=1) + "\n")


def check(o: object, ranks: Collectives) -> None:
    """Refuses options that contradict each other, before anything is measured."""
    pretrain.check(dataclasses.replace(o, workdir="none is written"), ranks)
    if o.json and not pathlib.Path(o.json).absolute().parent.is_dir():
        raise UserError(f"--json={o.json} is in a folder that is not there; make it, or give another file")
    if o.compare == "torch":
        compare.check(o, ranks.size)


class Bench:
    """A recipe's method, ready to be measured; every rank takes part in every measurement."""

    def __init__(self, o: object, ranks: Collectives) -> None:
        self.o, self.ranks, self.batch = o, ranks, o.batch_size // ranks.size
        self.train = images.stand_in(o.dataset) if o.fake else build.source(o, "train", ranks)
        if base.find(o.method).uses_labels:
            evaluate.check_labels(self.train, self.train)
        self.size = build.image_size(o, self.train)
        # The values of a mean and a deviation cost no time: none are measured.
        self.view = build.random_view(o, self.size, normalisation(o.normalise, o.dataset))
        build.check_crop(o.views, self.view, self.train)
        self.counting = Counting(ranks, self.batch)
        self.method = build.method(o, self.counting, build.in_step(self.view, self.train), self.train)
        self.method.synchronise()
        self.step = tf.function(self.method.train_step)
        self.start_up: dict[str, object] = {}

    def figures(self) -> dict[str, object]:
        """Everything that is measured, as the JSON file has it; None where it was not."""
        o = self.o
        stored = images.as_stored(self.method, self.train, self.size, self.batch)
        prepared = images.prepared(self.train, self.size, self.batch)
        found: dict[str, object] = {"recipe": self.recipe(), "bench": self.settings(), "torch": None}
        if o.compare == "torch":  # first, so that this process' peak of memory is of this step alone
            without_views, found["torch"] = self.in_turns(prepared)
        found["collectives"] = self.counting.during(lambda: self.step.get_concrete_function(stored))
        step = {"views": self.repeats(stored, "views")}
        found["input"], found["together"] = (None, None) if o.fake else self.with_input()
        found["peak_memory_bytes"] = machine.peak_memory()
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
            "compiled": device.pieces_to_compile(o.jit_compile),
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
        """Traces the step for a kind of data and warms it up; notes when the process' first step is done."""
        if kind == "prepared":
            views, self.method.views = self.method.views, [base.as_given] * 2
            self.step.get_concrete_function(data)  # float images: of all calls, only theirs find this graph
            self.method.views = views
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

    def in_turns(self, data: tuple) -> tuple[dict, dict | None]:
        """(rates of the step on prepared images, the comparison or None without PyTorch), a repeat of each in turn."""
        o = self.o
        self.start(data, "prepared")
        rival = compare.TorchStep(compare.python(o), compare.settings(o, self.method, self.size))
        try:
            if "missing" in rival.about:
                print(
                    f"no comparison: {compare.python(o)} has no PyTorch ({rival.about['missing']}); "
                    "install torch there, or name another with --torch_python"
                )
                return timing.rates([self.turn(data) for _ in range(o.repeats)], o.batch_size), None
            turns = [(self.turn(data), rival.seconds(o.bench_steps)) for _ in range(o.repeats)]
            ours, theirs = (list(column) for column in zip(*turns))
            return timing.rates(ours, o.batch_size), compare.report(rival, ours, theirs, o.batch_size)
        finally:
            rival.close()

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
            ranks.rank,
            ranks.size,
            crop=self.view.crop,
            one_view=self.method.num_views == 1,
            max_bad_images=o.max_bad_images,
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
        self.method.optimizer.learning_rate.assign(build.learning_rate(self.o, done, per_epoch))


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(options)
    program.run(main)
