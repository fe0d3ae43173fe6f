"""One step of launch/gpu.sh. usage: gpu_steps.py ANSWER.json [--torch=PYTHON] [--small] WORK WORD ...

Each function of WORKS measures or checks one thing and returns what ANSWER.json is to hold: figures, and "summary", a
line for the table. What is wrong is an error: the process ends with another status than 0.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import compare
import details
import numpy as np
import tensorflow as tf
import views
from PIL import Image
from support import checkpoints, parity_cases

from moco_tf.config import define, options
from moco_tf.contrast.self_test import self_test
from moco_tf.errors import UserError
from moco_tf.run import environment, measure, prepare
from moco_tf.training import device, gpu, launcher
from moco_tf.training.collectives import Horovod, horovod

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = {
    "r18": ["--flagfile=flags/pretrain/cifar10_moco.cfg", "--knn_every=0"],
    "r50": ["--flagfile=flags/pretrain/imagenet_moco_v2.cfg"],
    "r50-b32": ["--flagfile=flags/pretrain/imagenet_moco_v2.cfg", "--batch_size=32"],
}
SMALL = ["--arch=resnet10", "--width=16", "--batch_size=16", "--image_size=32", "--queue_size=256", "--bn_splits=2"]
# Of a training that is watched: (first start, second start), in steps.
LENGTH = {"r18": (1500, 1600), "r50": (250, 270)}
SMALL_LENGTH = (20, 40)
PHOTOS, LINKS = 128, 320  # different photographs, and names of each: an epoch's end is rare
KINDS = {  # of kernels, by names that cuDNN, cuBLAS, XLA and TensorFlow give them; the first that matches counts
    "copies": r"memcpy|memset|transpose|copy|nchwto|nhwcto",
    "batch norm of cuDNN": r"batch_?norm|\bbn_|bnorm",
    "convolutions": r"conv|cudnn|xmma|implicit|wgrad|dgrad|fprop",
    "products": r"gemm|cutlass|nvjet|matmul|splitk",
    "reductions, batch norm's in XLA": r"reduc",
    "element-wise and other fusions": r"fusion|loop|elementwise|wrapped",
    "sort, gather, scatter": r"sort|gather|scatter|topk",
}


def main() -> None:
    """Does a step's work and writes what it found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("answer", type=pathlib.Path)
    parser.add_argument("--torch", default="")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("work", choices=sorted(WORKS))
    o, words = parser.parse_known_args()
    found = WORKS[o.work](o, *words)
    if launcher.is_first_rank():
        o.answer.write_text(json.dumps(found))


def flags_of(recipe: str, o: argparse.Namespace, *more: str) -> list[str]:
    """The flags of a recipe, in its small form if that is wanted, and more."""
    return [*RECIPES[recipe], *(SMALL if o.small else []), *more]


def data_of(recipe: str, o: argparse.Namespace) -> list[str]:
    """Flags of images that are made here: small ones in memory, or photographs in files."""
    if recipe == "r18":
        return ["--dataset=benchmarks.random_images"]
    return ["--dataset=folder", "--normalise=imagenet", f"--data_dir={photos(o)}"]


def photos(o: argparse.Namespace) -> pathlib.Path:
    """A folder of JPEGs of 500x375, made at its first use beside the results."""
    folder = o.answer.parent / "photos" / "train" / "photos"
    number, links = (8, 20) if o.small else (PHOTOS, LINKS)
    if not folder.exists():
        draft = folder.with_name("draft")
        draft.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(views.photos(number, 375, 500)):
            Image.fromarray(image).save(draft / f"{i}-0.jpg", quality=90)
            for j in range(1, links):
                (draft / f"{i}-{j}.jpg").hardlink_to(draft / f"{i}-0.jpg")
        draft.rename(folder)
    return folder.parents[1]


def bench_of(recipe: str, o: argparse.Namespace, *more: str) -> measure.Bench:
    """A Bench on random images of the recipe's sizes, which lie on the device."""
    repeats = ["--bench_steps=2", "--repeats=2"] if o.small else ["--bench_steps=20", "--repeats=5"]
    parsed = define.parse(options.Bench, ["bench", "--fake", *repeats, *flags_of(recipe, o, *more)])
    return measure.Bench(parsed, prepare.connect(parsed.device, parsed.run.seed))


def checks(o: argparse.Namespace) -> dict[str, Any]:
    """What this machine is, and what docs/gpu.md's checks and the self-test find wrong with it."""
    prepare.connect(options.DeviceOptions(), 0, compiles=False)
    found = {
        **gpu.report(),
        "self_test": self_test(),
        "machine": environment.machine(),
        "versions": environment.versions(),
    }
    wrong = [finding["text"] for finding in found["findings"]] + [found["self_test"]] * bool(found["self_test"])
    return {**found, "summary": f"{device.description()}; " + ("; ".join(wrong) or "nothing is wrong")}


