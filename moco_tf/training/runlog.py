"""The numbers of a run: metrics.jsonl, TensorBoard events, a progress bar."""

import contextlib
import json
import os
import pathlib
import sys
import time

import tensorflow as tf
import tqdm

from moco_tf.run.folder import RunFolder
from moco_tf.training.files import write_whole, writing

# At 80 columns at least 10 are left for the bar itself.
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"

_WORK = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left"


class RunLog:
    """Writes a run's numbers on rank 0; on other ranks it does nothing.

    Args:
        workdir: the run folder, which exists.
        enabled: whether this is rank 0.
        total: steps of the whole run, for the progress bar.
        start: steps done before; metrics of later steps are removed from metrics.jsonl, because they come again.
    """

    def __init__(self, workdir: pathlib.Path, enabled: bool, total: int, start: int = 0) -> None:
        self.enabled = enabled
        if not enabled:
            return
        folder = RunFolder(workdir)
        self._metrics = folder.metrics
        with writing(self._metrics):
            _drop_after(self._metrics, start)
            self._file = open(self._metrics, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = tf.summary.create_file_writer(str(folder.tensorboard))
        self.pause = 0.5 if sys.stderr.isatty() else 10.0  # horovodrun passes each redraw on as a line
        self._bar = tqdm.tqdm(
            total=total, initial=start, dynamic_ncols=True, smoothing=0.1, mininterval=self.pause, bar_format=_BAR
        )
        self._began = time.monotonic()  # unlike time.time() it never jumps
        _open_logs.append(self)

    def advance(self, steps: int = 1) -> None:
        """Counts steps."""
        if self.enabled:
            self._bar.update(steps)

    def show(self, text: str, refresh: bool = False) -> None:
        """Shows a text beside the progress bar: at once, or with its next step."""
        if self.enabled:
            self._bar.set_postfix_str(text, refresh)

    def write(self, step: int, **values: float | None) -> None:
        """One line of metrics.jsonl, null for None, and one point of each TensorBoard curve."""
        if not self.enabled:
            return
        line = {"step": step, **values, "time": round(time.monotonic() - self._began, 3)}
        with writing(self._metrics):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        with self._board.as_default(step=step):
            for name, value in ((name, value) for name, value in values.items() if value is not None):
                tf.summary.scalar(name, value)

    def to_disk(self) -> None:
        """Waits until metrics.jsonl is on the disk, so that the steps of the next checkpoint have their lines."""
        if self.enabled:
            with writing(self._metrics):
                os.fsync(self._file.fileno())

    def say(self, message: str) -> None:
        """Prints a line above the progress bar."""
        if self.enabled:
            self._bar.write(message)

    def close(self) -> None:
        """Finishes the files and the bar."""
        if self in _open_logs:
            _open_logs.remove(self)
            self._bar.close()
            with contextlib.suppress(OSError):  # a full disk, which `write` has reported
                self._file.close()
            self._board.close()


def progress(total: int, what: str, shown: bool = True) -> tqdm.tqdm:
    """A bar on standard error for work without a run log, gone when it is done.

    Args:
        total: of what `update` counts.
        what: is done, in words.
        shown: whether this is rank 0.
    """
    pause = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm.tqdm(
        total=total, desc=what, disable=not shown, dynamic_ncols=True, mininterval=pause, leave=False, bar_format=_WORK
    )


_open_logs: list[RunLog] = []


def close_all() -> None:
    """Finishes all logs, for a program that stops early: TensorBoard's buffer is written, the bar's line ends."""
    for log in list(_open_logs):
        log.close()


def _drop_after(path: pathlib.Path, step: int) -> None:
    """Removes the lines of later steps, and those that a crash cut off, from metrics.jsonl."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_whole(path, "".join(f"{line}\n" for line in kept))
