"""XLA's compiled code and its autotuning results, kept in the user's cache for the next start on the same GPU.

Everything lies in a folder for the versions and flags that it depends on. A process works on a folder of its own below
that, which XLA reads and writes, and puts what is new into the common one when the first step is done: whole files,
named by their checksums. Code that cannot be loaded, or during whose loading a process crashes, is removed; the second
time none is kept any more. On CPUs nothing is kept: XLA says of such code that it may not suit the processor.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import Any

from moco_tf.config.types import cache_folder
from moco_tf.errors import UserError
from moco_tf.training import cuda, launcher

_DEVICE = "GPU"  # whose code is kept
_MOST = 2**30  # bytes of code in a folder
_FAILURES = 2  # so many, and code is not kept any more
# TensorFlow numbers what it makes; see _count_to.
_NAMES = 2**18  # more than a program makes before its first step
_IN_TRACES = 2**12  # far more than the difference between two traces of one function


class UnusableCode(UserError):
    """Kept code could not be loaded; it is removed, and a new process compiles."""


def folder(deterministic: bool = False) -> pathlib.Path | None:
    """Where what depends on the versions and the flags of this process' GPU is kept; None without a GPU.

    GPUs of several kinds have none either: XLA does not tell their code apart. With deterministic operations each rank
    has its own, in which nobody else's choices are.
    """
    names = {name for name, _, _ in cuda.nvidia_smi()}
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or len(names) != 1:
        return None
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "TF_XLA_FLAGS", "NVIDIA_TF32_OVERRIDE")]
    flags += [f"rank {launcher.rank()}"] * deterministic
    taken = cuda.assemblers()[0]
    versions = {
        "tensorflow": importlib.metadata.version("tensorflow"),
        "driver": cuda.nvidia_smi()[0][1],
        "cudnn": cuda.shown(cuda.cudnn_version()),
        "ptxas": cuda.shown(taken.version) if taken else "",
        "flags": hashlib.sha256("\0".join(flags).encode()).hexdigest()[:8],
    }
    key = "_".join([platform.machine(), *names, *(f"{name}-{version}" for name, version in versions.items())])
    return cache_folder() / "xla" / re.sub(r"[^\w.-]+", "-", key)


class KeptCode:
    """The code in a folder as one process uses it.

    Args:
        root: the folder.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self._code, self._failures = root / "code", root / "failures.txt"
        self.own = root / f"process-{socket.gethostname()}-{os.getpid()}"
        self._loading = self.own / "loading"
        for path in (self._code, self.own, root / "autotune"):
            path.mkdir(parents=True, exist_ok=True)
        self._clean(root)
        self.loaded = [path.name for path in self._whole()]
        self.compiled = 0  # pieces that were not there

    def refused(self) -> str:
        """Why code is not kept; empty if it is."""
        failures = self._failures.read_text().splitlines() if self._failures.exists() else []
        if len(failures) < _FAILURES:
            return ""
        return f"compiled code is not kept: {failures[-1]}; remove {self._failures} to try again"

    def _clean(self, root: pathlib.Path) -> None:
        """Removes what processes of this machine that are gone have left."""
        for path in root.glob(f"process-{socket.gethostname()}-*"):
            if not pathlib.Path(f"/proc/{path.name.rpartition('-')[2]}").exists():
                with contextlib.suppress(OSError):  # another start was first
                    gone = path.rename(root / f"gone-{self.own.name}")
                    if (gone / "loading").exists() and (gone / "loading").stat().st_size:
                        self.remove("a process crashed while it loaded it")
                    shutil.rmtree(gone, ignore_errors=True)

    def _whole(self) -> Iterator[pathlib.Path]:
        """This process' links to files that are as they were written; removes others, and the oldest of too many."""
        size = 0
        for path in sorted(self._code.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
            checksum, _, name = path.name.partition("-")
            size += path.stat().st_size
            if size > _MOST or (self.own / name).exists() or _checksum(path) != checksum:
                path.unlink(missing_ok=True)
                continue
            (self.own / name).symlink_to(path)
            yield self.own / name

    @contextlib.contextmanager
    def first_use(self) -> Iterator[None]:
        """Around the first step: notes that code is loaded, and keeps what is compiled.

        Raises:
            UnusableCode: kept code could not be loaded.
        """
        import tensorflow as tf

        from moco_tf.training.collectives import is_rank_failure
        from moco_tf.training.files import one_line

        try:
            with self._noting_a_crash() if self.loaded else contextlib.nullcontext():
                yield
        except tf.errors.OpError as error:
            others = isinstance(error, tf.errors.ResourceExhaustedError) or is_rank_failure(error)
            if others or not self.loaded:
                raise
            self.remove(one_line(error))
            raise UnusableCode(
                f"the code that XLA had kept in {self._code} cannot be used ({one_line(error)}) and is removed; start "
                "the same command again"
            ) from None
        self._keep()

    @contextlib.contextmanager
    def _noting_a_crash(self) -> Iterator[None]:
        """Has a crash of this process, but not its being killed, leave stacks in a file for the next start to see."""
        before = faulthandler.is_enabled()
        with open(self._loading, "wb") as file:
            faulthandler.enable(file)
            try:
                yield
            finally:
                faulthandler.disable()
                if before:
                    faulthandler.enable()
        self._loading.unlink(missing_ok=True)

    def _keep(self) -> None:
        """Puts what this process has compiled into the common folder."""
        new = [path for path in sorted(self.own.glob("*.pb")) if not path.is_symlink()]
        self.compiled += len(new)
        with contextlib.suppress(OSError):  # a full disk: the next start compiles
            for path in new:
                os.replace(path, self._code / f"{_checksum(path)}-{path.name}")

    def remove(self, why: str) -> None:
        """Removes all code, and notes why."""
        for path in self._code.iterdir():
            path.unlink(missing_ok=True)
        with open(self._failures, "a", encoding="utf-8") as file:
            file.write(f"{why}\n")


@dataclasses.dataclass
class State:
    """What this process keeps.

    Args:
        folder: for versions, flags and GPU, see `folder`; None where there is none.
        code: compiled code; None where none is kept.
    """

    folder: pathlib.Path | None = None
    code: KeptCode | None = None


state = State()


@functools.cache
def start(deterministic: bool = False) -> None:
    """Has XLA keep its code and autotuning results; to be called before TensorFlow looks for devices, all else is late.

    A user's own flags stand.

    Args:
        deterministic: compute alike in every run on such a machine, see docs/gpu.md.
    """
    if deterministic:
        _add("XLA_FLAGS", "xla_gpu_exclude_nondeterministic_ops", "true")
    root = folder(deterministic)
    if root is None:
        return
    try:
        code = KeptCode(root)
    except OSError as error:
        launcher.note(f"compiled code is not kept: {error.filename}: {error.strerror}")
        return
    state.folder = root
    _add("XLA_FLAGS", "xla_gpu_per_fusion_autotune_cache_dir", str(root / "autotune"))
    if why := code.refused():
        launcher.note(why)
    elif "tf_xla_persistent_cache_directory" not in os.environ.get("TF_XLA_FLAGS", ""):
        _add("TF_XLA_FLAGS", "tf_xla_persistent_cache_directory", str(code.own))
        _add("TF_XLA_FLAGS", "tf_xla_persistent_cache_device_types", _DEVICE)
        state.code = code


def _checksum(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _add(variable: str, flag: str, value: str) -> None:
    """Sets a flag that the user has not set."""
    given = os.environ.get(variable, "")
    if flag not in given:
        os.environ[variable] = f"{given} --{flag}={value}".strip()


@contextlib.contextmanager
def first_use() -> Iterator[None]:
    """Around the first step; kept code is loaded in it, and new code kept. Raises UnusableCode."""
    if state.code is None:
        yield
        return
    _count_to(_NAMES)
    with state.code.first_use():
        yield


def function(body: Callable, compiles: bool | None = True) -> Callable:
    """A tf.function of Python's function that XLA compiles, or with None as its caller says; finds its code again."""
    import tensorflow as tf

    @functools.wraps(body)
    def traced(*arguments: Any, **named: Any) -> Any:
        result = body(*arguments, **named)
        if state.code:
            _count_to(_IN_TRACES)
        return result

    return tf.function(traced, autograph=False, jit_compile=compiles)


def _count_to(multiple: int) -> None:
    """Has TensorFlow's next number be the same in a start that resumes, which has made other things before.

    XLA finds code by its function's name, which has a number that TensorFlow gives at the end of tracing it.
    """
    from tensorflow.python.framework import ops

    while (ops.uid() + 1) % multiple:
        pass


def said() -> str:
    """What to say of the code after the first step; empty where none is kept."""
    code = state.code
    return f", {code.compiled or 'no'} pieces compiled by XLA that were not kept" if code else ""
