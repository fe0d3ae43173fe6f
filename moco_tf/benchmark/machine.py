"""What a benchmark ran on, what it took of that, and since when."""

import importlib.metadata
import os
import pathlib
import platform
import re
import resource
import sys
import time

import tensorflow as tf

from moco_tf.training import device

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


def peak_flops(name: str, dtype: str) -> float | None:
    """Floating-point operations a second that a GPU of this name can do at most; None where that is not known here."""
    for pattern, (float16, bfloat16, float32) in _PEAKS.items():
        if re.search(pattern, name):
            peak = {"float16": float16, "bfloat16": bfloat16, "float32": float32}.get(dtype)
            return peak and peak * 1e12
    return None


def gpu() -> str | None:
    """Name of this process' GPU."""
    gpus = tf.config.get_visible_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else None


def describe() -> dict[str, object]:
    """{"cpu", "cores", "threads", "gpu", "system"}; gpu is None without one."""
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": _cpu(), "cores": device.cores(), "threads": device.threads(), "gpu": gpu(), "system": system}


def _cpu() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in ("moco_tf", "tensorflow", "keras", "horovod", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_memory() -> int:
    """Most bytes in use at one time until now: TensorFlow's on the GPU, without one this process' resident set."""
    if gpu():
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def process_seconds() -> float | None:
    """Seconds since this process started, by the kernel's clock; None where there is no /proc."""
    stat = pathlib.Path("/proc/self/stat")
    if not stat.exists():
        return None
    # proc(5): field 22 is the start in clock ticks since boot; the name, field 2, may hold blanks, so count behind it.
    ticks = int(stat.read_text().rsplit(")", 1)[1].split()[22 - 3])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
