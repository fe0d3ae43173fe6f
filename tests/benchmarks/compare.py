"""The other side of `moco_tf.bench --compare=torch`: an eager PyTorch step in a process of its own, in turns with ours.

python -m moco_tf.bench --flagfile=flags/pretrain/cifar10_moco.cfg --fake --compare=torch --torch_python=PYTHON
"""

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from moco_tf.config import define, options
from moco_tf.data.views.blur import GaussianBlur
from moco_tf.data.views.colour import ColorJitter, RandomGrayscale
from moco_tf.data.views.geometry import RandomHorizontalFlip
from moco_tf.data.views.recipes import View
from moco_tf.errors import UserError
from moco_tf.networks.encoder import Encoder
from moco_tf.run import measure as measuring
from moco_tf.run.prepare import Pretraining
from moco_tf.training import device

_PROGRAM = pathlib.Path(__file__).with_name("torch_moco.py")
_PAUSE = 0.5  # seconds until the threads of the one framework, which spin while they wait for work, have gone to sleep


def check(o: options.Bench, ranks: int) -> None:
    """Refuses what the PyTorch step does not do."""
    values = define.values_of(o)
    wanted = {"method": "moco", "symmetric": False, "optimizer": "sgd", "key_update": "before"}
    for name, value in wanted.items():
        if values.get(name) != value:
            raise UserError(
                f"--compare=torch came with --{name}={values.get(name)}, expected {value}: PyTorch's step is MoCo's; "
                "leave --compare out or change the other"
            )
    if o.device.precision == "float16":
        raise UserError("--compare=torch came with --precision=float16, expected float32 or bfloat16; give one of them")
    if ranks > 1:
        raise UserError(f"--compare=torch came on {ranks} ranks, expected one process; start it without horovodrun")
    if not shutil.which(python(o)):
        raise UserError(f"--torch_python={python(o)} is no program; expected a Python that has PyTorch")


def python(o: options.Bench) -> str:
    """The Python that PyTorch runs on."""
    return o.bench.torch_python or sys.executable


def measure(bench: measuring.Bench) -> dict[str, Any] | None:
    """A repeat of each in turn: PyTorch's figures, or None where it is not there; bench keeps our rates.

    "with_views" is None where PyTorch's step cannot make the views; "no_views" says why.
    """
    bench.start("prepared")
    rival = TorchStep(python(bench.o), settings(bench.o, bench.run))
    try:
        if "missing" in rival.about:
            print(
                f"no comparison: {python(bench.o)} has no PyTorch ({rival.about['missing']}); "
                "install torch there, or name another with --torch_python"
            )
            return None
        found = in_turns(bench, rival, "prepared")
        memory = {"moco_tf": measuring.peak_memory(), "torch": rival.peak_memory()}
        found |= {"peak_memory_bytes": memory, "memory_ratio": memory["moco_tf"] / memory["torch"]}
        found |= {name: rival.about[name] for name in ("torch", "device", "parameters")}
        found |= {"no_views": no_views(bench.run, rival), "with_views": None}
        if not found["no_views"]:
            bench.start("views")
            rival.seconds(1, views=True)  # its workers start
            found["with_views"] = in_turns(bench, rival, "views")
        return found
    finally:
        rival.close()


def in_turns(bench: measuring.Bench, rival: "TorchStep", kind: str) -> dict[str, Any]:
    """PyTorch's rates and how many times as fast ours are, a repeat of each in turn; bench keeps our rates."""
    o = bench.o.bench
    pairs = [(bench.turn(kind), rival.seconds(o.bench_steps, kind == "views")) for _ in range(o.repeats)]
    ours, theirs = zip(*pairs)
    bench.rates[kind] = bench.rates_of(ours)
    ratios = [their / our for our, their in pairs]
    ratio = {"median": statistics.median(theirs) / statistics.median(ours), "min": min(ratios), "max": max(ratios)}
    return {**bench.rates_of(theirs), "speed_ratio": ratio}


def summary(torch: dict[str, Any]) -> Iterator[str]:
    """What is printed of the comparison."""
    memory, views = torch["peak_memory_bytes"], torch["with_views"]
    yield (
        f"{times(torch)} as fast as PyTorch {torch['torch']}, with {torch['memory_ratio']:.2f} times its peak memory "
        f"({memory['moco_tf'] / 1e9:.2f} against {memory['torch'] / 1e9:.2f} GB)"
    )
    yield f"with views: {times(views)} as fast" if views else f"views not compared: {torch['no_views']}"