def train(o: argparse.Namespace, recipe: str, xla: str = "--jit_compile=true") -> dict[str, Any]:
    """A real training, started twice: images a second, the GPU's busy share and memory, seconds to the first steps.

    XLA compiles everything, unless it is to be chosen: that takes several compilations. It finds no code of others.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        log = pathlib.Path(folder, "metrics.jsonl")
        flags = flags_of(
            recipe, o, *data_of(recipe, o), f"--workdir={folder}", "--checkpoint_every=0", "--epochs=1000", xla
        )
        flags += ["--jit_compile=auto"] if o.small else []  # a network compiled for a CPU takes long to compile
        first, second = SMALL_LENGTH if o.small else LENGTH[recipe]
        cold, warm = (watched(log, [*flags, f"--steps={steps}"]) for steps in (first, second))
    busy = "not known" if cold["busy"] is None else f"{cold['busy']:.0%} busy"
    return {
        **{name: cold[name] for name in ("images_per_second", "busy", "memory_mib")},
        "first_steps_cold_seconds": cold["first_steps"],
        "first_steps_warm_seconds": warm["first_steps"],
        "summary": f"{cold['images_per_second']:,.0f} images/s in training, GPU {busy}; first steps after "
        f"{cold['first_steps']:.0f} s, at a second start after {warm['first_steps']:.0f} s",
    }


def watched(log: pathlib.Path, flags: list[str]) -> dict[str, Any]:
    """Runs moco_tf.pretrain; looks at its metrics and at the GPU meanwhile.

    Returns:
        {"first_steps": seconds until the first metrics of this start, "images_per_second": median of the later lines,
        "busy": mean share of the time between these lines, "memory_mib": most of the whole GPU}; None without a GPU.
    """
    before = len(lines_of(log))
    began = time.monotonic()
    with GpuSamples() as samples:
        process = subprocess.Popen([sys.executable, "-m", "moco_tf.pretrain", *flags], cwd=ROOT)
        seen = []
        while process.poll() is None:
            seen += [time.monotonic()] * (len(lines_of(log)) - before - len(seen))
            time.sleep(0.05)
    if process.returncode or not seen:
        raise UserError(f"the training ended with status {process.returncode} and {len(seen)} lines of metrics")
    rates = [line["images_per_second"] for line in lines_of(log)[before:] if "images_per_second" in line]
    inside = [use for moment, use, _ in samples.found if len(seen) > 1 and seen[1] < moment < seen[-1]]
    return {
        "first_steps": seen[0] - began,
        "images_per_second": statistics.median(rates[1:] or rates),
        "busy": statistics.mean(inside) / 100 if inside else None,
        "memory_mib": max((memory for _, _, memory in samples.found), default=None),
    }


def lines_of(log: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


class GpuSamples:
    """A context in which nvidia-smi looks at the first GPU five times a second; nothing is found without one.

    found: (time.monotonic(), per cent of the time in which a kernel ran, MiB in use) of each look.
    """

    def __enter__(self) -> "GpuSamples":
        self.found: list[tuple[float, float, float]] = []
        query = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        try:
            self._process = subprocess.Popen([*query, "--loop-ms=200"], stdout=subprocess.PIPE, text=True)
        except OSError:
            self._process = None
            return self
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
            self._thread.join()

    def _read(self) -> None:
        for line in self._process.stdout:
            numbers = re.fullmatch(r"(\d+), (\d+)\n", line)
            if numbers:
                self.found.append((time.monotonic(), float(numbers[1]), float(numbers[2])))


def bench(o: argparse.Namespace, recipe: str, kind: str, *flags: str) -> dict[str, Any]:
    """The step on one kind of images; `kind` is "views" or "prepared"."""
    began = time.monotonic()
    found = bench_of(recipe, o, *flags)
    found.start(kind, steps=1)
    first = time.monotonic() - began
    found.measure(kind)
    operations = details.multiply_adds(found.method, found.run.size, len(found.data[kind][1]))
    reached = details.achieved(operations, found.rates[kind], found.method)
    rate, memory = found.rates[kind]["images_per_second"], measure.peak_memory()
    share = f", {reached['share_of_peak']:.0%} of the peak" if reached["share_of_peak"] else ""
    return {
        **found.rates[kind],
        **reached,
        "peak_memory_bytes": memory,
        "first_step_seconds": first,
        "recipe": found.recipe(),
        "summary": f"{measure.between(rate)} images/s{share}, {memory / 1e9:.2f} GB, first step after {first:.0f} s",
    }


def torch(o: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """PyTorch's step on prepared images, bfloat16, channels_last: eager, and with torch.compile."""
    run = bench_of(recipe, o, "--precision=bfloat16")
    settings = compare.settings(run.o, run.run)
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "XLA_FLAGS"):  # TensorFlow's, which may hold libraries for it alone
        os.environ.pop(name, None)
    rates = {}
    for name in ("eager", "compile"):
        rival = compare.TorchStep(o.torch, settings | {"compile": name == "compile"})
        if "missing" in rival.about:
            raise UserError(f"--torch={o.torch} has no PyTorch: {rival.about['missing']}")
        seconds = [rival.seconds(run.o.bench.bench_steps) for _ in range(run.o.bench.repeats)]
        rates[name] = {**run.rates_of(seconds), "peak_memory_bytes": rival.peak_memory()}
        rival.close()
    texts = [f"{name} {measure.between(rates[name]['images_per_second'])} images/s" for name in rates]
    return {**rates, "torch": rival.about["torch"], "summary": f"PyTorch {rival.about['torch']}: {', '.join(texts)}"}


