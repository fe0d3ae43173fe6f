"""What is checked before a GPU computes: driver, libraries, and the versions that are known to give wrong results.

Each check is a function of `Found`, what this machine has; docs/gpu.md has them as a table, with sources. To see all of
it, and why TensorFlow sees no GPU: `python -m moco_tf.training.gpu`.
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.errors import UserError
from moco_tf.training import cuda, launcher
from moco_tf.training.collectives import Collectives
from moco_tf.training.cuda import Tool, Version, shown

# The oldest driver of each major version of CUDA (its minor versions are compatible), by NVIDIA's table.
_DRIVERS: dict[int, Version] = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580, 65, 6)}
_WRONG_PTXAS = (12, 0), (12, 6, 85)  # from, to below: NVIDIA's bug 4826023
_LEAST_CUDNN = (9, 24)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a machine has, as far as it can be told.

    Args:
        cards: (name, compute capability) of the GPUs that TensorFlow sees.
        driver_cards: names of those that nvidia-smi shows.
        driver: its version.
        cuda: the version that TensorFlow was built for; none in a build for CPUs.
        cudnn: the library that TensorFlow loads.
        ptxas: the assembler that XLA takes.
        passed_over: assemblers that it finds and does not take.
        missing: libraries that TensorFlow needs and cannot load.
        folders: those of pip's packages that hold all of them.
    """

    cards: tuple[tuple[str, Version], ...] = ()
    driver_cards: tuple[str, ...] = ()
    driver: Version = ()
    cuda: Version = ()
    cudnn: Version = ()
    ptxas: Tool | None = None
    passed_over: tuple[Tool, ...] = ()
    missing: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    def capability(self) -> Version:
        """The highest compute capability."""
        return max((capability for _, capability in self.cards), default=())


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is wrong, in one line with the remedy, and whether XLA must not compile."""

    text: str
    refuses_xla: bool = False


def no_gpu(f: Found) -> Finding | None:
    """TensorFlow sees no GPU although there is one: says which library is missing."""
    if f.cards or not f.driver_cards:
        return None
    install = "pip install 'tensorflow[and-cuda]==2.21.*'"
    if not f.cuda:
        why = f"this TensorFlow was built for CPUs; {install}"
    elif f.missing:
        why = f"it cannot load {', '.join(f.missing)}; "
        why += (
            f"put {':'.join(f.folders)} on LD_LIBRARY_PATH, which it does not search itself" if f.folders else install
        )
    else:
        why = "all libraries load; start it with TF_CPP_MIN_LOG_LEVEL=0 to see what it says"
    return Finding(f"computing on the CPU: TensorFlow sees no GPU, and nvidia-smi shows {f.driver_cards[0]}: {why}")


def driver(f: Found) -> Finding | None:
    """The driver is older than TensorFlow's CUDA needs."""
    least = _DRIVERS.get(f.cuda[0]) if f.cuda else None
    if not (least and f.driver and f.driver < least):
        return None
    return Finding(
        f"NVIDIA's driver {shown(f.driver)} came, expected {shown(least)} or newer for CUDA {shown(f.cuda)}, which "
        "this TensorFlow was built for; install a newer driver"
    )


def capability(f: Found) -> Finding | None:
    """XLA of TensorFlow 2.21 ends the process on cards of compute capability 12."""
    if f.capability() < (12,):
        return None
    return Finding(
        f"a GPU of compute capability {shown(f.capability())} came, expected below 12: XLA of TensorFlow 2.21 ends the "
        "process there; give --jit_compile=false, or compute on another card",
        refuses_xla=True,
    )


def assembler(f: Found) -> Finding | None:
    """ptxas 12.0 to 12.6.2 assembles wrong gathers for compute capability 9 and up; without any XLA cannot compile."""
    remedy = (
        "pip install -U 'nvidia-cuda-nvcc-cu12>=12.9' and set "
        "XLA_FLAGS=--xla_gpu_cuda_data_dir=$(python -c 'import nvidia.cuda_nvcc as n; print(n.__path__[0])'), put a "
        "newer one on PATH, or give --jit_compile=false"
    )
    if not f.cards:
        return None
    if f.ptxas is None:
        others = "".join(f"; XLA does not take {tool}" for tool in f.passed_over)
        return Finding(f"XLA finds no ptxas, expected one from 12.6.85 on{others}; {remedy}", refuses_xla=True)
    if f.capability() < (9,) or not _WRONG_PTXAS[0] <= f.ptxas.version < _WRONG_PTXAS[1]:
        return None
    return Finding(
        f"{f.ptxas} came, expected 12.6.85 or newer: on compute capability {shown(f.capability())} its gathers are "
        f"wrong (NVIDIA's bug 4826023), and so would be shuffles and queue; {remedy}",
        refuses_xla=True,
    )