def times(rates: dict[str, Any]) -> str:
    """The ratio of the medians, and the smallest and largest of a turn."""
    ratio = rates["speed_ratio"]
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f} in single turns) times"


def settings(o: options.Bench, run: Pretraining) -> dict[str, Any]:
    """What the PyTorch step is told, see torch_moco.Settings: our own network, batch, queue, threads and views."""
    values, config, shape = define.values_of(o), run.method.query_encoder.config, run.train.image_shape
    flags = ("batch_size", "queue_size", "temperature", "key_momentum", "learning_rate", "momentum")
    return {
        **{name: config[name] for name in ("arch", "stem", "width", "bn_splits", "head", "hidden_dim", "feature_dim")},
        **{name: values[name] for name in (*flags, "weight_decay", "nesterov", "warmup_steps")},
        "shuffle_bn": o.method.bn == "shuffle",
        "image_size": run.size,
        "precision": run.method.query_encoder.compute_dtype,
        "threads": device.threads(),
        "gpu": device.has_gpu(),
        "view": pil_view_of(run),
        "vit": vit_of(run.method.query_encoder),
        "stored": (1024, *shape, 3) if shape else None,
    }


def vit_of(encoder: Encoder) -> dict[str, int] | None:
    """The arguments of torch_vit.ViT, but for the side of images; None for a ResNet."""
    if not hasattr(encoder.backbone, "blocks"):
        return None
    if encoder.config["stem"] != "patch":
        raise UserError(
            "--compare=torch came with --stem=conv, expected patch: PyTorch's ViT has no other; leave it out"
        )
    known = {name: encoder.config[name] for name in ("heads", "patch", "mlp_ratio")}
    return {"dim": encoder.backbone.features, "depth": len(encoder.backbone.blocks), **known}


def no_views(run: Pretraining, rival: "TorchStep") -> str | None:
    """Why views are not compared; None when they are."""
    if not run.train.image_shape:
        return "the pipeline crops images of many sizes before the step"
    if not pil_view_of(run):
        return "these views' operations come in another order than in PyTorch's step"
    return rival.about["no_views"]


def pil_view_of(run: Pretraining) -> dict[str, Any] | None:
    """`pil_view` of a recipe's two views; None when they differ."""
    first, second = run.views
    return pil_view(first, run.size) if first is second else None


def pil_view(view: View, image_size: int) -> dict[str, Any] | None:
    """The arguments of pil_views.View for our view; None where its operations or their order are others."""
    ops = {type(op): op for op in view.ops}
    order = [kind for kind in (ColorJitter, RandomGrayscale, GaussianBlur) if kind in ops]
    if not view.crop or list(ops) != [RandomHorizontalFlip, *order]:  # a mirror commutes with the rest
        return None
    given = {"size": image_size, "scale": view.crop.scale, "mean": view.normalize.mean, "std": view.normalize.std}
    if jitter := ops.get(ColorJitter):
        given["jitter"] = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        given["jitter_p"] = jitter.p
    if gray := ops.get(RandomGrayscale):
        given["gray_p"] = gray.p
    if blur := ops.get(GaussianBlur):
        given |= {"blur_sigma": blur.sigma, "blur_p": blur.p}
    return given


class TorchStep:
    """An eager PyTorch step that waits for orders. `about` is what it says of itself, see torch_moco.

    Raises UserError when the process breaks off.
    """

    def __init__(self, python: str, settings: dict[str, Any]) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": str(settings["threads"])}
        command = [python, str(_PROGRAM)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.about = self._ask(settings)

    def seconds(self, steps: int, views: bool = False) -> float:
        """Seconds a step, over so many in a row, on prepared images or with views."""
        time.sleep(_PAUSE)
        taken = self._ask({"steps": steps, "views": views})["seconds"]
        time.sleep(_PAUSE)
        return taken

    def peak_memory(self) -> int:
        """Bytes."""
        return self._ask({"memory": True})["bytes"]

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):  # it may be gone already
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, question: dict[str, Any]) -> dict:
        with contextlib.suppress(BrokenPipeError):  # without PyTorch it has said so and is gone
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise UserError(
                f"--compare=torch: PyTorch's process ended with status {self._process.wait()}, expected figures; see "
                "what it printed, and lower --batch_size if memory ran out"
            )
        return json.loads(answer)
