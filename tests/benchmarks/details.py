"""Measures more of a step than moco_tf.bench: start-up, Python around it, operations a second, its exchanges.

    python tests/benchmarks/details.py --flagfile=flags/pretrain/cifar10_moco.cfg --fake
    horovodrun -np 2 python tests/benchmarks/details.py --flagfile=flags/pretrain/cifar10_moco.cfg --fake

Takes every flag of moco_tf.bench. With --json it writes what it prints.
"""

import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import exchanges  # beside this file
import tensorflow as tf

from moco_tf import bench
from moco_tf.config import options
from moco_tf.methods.base import Method, forward_passes
from moco_tf.networks.cost import cost
from moco_tf.run import environment, measure, prepare, program
from moco_tf.training import device

_OVERHEAD_CALLS = 100


def main(o: options.Bench) -> None:
    """Measures with the given options."""
    ranks = prepare.connect(o.device, o.run.seed)
    bench.check(o, ranks.size)
    figures = measured(measure.Bench(o, ranks))
    if ranks.rank == 0:
        print(*lines(figures), sep="\n", flush=True)
        if o.bench.json:
            pathlib.Path(o.bench.json).write_text(json.dumps(figures, indent=1) + "\n")


def measured(bench: measure.Bench) -> dict[str, Any]:
    """All figures; None where one is not known."""
    data, method = bench.data["views"], bench.method
    bench.start("views", steps=1)
    start_up = process_seconds()
    bench.measure("views")
    bench.measure("prepared")
    graph = bench.step.get_concrete_function(data)
    overhead = python_overhead(graph, data, lambda: method.optimizer.learning_rate.assign(0.0))
    operations = multiply_adds(method, bench.run.size, len(data[1]))
    of_kinds = {kind: achieved(operations, rates, method) for kind, rates in bench.rates.items()}
    return {
        "start_up_seconds": start_up,
        "python_overhead_ms": 1000 * overhead,
        "multiply_adds": operations,
        "step": {kind: rates | of_kinds[kind] for kind, rates in bench.rates.items()},
        "exchanges": exchanges.measure(bench),
    }


def lines(figures: dict[str, Any]) -> Iterator[str]:
    """What is printed."""
    if figures["start_up_seconds"]:
        yield f"from the start of the process to the end of its first step: {figures['start_up_seconds']:.1f} s"
    yield f"Python around the step: {figures['python_overhead_ms']:.2f} ms"
    if figures["multiply_adds"]:
        yield f"multiply-adds a step and rank: {figures['multiply_adds'] / 1e9:,.2f} G (of the encoders)"
    for kind, found in figures["step"].items():
        if found["flops_per_second"]:
            share = f", {found['share_of_peak']:.1%} of the GPU's peak" if found["share_of_peak"] else ""
            yield f"step, {kind}: {found['flops_per_second'] / 1e12:,.3f} TFLOP/s a rank{share}"
    for name, found in figures["exchanges"].items():
        took = f" in {measure.between(found['ms'])} ms" if found["ms"] else ""
        what = {"alltoall": "shuffle", "allgather": "shuffle in its original form, by allgather"}.get(name, name)
        yield f"{what}, by itself: {found['sent_bytes'] / 1e6:,.3f} MB sent to others{took}"


def multiply_adds(method: Method, image_size: int, batch: int) -> int | None:
    """Of a step on a rank's images: the encoders' passes alone, without views, logits and optimizer.

    None where the encoder holds operations that cannot be counted.
    """
    counted = cost(method.query_encoder, image_size).multiply_adds
    return None if counted is None else forward_passes(method) * batch * counted


def achieved(operations: int | None, rates: dict[str, measure.Spread], method: Method) -> dict[str, float | None]:
    """{"flops_per_second": two for each multiply-add, "share_of_peak"} of a rank; None where not known."""
    if operations is None:
        return {"flops_per_second": None, "share_of_peak": None}
    flops = 2 * operations / (rates["ms"]["median"] / 1000)
    peak = device.peak_flops(str(environment.machine()["gpu"]), method.query_encoder.compute_dtype)
    return {"flops_per_second": flops, "share_of_peak": flops / peak if peak else None}


def python_overhead(step: tf.types.experimental.ConcreteFunction, data: tuple, before: Callable[[], None]) -> float:
    """Seconds that Python and the dispatch take around a step's own work: median over 100 calls.

    Measured is a graph that takes the step's arguments, holds its variables and returns as many scalars, but computes
    nothing; and `before`, what the training loop does before every step. So it is the same on a CPU, where a step
    returns when it is done, and on a GPU.
    """
    captured, names = step.captured_inputs, sorted(step.structured_outputs)

    @tf.function
    def nothing(data: tuple) -> dict[str, tf.Tensor]:
        for variable in captured:
            tf.raw_ops.Identity(input=variable)  # makes it an argument, and is pruned before the graph runs
        return {name: tf.constant(0.0) for name in names}

    times = []
    for call in range(-_OVERHEAD_CALLS // 10, _OVERHEAD_CALLS):
        start = time.perf_counter()
        before()
        nothing(data)
        if call >= 0:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def process_seconds() -> float | None:
    """Seconds since this process started, by the kernel's clock; None where there is no /proc."""
    stat = pathlib.Path("/proc/self/stat")
    if not stat.exists():
        return None
    # proc(5): field 22 is the start in clock ticks since boot; the name, field 2, may hold blanks, so count behind it.
    ticks = int(stat.read_text().rsplit(")", 1)[1].split()[22 - 3])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    program.run(main, options.Bench)
