"""What moco_tf.bench measures with: random images, a stopwatch, memory, the bytes that cross ranks, a table."""

import functools
import itertools
import math
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow as tf

from moco_tf.config import define, options
from moco_tf.data.normalisation import normalisation
from moco_tf.data.sources import ArraySource, RecordSource, Source
from moco_tf.evaluation.online_probe import OnlineProbe
from moco_tf.methods.base import Method, as_given
from moco_tf.run import calls, environment, prepare
from moco_tf.run.learner import TrainingTask
from moco_tf.training import compiled, device
from moco_tf.training.collectives import Collectives, Horovod

Batch = tuple[Any, tf.Tensor, tf.Tensor]  # images or two of these, labels, indices
Spread = dict[str, float]

# Data sets of small images, which are cropped in the step: (side in pixels, classes, training images).
_SMALL = {
    "mnist": (28, 10, 60_000),
    "fashion_mnist": (28, 10, 60_000),
    "cifar10": (32, 10, 50_000),
    "cifar100": (32, 100, 50_000),
    "svhn_cropped": (32, 10, 73_257),
    "stl10": (96, 10, 5_000),
}
_ROWS = {
    "step, prepared images": ("step", "prepared"),
    "step with views": ("step", "views"),
    "input": ("input",),
    "both, input and step": ("both",),
    "PyTorch, prepared images": ("torch",),
    "PyTorch, PIL views by a DataLoader": ("torch", "with_views"),
}


