"""What --jit_compile=auto lets XLA compile on a GPU: measured before the first run of a kind, and kept.

Which is fastest depends on card, network and versions: XLA fuses views, losses and updates into few kernels,
but TensorFlow's own kernels are faster in some networks. A kept choice is found by everything that a step's time
depends on: in the run folder, so that a run that goes on computes as before, else in the user's cache.
"""

import contextlib
import gc
import json
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

import moco_tf
from moco_tf.config import define
from moco_tf.config.options import Pretrain
from moco_tf.config.types import cache_folder
from moco_tf.errors import UserError
from moco_tf.run.folder import RunFolder
from moco_tf.training import compiled, device, gpu
from moco_tf.training.collectives import Collectives
from moco_tf.training.files import make_folder, one_line, write_whole

# --jit_compile's values, in words.
CANDIDATES = {"true": "the whole step", "views": "all but the network", "false": "nothing"}
_ENOUGH = 2.0  # seconds that are measured

Kept = dict[str, Any]  # {"jit_compile", "milliseconds": {candidate: of a step}}


def chosen(o: Pretrain, collectives: Collectives, measure: Callable[[Pretrain], float]) -> Pretrain:
    """The options with what is fastest in place of --jit_compile=auto, for one rank on a GPU; else as they are.

    Args:
        o: the options.
        collectives: what crosses ranks.
        measure: takes a few steps of a run of its own with such options; returns the seconds of one.

    Raises:
        tf.errors.OpError: no candidate works.
    """
    if o.device.jit_compile != "auto" or collectives.size > 1 or not device.has_gpu() or gpu.why_not_compile():
        return o
    places = [cache(), *([RunFolder.of(o.run.workdir).compiled] if o.run.workdir else [])]
    key = key_of(o)
    found = next((kept[key] for place in reversed(places) if key in (kept := _read(place))), None)
    if found is None:
        print("measuring what XLA is to compile; this takes minutes, once", flush=True)
        found = choose(CANDIDATES, lambda name: measure(define.replaced(o, jit_compile=name)))
        keras.utils.set_random_seed(o.run.seed)  # as if nothing had been measured
    for place in places:
        if key not in (kept := _read(place)):
            with contextlib.suppress(UserError):  # a home that cannot be written to
                make_folder(place.parent)
                write_whole(place, json.dumps({**kept, key: found}, indent=1))
    times = ", ".join(f"{CANDIDATES[name]} {ms:.3g} ms" for name, ms in found["milliseconds"].items())
    print(f"XLA compiles {CANDIDATES[found['jit_compile']]}, the fastest of: {times} a step", flush=True)
    return define.replaced(o, jit_compile=found["jit_compile"])


def choose(candidates: Iterable[str], measure: Callable[[str], float]) -> Kept:
    """The fastest candidate. One that TensorFlow or XLA refuses is said and left out.

    Raises:
        tf.errors.OpError: all are refused.
    """
    seconds: dict[str, float] = {}
    refused: tf.errors.OpError | None = None
    for name in candidates:
        try:
            seconds[name] = measure(name)
        except tf.errors.OpError as error:
            refused = error
            print(f"--jit_compile={name} does not work here: {one_line(error)}", flush=True)
        gc.collect()  # its network, whose parts refer to each other, would take the next one's memory
    if not seconds and refused:
        raise refused
    milliseconds = {name: round(1000 * s, 3) for name, s in seconds.items()}
    return {"jit_compile": min(seconds, key=lambda name: seconds[name]), "milliseconds": milliseconds}


def seconds_of(call: Callable[[], tf.Tensor]) -> float:
    """Seconds of a call, without the two that trace, compile and warm up; what it returns is read after every fifth."""
    with compiled.first_use():
        for _ in range(2):
            call().numpy()
    rounds, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < _ENOUGH:
        rounds += 1
        [call() for _ in range(5)][-1].numpy()
    return spent / rounds / 5


def key_of(o: Pretrain) -> str:
    """Everything that the time of a step depends on, as text."""
    versions = {"moco_tf": moco_tf.__version__, "tensorflow": tf.__version__, "keras": keras.__version__}
    parts: dict[str, Any] = {}
    for group in (o.encoder, o.method, o.views, o.optimizer, o.device):
        parts |= {**vars(group), **getattr(group, "own", {})}
    parts = {name: value for name, value in parts.items() if name not in ("own", "init", "read_order", "threads")}
    kept = compiled.state.folder.name if compiled.state.folder else ""  # names driver, cuDNN and ptxas
    about = {"device": device.description(), "kept": kept, "image_size": o.data.image_size, "dataset": o.data.dataset}
    return json.dumps({**versions, **about, "batch_size": o.run.batch_size, **parts}, sort_keys=True, default=dict)


def cache() -> pathlib.Path:
    """Where choices are kept for all runs."""
    return cache_folder() / "compiled.json"


def _read(place: pathlib.Path) -> dict[str, Kept]:
    try:
        found = json.loads(place.read_text())
        return {key: kept for key, kept in found.items() if kept["jit_compile"] in CANDIDATES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
