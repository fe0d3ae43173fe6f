"""What crosses ranks: Horovod, or the identity in a single process. The only file that imports Horovod."""

import json
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import numpy as np
import tensorflow as tf

from moco_tf.errors import FirstRankError, UserError
from moco_tf.training import launcher


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
        """Sets the variables of all ranks to rank 0's."""

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
        return self._hvd.grouped_allreduce(tensors, op=self._hvd.Average)

    def broadcast(self, variables: list[tf.Variable]) -> None:
        self._hvd.broadcast_variables(variables, root_rank=0)

    def barrier(self) -> None:
        self._hvd.allreduce(tf.zeros([1]), op=self._hvd.Sum, name="barrier")


Collectives = SingleProcess | Horovod


Result = TypeVar("Result")


def broadcast_result(ranks: Collectives, function: Callable[[], Result]) -> Result:
    """Calls the function on rank 0 and returns its result, which must fit into JSON, on every rank.

    Raises:
        UserError: the function's, on rank 0; a FirstRankError with its text on the others.
    """
    text = ""
    if ranks.rank == 0:
        try:
            text = json.dumps({"result": function()})
        except UserError as error:
            text = json.dumps({"error": str(error)})
    answer = json.loads(_broadcast_bytes(ranks, text.encode()))
    if "error" in answer:
        raise (UserError if ranks.rank == 0 else FirstRankError)(answer["error"])
    return answer["result"]


def _broadcast_bytes(ranks: Collectives, data: bytes) -> bytes:
    """Rank 0's bytes on every rank."""
    with tf.device("/CPU:0"):
        length = tf.Variable(len(data), dtype=tf.int64)
        ranks.broadcast([length])
        text = tf.Variable(np.frombuffer(data, np.uint8) if ranks.rank == 0 else np.zeros(int(length), np.uint8))
        ranks.broadcast([text])
    return text.numpy().tobytes()


def connect() -> Collectives:
    """Horovod's collectives when a launcher started this process as one of several, else those of one process."""
    return Horovod() if launcher.of_several_ranks() else SingleProcess()


def gpu_of_rank(local_rank: int, local_size: int, gpus: int) -> int:
    """The index of this rank's GPU among those that this process sees.

    A launcher may show each rank all GPUs of the machine (horovodrun), or only its own (Slurm's --gpus-per-task=1,
    CUDA_VISIBLE_DEVICES).

    Args:
        local_rank: this rank's number on this machine.
        local_size: ranks on this machine.
        gpus: GPUs that this process sees.

    Raises:
        UserError: there are several GPUs, but fewer than ranks.
    """
    if 1 < gpus < local_size:
        raise UserError(
            f"{local_size} ranks on this machine came, expected at most {gpus}, one for each GPU that it shows; start "
            "fewer, or show more in CUDA_VISIBLE_DEVICES"
        )
    return local_rank if gpus > 1 else 0


def say(message: str) -> None:
    """Prints a line for the user on rank 0 only."""
    if launcher.is_first_rank():
        print(message, file=sys.stderr, flush=True)


def horovod() -> ModuleType:
    """Horovod's TensorFlow module, connected to the other ranks.

    Raises:
        UserError: it is not installed.
    """
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise UserError(
            f"this is rank {launcher.rank()} of a job of several ranks, but Horovod cannot be imported ({error}); "
            "run launch/horovod.sh, or start one process without horovodrun"
        ) from None
    if not hvd.is_initialized():
        hvd.init()
    # In an elastic job ranks get new numbers while they run, which os.environ does not show.
    os.environ["HOROVOD_RANK"], os.environ["HOROVOD_SIZE"] = str(hvd.rank()), str(hvd.size())
    return hvd


def first_rank_ends(seconds: float) -> bool:
    """Whether rank 0, on another rank, ends within so many seconds: an exchange without it then fails."""
    failed: list[bool] = []

    def exchange() -> None:
        try:
            horovod().allreduce(tf.zeros([1]), name="end")
        except Exception as error:
            failed.append(is_rank_failure(error))

    waiting = threading.Thread(target=exchange, daemon=True)
    waiting.start()
    waiting.join(seconds)
    return failed == [True]


def is_rank_failure(error: Exception) -> bool:
    """Whether a collective ended with this error because another rank has ended, hangs or has stopped."""
    # Horovod's collectives raise UnknownError; its Python helpers make an error of their own of some.
    failed = isinstance(error, (tf.errors.UnknownError, tf.errors.AbortedError)) and "orovod" in str(error)
    return failed or type(error).__name__ == "HorovodInternalError"


def rank_failure(error: Exception) -> Exception:
    """The same as an error that Horovod's elastic loop understands."""
    from horovod.common.exceptions import HorovodInternalError

    return HorovodInternalError(str(error))
