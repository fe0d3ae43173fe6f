"""What a launcher (horovodrun, srun, mpirun) says of this process, before TensorFlow or Horovod is imported."""

import functools
import os


def rank() -> int:
    """This process' number in the job; 0 without a launcher."""
    return _number(("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"), 0)


def is_first_rank() -> bool:
    """Whether this process is rank 0, also before it connects."""
    return rank() == 0


def of_several_ranks() -> bool:
    """Whether a launcher started this process as one of several."""
    return _number(("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"), 1) > 1 or by_horovodrun()


def by_horovodrun() -> bool:
    """Whether horovodrun started this process."""
    return "HOROVOD_RANK" in os.environ


@functools.cache
def note(line: str) -> None:
    """Prints a line, on rank 0, once however often it is said."""
    if is_first_rank():
        print(line, flush=True)


def _number(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)
