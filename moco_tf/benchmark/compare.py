"""The other side of a comparison: an eager PyTorch step in a process of its own, measured in turns with ours."""

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

from moco_tf.benchmark import machine, timing
from moco_tf.benchmark.images import Photos
from moco_tf.data.sources import ArraySource
from moco_tf.data.views.blur import GaussianBlur
from moco_tf.data.views.colour import ColorJitter, RandomGrayscale
from moco_tf.data.views.geometry import RandomHorizontalFlip
from moco_tf.data.views.recipes import View
from moco_tf.errors import UserError
from moco_tf.methods.base import Method
from moco_tf.training import device

_PROGRAM = pathlib.Path(__file__).with_name("torch_moco.py")
_PAUSE = 0.5  # seconds until the threads of the one framework, which spin while they wait for work, have gone to sleep


def check(o: object, ranks: int) -> None:
    """Refuses what the PyTorch step does not do."""
    wanted = {"method": "moco", "symmetric": False, "optimizer": "sgd", "key_update": "before"}
    for name, value in wanted.items():
        if getattr(o, name) != value:
            raise UserError(
                f"--compare=torch came with --{name}={getattr(o, name)}, expected {value}: PyTorch's step is MoCo's; "
                "leave --compare out or change the other"
            )
    if o.precision == "float16":
        raise UserError("--compare=torch came with --precision=float16, expected float32 or bfloat16; give one of them")
    if ranks > 1:
        raise UserError(f"--compare=torch came on {ranks} ranks, expected one process; start it without horovodrun")
    if not shutil.which(python(o)):
        raise UserError(f"--torch_python={python(o)} is no program; expected a Python that has PyTorch")


def python(o: object) -> str:
    """The Python that PyTorch runs on."""
    return o.torch_python or sys.executable


def settings(o: object, method: Method, image_size: int, view: View, source: ArraySource | Photos) -> dict[str, object]:
    """What the PyTorch step is told, see torch_moco.Settings: our own network, batch, queue, threads and views."""
    config = method.query_encoder.config
    flags = ("batch_size", "queue_size", "temperature", "key_momentum", "learning_rate", "momentum")
    return {
        **{name: config[name] for name in ("arch", "stem", "width", "bn_splits", "head", "hidden_dim", "feature_dim")},
        **{name: getattr(o, name) for name in (*flags, "weight_decay", "nesterov")},
        "shuffle_bn": o.bn == "shuffle",
        "image_size": image_size,
        "precision": method.query_encoder.compute_dtype,
        "threads": device.threads(),
        "gpu": machine.gpu() is not None,
        "warmup_steps": max(1, o.warmup_steps),
        "view": pil_view(view, image_size),
        "stored": (1024, *source.image_shape, 3) if source.image_shape else None,
    }


def no_views(view: View, image_size: int, source: ArraySource | Photos, rival: "TorchStep") -> str | None:
    """Why views are not compared; None when they are."""
    if not source.image_shape:
        return "the pipeline crops images of many sizes before the step"
    if not pil_view(view, image_size):
        return "these views' operations come in another order than in PyTorch's step"
    return rival.about["no_views"]


def pil_view(view: View, image_size: int) -> dict[str, object] | None:
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

    def __init__(self, python: str, settings: dict[str, object]) -> None:
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

    def _ask(self, question: dict[str, object]) -> dict:
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


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as fast as PyTorch this step is: of the medians, and the least and most of one turn."""
    turns = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(theirs) / statistics.median(ours), "min": min(turns), "max": max(turns)}


def report(rival: TorchStep, ours: list[float], theirs: list[float], images: int) -> dict[str, object]:
    """The comparison's figures: PyTorch's rates, peak memory of both in bytes, ratios.

    Args:
        rival: PyTorch's step.
        ours, theirs: seconds a step of each turn.
        images: of a step.
    """
    our_memory, their_memory = machine.peak_memory(), rival.peak_memory()
    return {
        **{name: rival.about[name] for name in ("torch", "device", "parameters")},
        **timing.rates(theirs, images),
        "speed_ratio": ratios(ours, theirs),
        "peak_memory_bytes": {"moco_tf": our_memory, "torch": their_memory},
        "memory_ratio": our_memory / their_memory,
    }
