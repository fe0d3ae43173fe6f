"""What a machine has of CUDA, found without TensorFlow, as TensorFlow and its XLA find it."""

import ctypes
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

Version = tuple[int, ...]
DRIVER = pathlib.Path("/proc/driver/nvidia")

# What TensorFlow 2.21 opens before it looks for a GPU, and the packages of pip's in which it looks for that, besides
# LD_LIBRARY_PATH and the system's folders: the run path of libtensorflow_framework.so, which cuSOLVER's is not on.
LIBRARIES = "cudart.so.12 cublas.so.12 cublasLt.so.12 cufft.so.11 cusolver.so.11 cusparse.so.12 cudnn.so.9"
_RUN_PATH = ("cublas", "cuda_cupti", "cuda_runtime", "cudnn", "cufft", "cusparse", "nccl")
# XLA takes the first ptxas from 11.8 on that is not this one.
_OLDEST_PTXAS, _REFUSED_PTXAS = (11, 8), (12, 3, 103)


@dataclasses.dataclass(frozen=True)
class Tool:
    """A program: where it is, and its version."""

    path: str
    version: Version

    def __str__(self) -> str:
        return f"{self.path} of version {shown(self.version)}"


def models() -> list[str]:
    """Names of the GPUs that the driver shows."""
    texts = [path.read_text() for path in sorted(DRIVER.glob("gpus/*/information"))]
    return [match[1] for text in texts if (match := re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE))]


@functools.cache
def nvidia_smi() -> list[list[str]]:
    """[name, driver's version, memory] of the machine's GPUs; empty without NVIDIA's tool."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return []
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        rows = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [fields for row in rows if len(fields := [field.strip() for field in row.split(",")]) == 3]


def assemblers() -> tuple[Tool | None, tuple[Tool, ...]]:
    """The ptxas that XLA takes, and those that it finds before and passes over."""
    passed_over: list[Tool] = []
    for path in _places_of_ptxas():
        if version := _version_of(path):
            tool = Tool(str(path), version)
            if version >= _OLDEST_PTXAS and version != _REFUSED_PTXAS:
                return tool, tuple(passed_over)
            passed_over.append(tool)
    return None, tuple(passed_over)


def _places_of_ptxas() -> Iterator[pathlib.Path]:
    """Where XLA of TensorFlow 2.21 looks, in its order."""
    given = re.findall(r"--xla_gpu_cuda_data_dir=(\S+)", os.environ.get("XLA_FLAGS", ""))
    yield pathlib.Path(given[-1] if given else "./cuda_sdk_lib", "bin", "ptxas")
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield pathlib.Path(folder, "ptxas")
    packages = _packages()
    beside = [packages / "nvidia/cuda_nvcc", packages.parent / "nvidia/cuda_nvcc", packages / "tensorflow/cuda"]
    for root in [pathlib.Path("/usr/local/cuda"), pathlib.Path("/opt/cuda"), *beside, *packages.parents[2:4]]:
        yield root / "bin" / "ptxas"


def _version_of(tool: pathlib.Path) -> Version:
    """The version that a program of CUDA prints; () where it is not there or does not run."""
    if not tool.is_file():
        return ()
    try:
        text = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"\bV(\d+)\.(\d+)\.(\d+)\b", text)
    return tuple(map(int, match.groups())) if match else ()


def load(name: str) -> ctypes.CDLL | None:
    """A library as TensorFlow finds it; None if it cannot be loaded."""
    given = [pathlib.Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    folders = [*given, *(pip() / package / "lib" for package in _RUN_PATH)]
    path = next((folder / name for folder in folders if (folder / name).exists()), name)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def pip() -> pathlib.Path:
    """The folder of NVIDIA's packages that pip installs."""
    return _packages() / "nvidia"


def _packages() -> pathlib.Path:
    """The folder that TensorFlow is installed in."""
    spec = importlib.util.find_spec("tensorflow")
    assert spec and spec.origin
    return pathlib.Path(spec.origin).parents[1]


def cudnn_version() -> Version:
    """The version of the library that TensorFlow loads; () without one."""
    library = load("libcudnn.so.9")
    if library is None:
        return ()
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = library.cudnnGetVersion()
    return number // 10000, number // 100 % 100, number % 100


def version_in(text: str) -> Version:
    """The numbers of a version's text."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def shown(version: Version) -> str:
    """A version as text."""
    return ".".join(map(str, version))
