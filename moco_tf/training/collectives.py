"""What crosses ranks: Horovod, or the identity in a single process. The only file that imports Horovod."""

import math
import os
import sys
from types import ModuleType

import tensorflow as tf

from moco_tf.errors import UserError


class SingleProcess:
    """The collectives of one process: every operation is the identity."""

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def alltoall(self, rows: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
        """Sends the next splits[r] of the rows to each rank r; returns the rows received, ordered by sender."""
        return rows

    def allgather(self, rows: tf.Tensor) -> tf.Tensor:
        """Rows of all ranks, in rank order. Not differentiable."""
        return rows

    def mean(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """The mean over ranks of each tensor, in one fused exchange."""
        return tensors

    def broadcast(self, variables: list[tf.Variable]) -> None:
        """Gives the variables of rank 0 to all ranks."""

    def barrier(self) -> None:
        """Waits for all ranks."""


class Horovod:
    """The collectives of a job started by horovodrun (or srun, mpirun): one process a GPU, or several on a CPU."""

    def __init__(self) -> None:
        self._hvd = hvd = horovod()
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            tf.config.set_visible_devices(gpus[gpu_of_rank(self.local_rank, self.local_size, len(gpus))], "GPU")

    def alltoall(self, rows: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
        received, _ = self._hvd.alltoall(rows, splits=tf.cast(splits, tf.int32))
        return received

    def allgather(self, rows: tf.Tensor) -> tf.Tensor:
        return self._hvd.allgather(rows)

    def mean(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        if tensors[0].dtype == tf.bfloat16:
            return self._mean_by_parts(tensors)
        return self._hvd.grouped_allreduce(tensors, op=self._hvd.Average)

    def _mean_by_parts(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """The mean of bfloat16 tensors, which Horovod 0.28.1 can carry as bits but not add.

        Rank r adds the r-th parts of all ranks, in float32, and passes the mean on: an allreduce's bytes. Between hosts
        it is slower than Horovod's own, whose ring leaves each host once.
        """
        sizes = [math.prod(tensor.shape) for tensor in tensors]
        part = -(-sum(sizes) // self.size)
        flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
        flat = tf.pad(flat, [[0, part * self.size - sum(sizes)]])
        parts = self.alltoall(tf.bitcast(flat, tf.uint16), tf.fill([self.size], part))
        parts = tf.cast(tf.bitcast(tf.reshape(parts, [self.size, part]), tf.bfloat16), tf.float32)
        mean = tf.cast(tf.reduce_mean(parts, axis=0), tf.bfloat16)
        means = tf.bitcast(self.allgather(tf.bitcast(mean, tf.uint16)), tf.bfloat16)
        means = tf.split(means[: sum(sizes)], sizes)
        return [tf.reshape(mean, tensor.shape) for mean, tensor in zip(means, tensors)]

    def broadcast(self, variables: list[tf.Variable]) -> None:
        self._hvd.broadcast_variables(variables, root_rank=0)

    def barrier(self) -> None:
        self._hvd.allreduce(tf.zeros([1]), op=self._hvd.Sum, name="barrier")


Collectives = SingleProcess | Horovod


def compressed_mean(collectives: Collectives, tensors: list[tf.Tensor], dtype: str) -> list[tf.Tensor]:
    """The mean over ranks of each tensor, in its own dtype, but sent as dtype: "float16" or "bfloat16".

    float16 keeps 11 bits; below 6e-8 they vanish, and a sum above 65,504 overflows, because Horovod adds in float16.
    bfloat16 keeps 8 bits and float32's range. A single process rounds, too.
    """
    means = collectives.mean([tf.cast(tensor, dtype) for tensor in tensors])
    return [tf.cast(mean, tensor.dtype) for mean, tensor in zip(means, tensors, strict=True)]


def _launched_rank() -> int:
    for name in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def _launched_size() -> int:
    for name in ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if name in os.environ:
            return int(os.environ[name])
    return 1


def connect() -> Collectives:
    """Horovod's collectives when a launcher started this process as one of several, else those of one process."""
    return Horovod() if of_several_ranks() else SingleProcess()


def gpu_of_rank(local_rank: int, local_size: int, gpus: int) -> int:
    """Which of the GPUs that this process sees is its own.

    A launcher may show each rank all GPUs of the machine (horovodrun), or its own one alone (Slurm's
    --gpus-per-task=1, CUDA_VISIBLE_DEVICES).

    Raises:
        UserError: there are several, but fewer than ranks.
    """
    if 1 < gpus < local_size:
        raise UserError(
            f"{local_size} ranks on this machine came, expected at most {gpus}, one for each GPU that it shows; start "
            "fewer, or show more in CUDA_VISIBLE_DEVICES"
        )
    return local_rank if gpus > 1 else 0


def is_first_rank() -> bool:
    """Whether this process may print, before or without connecting."""
    return _launched_rank() == 0


def say(message: str) -> None:
    """Prints a line for the user on rank 0 only."""
    if is_first_rank():
        print(message, file=sys.stderr, flush=True)


def of_several_ranks() -> bool:
    """Whether a launcher started this process as one of several."""
    return _launched_size() > 1 or "HOROVOD_RANK" in os.environ


# Seconds until Horovod should name the ranks that the others wait for, and until it should end the job; without the
# second it waits for ever. Its Gloo build was not seen to do either (docs/clusters.md): watchdog.py finds a rank that
# hangs. A process that stands still, or whose machine is lost, is found by HOROVOD_GLOO_TIMEOUT_SECONDS (30).
STALL_LIMITS = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "60", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "600"}


def horovod() -> ModuleType:
    """Horovod's TensorFlow module, connected to the other ranks.

    Raises:
        UserError: it is not installed.
    """
    for name, seconds in STALL_LIMITS.items():
        os.environ.setdefault(name, seconds)
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise UserError(
            f"this is rank {_launched_rank()} of a job of several ranks, but Horovod cannot be imported ({error}); "
            "run launch/horovod.sh, or start one process without horovodrun"
        ) from None
    if not hvd.is_initialized():
        hvd.init()
    # An elastic job numbers its ranks anew while they run, where Python's view of the environment does not follow.
    os.environ["HOROVOD_RANK"], os.environ["HOROVOD_SIZE"] = str(hvd.rank()), str(hvd.size())
    return hvd


def is_rank_failure(error: Exception) -> bool:
    """Whether a collective ended with this error because another rank is gone, hangs or has stopped."""
    # Horovod's collectives raise UnknownError; its Python helpers turn some of these into an error of their own.
    failed = isinstance(error, (tf.errors.UnknownError, tf.errors.AbortedError)) and "orovod" in str(error)
    return failed or type(error).__name__ == "HorovodInternalError"


def rank_failure(error: Exception) -> Exception:
    """The same as an error that Horovod's elastic loop understands."""
    from horovod.common.exceptions import HorovodInternalError

    return HorovodInternalError(str(error))
