"""Writes checkpoints while training goes on: the state is copied at its step, a thread writes the copy."""

import pathlib
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import tensorflow as tf

from moco_tf.errors import UserError
from moco_tf.training import checkpoint


class Writer:
    """Saves checkpoints in a thread. A context, which ends when the last one is written.

    Args:
        folder: of the checkpoints.
        keep: number of newest ones that stay, see `checkpoint.save`.
    """

    def __init__(self, folder: pathlib.Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[pathlib.Path] | None = None

    def save(self, step: int, state: Mapping, description: Mapping, permanent: bool = False) -> None:
        """Copies the state to host memory and returns. First waits until the checkpoint before is written.

        Args:
            step, state, description, permanent: of `checkpoint.save`.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()
        self._last = self._thread.submit(
            checkpoint.save, self._folder, step, _host_copy(state), description, self._keep, permanent
        )

    def check(self) -> None:
        """Raises UserError when the last checkpoint has failed by now."""
        if self._last is not None and self._last.done():
            self.wait()

    def wait(self) -> None:
        """Returns when the last checkpoint is written. Raises UserError when it could not be."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.wait()
        except UserError as late:
            if error is None:
                raise
            print(late, file=sys.stderr, flush=True)  # the program stops with the other error
        finally:
            self._thread.shutdown()


def _host_copy(state: Mapping) -> dict:
    """Copies of the variables in host memory, which training does not change."""
    with tf.device("/CPU:0"):
        return {
            name: _host_copy(value) if isinstance(value, Mapping) else tf.Variable(tf.identity(value), trainable=False)
            for name, value in state.items()
        }