def parity(o: argparse.Namespace, *modes: str) -> dict[str, Any]:
    """The CIFAR demo's cases: losses and final state within the cases' tolerances, in float32 with TF32 off.

    In float32 the asymmetric case's loss with TF32 on is stated beside; it has no tolerance.
    """
    found = {}
    for name in ("moco_cifar_asymmetric", "moco_cifar_symmetric")[: 1 if o.small else 2]:
        case = parity_cases.load(f"float64/{name}.npz")
        for mode in modes:
            tf.config.experimental.enable_tensor_float_32_execution(False)
            method = parity_cases.method(case, mode=mode)
            records = parity_cases.run(method, case, mode, case["losses"])
            parity_cases.check_state(method, case, mode)
            found[f"{name} {mode}"] = errors(records, case)
            print(name, mode, found[f"{name} {mode}"], flush=True)
    if "graph" in modes and device.has_gpu():
        tf.config.experimental.enable_tensor_float_32_execution(True)
        method = parity_cases.method(case, mode="graph")
        found[f"{name} graph with TF32"] = errors(next(parity_cases.records(method, case, "graph")), case)
    worst = {name: max(values) for name, values in found.items()}
    texts = [f"{name.removeprefix('moco_cifar_')} {error:.1e}" for name, error in worst.items()]
    return {"loss_errors": found, "summary": f"losses' greatest relative errors: {', '.join(texts)}"}


def errors(records: list[dict[str, Any]], case: dict[str, np.ndarray]) -> list[float]:
    """Relative error of each step's loss."""
    return [abs(record["loss"] / float(value) - 1) for record, value in zip(records, case["losses"])]


def resume(o: argparse.Namespace) -> dict[str, Any]:
    """A run that is killed and goes on ends as one that was left alone, bit for bit, with deterministic operations."""
    small = ["--arch=resnet10", "--width=16", "--batch_size=64", "--bn_splits=1", "--precision=float32"]
    flags = [
        *RECIPES["r18"],
        *data_of("r18", o),
        *small,
        "--checkpoint_every=0",
        "--checkpoint_steps=10",
        "--deterministic",
        "--log_every=1",
        "--steps=40",
    ]
    flags += ["--jit_compile=false", "--threads=1"] if o.small else []
    with tempfile.TemporaryDirectory() as folder:
        killed, straight = pathlib.Path(folder, "killed"), pathlib.Path(folder, "straight")
        command = [sys.executable, "-m", "moco_tf.pretrain", *flags]
        process = subprocess.Popen([*command, f"--workdir={killed}"], cwd=ROOT)
        while len(lines_of(killed / "metrics.jsonl")) < 15 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        if process.wait() == 0:
            raise UserError("the run was over before it could be killed")
        at = len(lines_of(killed / "metrics.jsonl"))
        for run in (killed, straight):
            subprocess.run([*command, f"--workdir={run}"], cwd=ROOT, check=True)
        ours, theirs = (checkpoints.state_at(run, 40) for run in (killed, straight))
    different = [name for name in theirs if not np.array_equal(ours[name], theirs[name])]
    if different or ours.keys() != theirs.keys():
        raise UserError(f"{len(different)} of {len(theirs)} arrays differ after a kill at step {at}: {different[:3]}")
    return {"killed_at": at, "summary": f"killed after step {at} of 40: all {len(theirs)} arrays are equal bit for bit"}