def cudnn(f: Found) -> Finding | None:
    """Below 9.24 XLA can find no kernel for a convolution with bias."""
    if not (f.cards and f.cudnn) or f.cudnn >= _LEAST_CUDNN:
        return None
    return Finding(
        f"warning: cuDNN {shown(f.cudnn)} came, expected 9.24 or newer: XLA may fail on convolutions with bias "
        "('Autotuner could not find any supported configs'); pip install -U 'nvidia-cudnn-cu12>=9.24', or give "
        "--jit_compile=false if it does"
    )


CHECKS: tuple[Callable[[Found], Finding | None], ...] = (no_gpu, driver, capability, assembler, cudnn)


def findings(found: Found) -> list[Finding]:
    """What is wrong with a machine."""
    return [finding for check in CHECKS if (finding := check(found))]


_reasons: list[str] = []  # why XLA must not compile on the ranks that were checked


def why_not_compile() -> str:
    """Why XLA must not compile here, by the last `check`; empty if it may."""
    return "; ".join(_reasons)


def check(collectives: Collectives, self_test: Callable[[], str] | None = None) -> None:
    """Checks this machine, and prints on rank 0 what is wrong with any rank's. All ranks call it, and judge alike.

    Args:
        collectives: what crosses ranks.
        self_test: compiles something on the GPU and says what is wrong with it; called where XLA may compile.

    Raises:
        UserError: XLA must not compile, and the user's TF_XLA_FLAGS say that it does.
    """
    wrong = findings(found())
    if self_test and found().cards and not any(finding.refuses_xla for finding in wrong):
        wrong += [Finding(text, refuses_xla=True) for text in [self_test()] if text]
    own = "".join(json.dumps([finding.text, finding.refuses_xla, collectives.rank]) + "\n" for finding in wrong)
    with tf.device("/CPU:0"):
        every = collectives.allgather(tf.constant(np.frombuffer(own.encode(), np.uint8)))
    lines = [json.loads(line) for line in every.numpy().tobytes().decode().splitlines()]
    ranks: dict[tuple[str, bool], list[int]] = {}
    for text, refuses, rank in lines:
        ranks.setdefault((text, refuses), []).append(rank)
    told = {
        (text if len(r) == collectives.size else f"rank {r[0]}: {text}"): refuses
        for (text, refuses), r in ranks.items()
    }
    _reasons[:] = [text for text, refuses in told.items() if refuses]
    for text, refuses in told.items():
        if not refuses:
            launcher.note(text)
    if _reasons and "auto_jit" in os.environ.get("TF_XLA_FLAGS", ""):
        raise UserError(f"TF_XLA_FLAGS came with tf_xla_auto_jit, expected without: {why_not_compile()}")


@functools.cache
def found() -> Found:
    """What this machine has; little more than a look where there is no NVIDIA driver."""
    gpus = tf.config.get_visible_devices("GPU")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    rows = [] if hidden else cuda.nvidia_smi()
    names = [row[0] for row in rows] or ([] if hidden else cuda.models())
    if not (gpus or names):
        return Found()
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    missing = () if gpus else tuple(f"lib{name}" for name in cuda.LIBRARIES.split() if not cuda.load(f"lib{name}"))
    holding = [next(iter(cuda.pip().glob(f"*/lib/{name}")), None) for name in missing]
    taken, passed_over = cuda.assemblers()
    return Found(
        cards=tuple((str(d.get("device_name", "GPU")), tuple(d.get("compute_capability", ()))) for d in details),
        driver_cards=tuple(names),
        driver=cuda.version_in(rows[0][1]) if rows else (),
        cuda=cuda.version_in(str(tf.sysconfig.get_build_info().get("cuda_version", ""))),
        cudnn=cuda.cudnn_version(),
        ptxas=taken,
        passed_over=passed_over,
        missing=missing,
        folders=tuple(dict.fromkeys(str(path.parent) for path in holding if path)) if all(holding) else (),
    )


def report() -> dict[str, Any]:
    """{"found": what this machine has, "findings": [{"text", "refuses_xla"}]}, for JSON."""
    return {
        "found": dataclasses.asdict(found()),
        "findings": [dataclasses.asdict(finding) for finding in findings(found())],
    }


if __name__ == "__main__":
    print(json.dumps(report(), indent=1))
    sys.exit(any(finding.refuses_xla for finding in findings(found())))
