"""Jobs of several ranks that a test disturbs: started in the background, their processes found and waited for."""

import os
import pathlib
import signal
import sys
import time

import psutil

from support import ranks
from support.programs import arguments, metrics

# Small enough for four ranks on one core; without an end, for the test ends it.
ENDLESS = {
    **{"image_size": 24, "batch_size": 12, "queue_size": 48, "epochs": 100_000, "log_every": 1, "knn_every": 0},
    **{"jit_compile": "false", "precision": "float32", "learning_rate": 1e-3, "dataset": "folder"},
}


class Job:
    """horovodrun in the background, as a rule with moco_tf.pretrain. As a context manager it leaves no process behind.

    options: of horovodrun. env: beside this process' environment. command: instead of pretrain. worker: what pretrains
    instead, of tests/workers. values: flags of pretrain beside ENDLESS.
    """

    def __init__(self, folder, *options, env=None, command=None, worker=None, **values):
        self.workdir = folder / "run"
        self._files = [open(folder / name, "w+") for name in ("stdout.txt", "stderr.txt")]  # noqa: SIM115
        flags = arguments("debug/pretrain.cfg", **{**ENDLESS, "workdir": self.workdir, **values})
        launcher = pathlib.Path(sys.executable).with_name("horovodrun")
        pretrain = [ranks.TESTS / f"workers/{worker}.py"] if worker else ["-m", "moco_tf.pretrain"]
        command = command or [*pretrain, *flags]
        path = f"{ranks.TESTS.parent}{os.pathsep}{ranks.TESTS}"
        self._launcher = psutil.Popen(
            [str(part) for part in (launcher, *options, sys.executable, *command)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(env or {})},
            stdout=self._files[0],
            stderr=self._files[1],
        )
        self._seen = {self._launcher.pid: self._launcher}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.alive():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._launcher.wait()
        for file in self._files:
            file.close()

    def alive(self):
        """The processes of the job that are left, also those whose parents are gone."""
        for process in list(self._seen.values()):
            try:
                self._seen.update({child.pid: child for child in process.children(recursive=True)})
            except psutil.NoSuchProcess:
                continue
        return [process for process in self._seen.values() if _lives(process)]

    def ranks(self):
        """{(host, local rank): process} of the ranks that run."""
        found = {}
        for process in self.alive():
            try:
                place = process.environ()
                is_program = process.cmdline()[:1] == [sys.executable]
                if is_program and "HOROVOD_RANK" in place:
                    found[place["HOROVOD_HOSTNAME"], int(place["HOROVOD_LOCAL_RANK"])] = process
            except psutil.Error:
                continue
        return found

    def wait_for_step(self, step, timeout=300):
        """Returns once the metrics of a step are written."""
        self.wait_until(lambda: (self.workdir / "metrics.jsonl").exists() and self.last_step() >= step, timeout)

    def last_step(self):
        try:
            lines = metrics(self.workdir)
        except ValueError:  # the last line is being written
            return 0
        return lines[-1]["step"] if lines else 0

    def wait_until(self, condition, timeout=300):
        began = time.monotonic()
        while not condition():
            assert self._launcher.poll() is None, f"the job ended early:\n{self.output()[-6000:]}"
            assert time.monotonic() - began < timeout, f"no end in sight:\n{self.output()[-6000:]}"
            self.alive()
            time.sleep(0.1)

    def end(self, timeout):
        """(exit status, what was printed, processes that are left) when the launcher has ended or the time is over."""
        began = time.monotonic()
        while self.alive() and time.monotonic() - began < timeout:
            time.sleep(0.1)
        return self._launcher.poll(), self.output(), self.alive()

    def output(self):
        for file in self._files:
            file.flush()
        return "".join(pathlib.Path(file.name).read_text() for file in self._files)

    def kill(self, place, number=signal.SIGKILL):
        """Sends a signal to the rank of this host and local rank."""
        self.ranks()[place].send_signal(number)


def _lives(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def executable(path, text):
    """Writes a script."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def ended(job, timeout=30):
    """What a job printed that has failed and left no process."""
    status, out, left = job.end(timeout)
    assert not left
    assert status not in (0, None)
    return out