def profile(o: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """Where the time of a step with views goes, by kind of kernel."""
    found = bench_of(recipe, o)
    steps = found.o.bench.bench_steps
    found.start("views")
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        found.turn("views")
        tf.profiler.experimental.stop()
        trace = next(pathlib.Path(folder).rglob("*.xplane.pb")).read_bytes()
    kernels = Counter(dict(kernel_ms(trace)))
    if not kernels:
        raise UserError("the profiler saw no kernel; on a GPU it needs CUPTI's library (libcupti)")
    kinds: Counter[str] = Counter()
    for name, ms in kernels.items():
        kinds[kind_of(name)] += ms / steps
    whole = sum(kinds.values())
    return {
        "ms_by_kind": dict(kinds.most_common()),
        "longest_kernels_ms": {name: ms / steps for name, ms in kernels.most_common(40)},
        "summary": f"{whole:.1f} ms a step: " + ", ".join(f"{name} {ms:.1f}" for name, ms in kinds.most_common()),
    }


def kernel_ms(trace: bytes) -> Iterator[tuple[str, float]]:
    """(name, milliseconds in all) of every kernel of a profile; of TensorFlow's operations where there is no GPU."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    planes = xplane_pb2.XSpace.FromString(trace).planes
    on_gpu = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    taken: Counter[str] = Counter()
    for plane in on_gpu or [plane for plane in planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            # A GPU's plane has lines of its streams' kernels, and lines derived from these: whole steps, XLA's modules.
            if line.name.startswith("Stream") if on_gpu else "tf_" in line.name:
                for event in line.events:
                    taken[plane.event_metadata[event.metadata_id].name] += event.duration_ps
    return ((name, ps / 1e9) for name, ps in taken.items())


def kind_of(kernel: str) -> str:
    """The kind of a kernel of this name, see KINDS; "other" if none fits."""
    return next((kind for kind, words in KINDS.items() if re.search(words, kernel, re.IGNORECASE)), "other")


def images(o: argparse.Namespace, recipe: str) -> dict[str, Any]:
    """Images a second that are read, decoded and cropped over all cores, without a training beside."""
    parsed = define.parse(options.Bench, ["bench", "--repeats=3", *flags_of(recipe, o, *data_of(recipe, o))])
    found = measure.Bench(parsed, prepare.connect(parsed.device, parsed.run.seed))
    rates = found.with_input(trains=False)
    text = measure.between(rates["images_per_second"])
    return {
        **rates,
        "cores": device.cores(),
        "summary": f"{text} images/s on {device.cores()} cores, two crops of each",
    }


def ranks(o: argparse.Namespace, number: str) -> dict[str, Any]:
    """The step with views on so many ranks of this GPU: one over NCCL if it is there, two over Gloo."""
    answer, nccl = o.answer.with_suffix(".ranks.json"), number == "1" and bool(horovod().nccl_built())
    own = [str(pathlib.Path(__file__)), str(answer), *["--small"] * o.small, "bench" if nccl else "bench_over_gloo"]
    launched = [sys.executable, "-m", "horovod.runner.launch", "-np", number, sys.executable, *own, "r18", "views"]
    subprocess.run(launched, cwd=ROOT, check=True)
    found = json.loads(answer.read_text())
    return {**found, "nccl": nccl, "summary": f"{'NCCL' if nccl else 'Gloo'}: {found['summary']}"}


def bench_over_gloo(o: argparse.Namespace, *words: str) -> dict[str, Any]:
    """`bench` with exchanges from the host's memory, which no NCCL takes part in: it has one rank a GPU."""

    def on_cpu(exchange: Callable[..., Any]) -> Callable[..., Any]:
        def placed(*given: Any) -> Any:
            with tf.device("/CPU:0"):
                return exchange(*given)

        return placed

    def broadcast(ranks: Horovod, variables: list[tf.Variable]) -> None:
        for variable in variables:
            variable.assign(horovod().broadcast(variable.value(), root_rank=0))

    Horovod.broadcast = broadcast
    for name in ("alltoall", "allgather", "mean", "broadcast", "barrier"):
        setattr(Horovod, name, on_cpu(getattr(Horovod, name)))
    return bench(o, *words)


WORKS: dict[str, Callable[..., dict[str, Any]]] = {
    "checks": checks,
    "train": train,
    "torch": torch,
    "parity": parity,
    "resume": resume,
    "profile": profile,
    "images": images,
    "ranks": ranks,
    "bench": bench,
    "bench_over_gloo": bench_over_gloo,
}

if __name__ == "__main__":
    main()
