"""Locks a run folder: two jobs there would overwrite each other's checkpoints."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from typing import IO, Any

from moco_tf.errors import UserError

_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """The lock of a run folder, which rank 0 takes: the kernel's lock on its file .lock. It ends with the process.

    On a file system without locks the file's text counts, which names the process that has the lock: when that one ran
    on this machine and has ended, the lock is free; of a process on another machine nothing is known.

    Args:
        workdir: the run folder, which exists.
        timeout: seconds to wait for a job that is about to end, such as one that was killed.
        flag: which flag gave the folder, for messages.
    """

    def __init__(self, workdir: pathlib.Path, timeout: float = 10.0, flag: str = "--workdir") -> None:
        self._path, self._timeout, self._flag = workdir / ".lock", timeout, flag
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Takes the lock. Raises UserError when another job has it, or the folder cannot be written."""
        try:
            file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 - open until release()
        except OSError as error:
            raise UserError(
                f"{self._flag}={self._path.parent} cannot be written ({error.strerror}); give another folder"
            ) from None
        until = time.monotonic() + self._timeout
        while not _take(file):
            if time.monotonic() >= until:
                owner = _owner(file)
                file.close()
                raise UserError(
                    f"{self._flag}={self._path.parent} is in use by process {owner.get('pid', '?')} on host "
                    f"{owner.get('host', '?')}; wait for it, stop it, or give another {self._flag} (if it no longer "
                    f"runs, remove {self._path})"
                )
            time.sleep(0.2)
        _write(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        self._file = file

    def release(self) -> None:
        """Gives the lock back."""
        if self._file is not None:
            _write(self._file, "")
            self._file.close()
            self._file = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _take(file: IO[str]) -> bool:
    """Takes the lock of an open file; returns whether it was free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            return False
    owner, here = _owner(file), socket.gethostname()
    if not owner or (owner.get("host"), owner.get("pid")) == (here, os.getpid()):
        return True
    return owner.get("host") == here and not _is_alive(owner.get("pid"))


def _owner(file: IO[str]) -> dict[str, Any]:
    """{"host", "pid"} of the process that has the lock, as the file says; empty when it says nothing."""
    try:
        file.seek(0)
        return dict(json.loads(file.read()))
    except (OSError, ValueError, TypeError):
        return {}


def _write(file: IO[str], text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk: the kernel's lock needs no text
        file.seek(0)
        file.truncate()
        file.write(text)
        file.flush()


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return True