def stand_in(dataset: str) -> Source:
    """A source with a data set's sizes and no images; ImageNet's where the name is not known here."""
    side, classes, count = _SMALL.get(re.split("[/:]", dataset)[0], (0, 1000, 1_281_167))
    names, zero = tuple(map(str, range(classes))), np.uint8(0)  # broadcast, it takes no memory
    if side:
        zeros = np.broadcast_to(zero, (count, side, side, 3))
        return ArraySource(f"random {side}x{side} images", zeros, np.zeros(count, np.int32), names)

    def read(entry: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        raise NotImplementedError("there are no photographs to read")

    entries = (np.broadcast_to(zero, (count,)),)
    return RecordSource("random photographs", entries, read, str, class_names=names, read_span=lambda indices: None)


def random_batches(train: Source, size: int, batch: int, num_views: int) -> dict[str, Batch]:
    """On the device: {"views": a batch as the pipeline gives it to a step, "prepared": one whose views are taken}.

    Args:
        train: the source; images of an ArraySource are whole, as the step crops them.
        size: of a view, in pixels.
        batch: images of a rank.
        num_views: crops of each image where the pipeline crops.
    """
    rng, number = np.random.default_rng(0), 1 if isinstance(train, ArraySource) else num_views
    shape = (batch, *(train.image_shape or (size, size)), 3)
    stored = [tf.constant(rng.integers(0, 256, shape, np.uint8)) for _ in range(number)]
    prepared = [tf.constant(rng.standard_normal((batch, size, size, 3), np.float32)) for _ in range(2)]
    labels = tf.constant(rng.integers(0, max(1, train.num_classes), batch, np.int32))
    indices = tf.constant(np.arange(batch, dtype=np.int64) % train.num_examples)
    images = tuple(stored) if number > 1 else stored[0]
    return {"views": (images, labels, indices), "prepared": (tuple(prepared), labels, indices)}


class Counting:
    """Collectives that note the bytes of each exchange in a step that is traced, and pass everything on.

    Rows whose number only a run knows are a shuffle's, in which a rank sends exactly its batch. A branch of a tf.cond
    counts whether it is taken or not: NPID's estimate of Z, 4 bytes, happens in the first step alone.
    """

    def __init__(self, inner: Collectives, batch: int) -> None:
        self._inner, self._batch = inner, batch
        self._given: dict[str, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        exchange = {"alltoall": "alltoall", "allgather": "allgather", "mean": "allreduce"}.get(name)

        def noted(given: tf.Tensor | list[tf.Tensor], *rest: tf.Tensor) -> Any:
            number = sum(self._bytes(tensor) for tensor in (given if isinstance(given, list | tuple) else [given]))
            self._given.setdefault(str(exchange), []).append(number)
            return found(given, *rest)

        return noted if exchange else found

    def _bytes(self, tensor: tf.Tensor) -> int:
        return math.prod(self._batch if n is None else n for n in tensor.shape.as_list()) * tensor.dtype.size

    def during(self, trace: Callable[[], Any]) -> dict[str, dict[str, int]]:
        """For each collective that trace() uses: its "calls", a rank's "bytes", its "sent_bytes" (see `sent`)."""
        self._given = {}
        trace()
        return {
            name: {"calls": len(given), "bytes": sum(given), "sent_bytes": sent(name, sum(given), self._inner.size)}
            for name, given in self._given.items()
        }


def sent(name: str, given: int, ranks: int) -> int:
    """Bytes that leave each of n ranks for others when each hands over `given`; 0 of one rank.

    alltoall: (n - 1) / n given, the mean over shuffles. allgather: (n - 1) given, as a ring passes every part on.
    allreduce: 2 (n - 1) / n given, a ring's reduce-scatter and allgather.
    """
    share = {"alltoall": 1 / ranks, "allgather": 1, "allreduce": 2 / ranks}[name]
    return round(given * (ranks - 1) * share)


class _Steps(NamedTuple):
    """What `calls.caller` takes of a training whose schedules stand still."""

    steps_per_call: int
    learner: Method | OnlineProbe
    batches: "Bench"  # has fetch

    def set_rates(self, rates: Sequence[tf.Tensor]) -> None:
        """Leaves the optimizer as it is."""


class Bench:
    """A recipe's step, measured on random batches and with its input; every rank takes part in every measurement.

    run: what pretrain builds for the same options, but that the images are random with --fake.
    rates: of the step by the kind of its images, "views" or "prepared", as they are measured.
    collectives: what crosses ranks in a step with views, once it is traced.
    """

    def __init__(self, o: options.Bench, collectives: Collectives) -> None:
        self.o, self.ranks, batch = o, collectives, o.run.batch_size // collectives.size
        self.counting = Counting(collectives, batch)
        train = stand_in(o.data.dataset) if o.bench.fake else None
        # The values of a mean and a deviation cost no time: none are measured.
        mean_and_std = normalisation(o.data.normalise, o.data.dataset)
        nothing_saved = define.replaced(o, workdir=None)
        self.run = prepare.pretraining(nothing_saved, cast(Collectives, self.counting), train, mean_and_std)
        self.method, self.learner = self.run.method, self.run.learner
        self.learner.synchronise()
        self.batches = prepare.placed(self.run.batches, o.device)
        self.step = tf.function(lambda data: self.learner.train_step(self.fetch(data)), autograph=False)
        self.data = random_batches(self.run.train, self.run.size, batch, self.method.num_views)
        if self.batches.on_device:
            _, labels, indices = self.data["views"]
            self.data["views"] = indices, labels, indices
        self.per_call = prepare.steps_per_call(o.device, self.method.one_piece, self.batches.on_device, o.run.log_every)
        self._several = calls.caller(cast(TrainingTask, _Steps(self.per_call, self.learner, self)))
        self.rates: dict[str, dict[str, Spread]] = {}
        self.collectives: dict[str, dict[str, int]] = {}

    def figures(self) -> dict[str, Any]:
        """All figures, as the JSON file has them; None of the input with --fake."""
        self.measure("views")
        own, both = [None if self.o.bench.fake else self.with_input(trains) for trains in (False, True)]
        memory = peak_memory()
        self.measure("prepared")
        return {
            "recipe": self.recipe(),
            "bench": {name: getattr(self.o.bench, name) for name in ("bench_steps", "repeats", "warmup_steps")},
            "step": self.rates,
            "input": own,
            "both": both,
            "peak_memory_bytes": memory,
            "collectives": self.collectives,
            "machine": environment.machine(),
            "versions": environment.versions(),
        }

    def recipe(self) -> dict[str, Any]:
        """What is measured."""
        values, encoder = define.values_of(self.o), self.method.query_encoder
        return {
            **{name: values[name] for name in ("method", "views", "batch_size", "bn", "compression", "arch")},
            **self.o.encoder.own,
            **{name: encoder.config[name] for name in ("bn_splits", "head", "feature_dim")},
            "images": self.run.train.name,
            "image_size": self.run.size,
            "precision": encoder.compute_dtype,
            "compiled": prepare.pieces_to_compile(self.o, self.ranks),
            "steps_per_call": self.per_call,
            "data_on_device": self.batches.on_device,
            "ranks": self.ranks.size,
            "horovod": isinstance(self.ranks, Horovod),
        }

    def rates_of(self, seconds: Sequence[float]) -> dict[str, Spread]:
        """{"ms": of a step, "images_per_second"} from the seconds a step of every repeat."""
        ms, images = [1000 * s for s in seconds], [self.o.run.batch_size / s for s in seconds]
        return {"ms": spread(ms), "images_per_second": spread(images)}

    def measure(self, kind: str) -> None:
        """Measures the rates of the step on a kind of images, unless they are there."""
        if kind not in self.rates:
            self.start(kind)
            self.rates[kind] = self.rates_of([self.turn(kind) for _ in range(self.o.bench.repeats)])

    def fetch(self, batch: Any) -> Any:
        """A batch with its images, inside of the step, see TrainBatches.fetch; prepared ones are no indices."""
        return batch if isinstance(batch[0], tuple) else self.batches.fetch(batch)

    def start(self, kind: str, steps: int = 0) -> None:
        """Traces the step for a kind of images and warms it up, with so many steps or `warmup_steps`."""
        views = self.method.views
        if kind == "prepared":  # float images: of all calls, only theirs find this graph
            self.method.views = [as_given] * 2
        else:
            found = self.counting.during(lambda: self.step.get_concrete_function(self.data[kind]))
            self.collectives = found or self.collectives  # a graph that is there is not traced again
        with compiled.first_use():
            self._turn(itertools.repeat(self.data[kind]), steps or self.o.bench.warmup_steps)
        self.method.views = views

    def turn(self, kind: str) -> float:
        """Seconds a step in one repeat."""
        return self._turn(itertools.repeat(self.data[kind]), self.o.bench.bench_steps)[0]

    def with_input(self, trains: bool) -> dict[str, Spread]:
        """Rates of the input, and of the step with it if it trains; the share of time spent waiting for batches."""
        o = self.o.bench
        endless = (batch for epoch in itertools.count() for batch in self.batches.batches(epoch))
        self._turn(endless, o.warmup_steps, trains)
        seconds, waited = zip(*(self._turn(endless, o.bench_steps, trains) for _ in range(o.repeats)))
        endless.close()
        return {**self.rates_of(seconds), "input_wait": spread([w / s for w, s in zip(waited, seconds)])}

    def _turn(self, batches: Iterator[Batch], steps: int, trains: bool = True) -> tuple[float, float]:
        """(seconds a step, seconds of them spent waiting for its batch), until the last step's metrics can be read.

        On a GPU, where a step returns before it is done, the step before may hide some of the wait.
        """
        self.ranks.barrier()
        metrics: dict[str, tf.Tensor] = {}
        waited, start = 0.0, time.perf_counter()
        for done in range(0, steps, self.per_call):
            asked = time.perf_counter()
            group = list(itertools.islice(batches, min(self.per_call, steps - done)))
            waited += time.perf_counter() - asked
            if trains:
                metrics = self.step(group[0]) if self.per_call == 1 else self._several(group, [[0.0]] * len(group))
        for value in metrics.values():
            value.numpy()  # a GPU works in order: what can be read is the end of all before
        return (time.perf_counter() - start) / steps, waited / steps


def spread(values: Sequence[float]) -> Spread:
    """{"median", "min", "max"} of the repeats."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_memory() -> int:
    """Most bytes in use at one time until now: TensorFlow's on the GPU, without one this process' resident set."""
    if device.has_gpu():
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(figures: dict[str, Any]) -> str:
    """What moco_tf.bench prints, from what its JSON file holds."""
    parts = ("recipe", "machine", "versions")
    lines = [", ".join(f"{name} {value}" for name, value in figures[part].items()) for part in parts]
    repeats = "medians of {repeats} repeats of {bench_steps} steps, smallest and largest in brackets"
    lines += [repeats.format(**figures["bench"]), ""]
    lines += ["| | ms a step | images/s |", "|---|---|---|"]
    for name, path in _ROWS.items():
        found = functools.reduce(lambda inner, key: inner and inner[key], path, figures)
        if found:
            lines.append(f"| {name} | {between(found['ms'])} | {between(found['images_per_second'])} |")
    if figures["both"]:
        lines += ["", f"waiting for input: {figures['both']['input_wait']['median']:.1%} of the time of both"]
    where = "on the GPU" if figures["machine"]["gpu"] else "resident"
    lines += ["", f"peak memory: {figures['peak_memory_bytes'] / 1e9:.2f} GB {where}"]
    for name, given in figures["collectives"].items():
        own, sent_mb = (given[key] / 1e6 for key in ("bytes", "sent_bytes"))
        lines.append(f"{name}: {given['calls']} a step with {own:,.3f} MB of a rank, {sent_mb:,.3f} MB sent to others")
    return "\n".join(lines)


def between(values: Spread) -> str:
    """The median, and the smallest and largest in brackets; three digits, and all of those before the point."""
    median, least, most = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in values.values())
    return f"{median} ({least} to {most})"
