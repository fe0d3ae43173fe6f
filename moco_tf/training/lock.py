"""One job to a run folder: two would overwrite each other's checkpoints."""

import errno
import fcntl
import json
import os
import pathlib
import socket
import time

from moco_tf.errors import UserError

_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """The lock of a run folder, held by rank 0: the kernel's on its file .lock, which a dead process leaves by itself.

    Where the file system has no locks, what the file says counts: a process that is gone from this machine is followed,
    one of another machine is not.

    Args:
        workdir: the run folder, which exists.
        patience: seconds to wait for a job that is about to end, such as one that was killed.
    """

    def __init__(self, workdir: pathlib.Path, patience: float = 10.0) -> None:
        self._path, self._patience = workdir / ".lock", patience
        self._file = None

    def acquire(self) -> None:
        """Takes the lock. Raises UserError when another job has it, or the folder cannot be written."""
        try:
            self._file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 - held until release()
        except OSError as error:
            raise UserError(
                f"--workdir={self._path.parent} cannot be written ({error.strerror}); give another folder"
            ) from None
        until = time.monotonic() + self._patience
        while not self._is_free():
            if time.monotonic() >= until:
                holder = self._holder()
                self._file.close()
                self._file = None
                raise UserError(
                    f"--workdir={self._path.parent} is in use by process {holder.get('pid', '?')} on host "
                    f"{holder.get('host', '?')}; wait for it, stop it, or give another --workdir (if it is no longer "
                    f"there, remove {self._path})"
                )
            time.sleep(0.2)
        self._write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))

    def release(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            self._write("")
            self._file.close()
            self._file = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is_free(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                return False
        holder = self._holder()
        if not holder or (holder.get("host"), holder.get("pid")) == (socket.gethostname(), os.getpid()):
            return True
        return holder.get("host") == socket.gethostname() and not _is_alive(holder.get("pid"))

    def _holder(self) -> dict:
        try:
            self._file.seek(0)
            return dict(json.loads(self._file.read()))
        except (OSError, ValueError, TypeError):
            return {}

    def _write(self, text: str) -> None:
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text)
            self._file.flush()
        except OSError:  # a full disk: the kernel's lock holds without a word
            pass


def _is_alive(pid: object) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return True
