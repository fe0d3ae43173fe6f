"""Files and folders: written as a whole, errors in one line, checksums."""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from moco_tf.errors import UserError

_LONGEST = 200  # characters of an exception in a message


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns the system's errors about a file into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error}); free or mend the disk") from None


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a draft's path (same suffix, same folder) to write to; the draft replaces the file when the block succeeds.

    A reader sees the old file or the new one, never a part. After an error the old file stays and the draft is removed.

    Raises:
        UserError: the file cannot be written.
    """
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with writing(path):
            yield draft
            os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file as a whole, see `replacing`. Raises UserError."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_new(path: pathlib.Path, text: str) -> None:
    """Writes a text file as a whole where there is none; of several processes one does. Raises UserError."""
    draft = path.with_name(f".{os.getpid()}.new.{path.name}")
    with writing(path):
        draft.write_text(text, encoding="utf-8")
        try:
            os.link(draft, path)
        except OSError:  # it is there, or the file system has no links
            if not path.exists():
                os.replace(draft, path)
        draft.unlink(missing_ok=True)


def make_folder(path: pathlib.Path) -> None:
    """Creates a run folder. Raises UserError when it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have removed it first
    except OSError as error:
        raise UserError(f"--workdir={path} cannot be written ({error.strerror}); give another folder") from None


def one_line(error: BaseException) -> str:
    """An exception's text in one line of at most 200 characters; its class where the text says too little.

    Of TensorFlow's errors only the cause is left: no node names, no name of the operation, no path before the cause.
    """
    text = str(error)
    if isinstance(error, tf.errors.OpError):
        *_, text = error.message.split("\n\t [[")[0].strip().splitlines() or [""]
        text = re.sub("^[^;:]*/[^;:]*; ", "", text.split("}} ")[-1].split(" [Op:")[0])
        text = re.sub(r"^assertion failed: \[(.*)\]", r"\1", text)
    text = " ".join(text.split())[:_LONGEST]
    if isinstance(error, KeyError) or not text:
        return f"{type(error).__name__} {text}".strip()
    return text


def digest(parts: Iterable[bytes | np.ndarray]) -> str:
    """SHA-256 in hexadecimal of arrays or bytes, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.tobytes())
    return found.hexdigest()
