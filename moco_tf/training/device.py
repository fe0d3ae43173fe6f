"""Chooses what depends on the machine: threads, GPU memory, precision, what XLA compiles."""

import os
import pathlib
import re

import tensorflow as tf
from tensorflow.python.framework import config

from moco_tf.errors import UserError
from moco_tf.training import cuda, gpu, launcher

# Dense peaks in 1e12 floating-point operations a second, from NVIDIA's data sheets, by a pattern that the device's own
# name matches: (float16, bfloat16, float32 as TensorFlow multiplies it: TF32 where the device has that).
_PEAKS: dict[str, tuple[float, float | None, float]] = {
    r"H200$": (989.4, 989.4, 494.7),
    r"H100 80GB HBM3$": (989.4, 989.4, 494.7),  # SXM
    r"H100 PCIe$": (756.0, 756.0, 378.0),
    r"\bA100\b": (312.0, 312.0, 156.0),
    r"\bL40S$": (362.0, 362.0, 183.0),
    r"\bL4$": (121.0, 121.0, 60.0),
    r"\bA10$": (125.0, 125.0, 62.5),
    r"\bT4$": (65.0, None, 8.1),
    r"V100-PCIE": (112.0, None, 14.0),
    r"V100-SXM2": (125.0, None, 15.7),
}


def configure(threads: int, ranks_here: int) -> None:
    """Limits this process to its share of the cores, and lets GPU memory grow. Call it before the first operation.

    TensorFlow cannot change its threads later: an elastic job, which connects more than once, keeps the first ones.

    Args:
        threads: for this process; 0 divides the cores by the ranks, or keeps those of an earlier call.
        ranks_here: ranks on this machine.

    Raises:
        UserError: TensorFlow runs already, and a number of threads came.
    """
    number = threads or max(1, cores() // ranks_here)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(number)
        tf.config.threading.set_inter_op_parallelism_threads(max(1, min(2, number)))
        for card in tf.config.get_visible_devices("GPU"):
            tf.config.experimental.set_memory_growth(card, True)
    except RuntimeError:  # TensorFlow has started: in Python or a notebook the first call counts
        if threads:
            raise UserError(
                f"--threads={threads} came when TensorFlow ran with other threads already, expected before its first "
                "operation; leave it out or start a new process"
            ) from None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """CPU threads that this process may use, as `configure` has set them."""
    return tf.config.threading.get_intra_op_parallelism_threads() or cores()


def has_gpu() -> bool:
    """Whether this process sees a GPU."""
    return bool(tf.config.get_visible_devices("GPU"))


def is_deterministic() -> bool:
    """Whether TensorFlow computes alike in every run, see --deterministic."""
    return bool(config.is_op_determinism_enabled())


def name() -> str:
    """The name of this process' GPU; empty without one."""
    gpus = tf.config.get_visible_devices("GPU")
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")) if gpus else ""


def description() -> str:
    """The device of this process in words: the GPU's name and memory, or why it is a CPU."""
    if card := name():
        return f"{card}{_memory(card)}"
    if cuda.DRIVER.exists():
        return "CPU: no GPU is visible to TensorFlow though this machine has an NVIDIA driver; see BUILD.md"
    return f"CPU, {threads()} threads"


def _memory(name: str) -> str:
    """The memory of a GPU of that name, which TensorFlow does not tell."""
    sizes = [memory for other, _, memory in cuda.nvidia_smi() if other == name]
    return f", {sizes[0]} of memory" if sizes else ""


def dtype_policy(precision: str) -> str:
    """Keras' dtype policy for "float32", "bfloat16", "float16" or "auto" (bfloat16 where the hardware has it)."""
    if precision == "auto":
        precision = "bfloat16" if _multiplies_bfloat16() else "float32"
    return precision if precision == "float32" else f"mixed_{precision}"


def pieces_to_compile(jit_compile: str) -> str:
    """The pieces that XLA compiles, see `Method`: on a CPU it makes views faster and convolutions slower.

    Raises:
        UserError: "true" or "views" came, and XLA must not compile here, see `gpu.check`; with "auto" it does not, and
            that is said.
    """
    if jit_compile != "false" and (reason := gpu.why_not_compile()):
        if jit_compile != "auto":
            raise UserError(f"--jit_compile={jit_compile} came, expected auto or false on this machine: {reason}")
        launcher.note(f"computing without XLA: {reason}")
        return "none"
    if jit_compile == "auto":
        return "all" if has_gpu() else "views"
    return {"true": "all", "views": "views", "false": "none"}[jit_compile]


def _multiplies_bfloat16() -> bool:
    if has_gpu():
        details = [tf.config.experimental.get_device_details(card) for card in tf.config.get_visible_devices("GPU")]
        return all(d.get("compute_capability", (0, 0)) >= (8, 0) for d in details)
    # A CPU without one of these converts to float32 and back, which was measured to be 12 times slower than float32.
    # With AVX-512's bfloat16 a step is 1.2 (ResNet-10 of width 16) to 1.6 times (ResNet-18) as fast as in float32.
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(name in cpuinfo.read_text() for name in ("amx_bf16", "avx512_bf16"))


def peak_flops(name: str, dtype: str) -> float | None:
    """Floating-point operations a second that a GPU of this name can do at most; None where that is not known here."""
    for pattern, (float16, bfloat16, float32) in _PEAKS.items():
        if re.search(pattern, name):
            peak = {"float16": float16, "bfloat16": bfloat16, "float32": float32}.get(dtype)
            return peak and peak * 1e12
    return None
