"""Runs the steps of launch/gpu.sh, each a process of gpu_steps.py with a time limit, and keeps what they find.

Imports no TensorFlow: the GPU's memory is the steps' alone.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence

_PROGRAM = pathlib.Path(__file__).with_name("gpu_steps.py")
_ROOT = _PROGRAM.parents[2]
_LIMIT = 2.5  # times the seconds that a step is expected to take
_LAST_LINES = 12
_WIDTH = 80

PRECISIONS = ("bfloat16", "float16", "float32")  # float32 is TF32 where the GPU has it
# The small form has the first dozen steps, without those that others differ from by numbers alone, and two benchmarks.
_NOT_SMALL = ("parity-float64", "ranks-1", "train-auto-r50")
_SMALL_BENCHES = ("r18-float32-views-true", "r50-float32-views-false")
# What XLA compiles, all, nothing or the views, and a benchmark's seconds.
_XLA = {"--jit_compile=true": 110, "--jit_compile=false": 45, "--jit_compile=views": 60}


@dataclasses.dataclass(frozen=True)
class Step:
    """A process of gpu_steps.py.

    Args:
        name: of the step.
        seconds: that it takes on an H100, about; where fewer are left it is not run.
        work: the function of gpu_steps.py and its words.
        needs: "torch", "horovod" or nothing.
    """

    name: str
    seconds: int
    work: tuple[str, ...]
    needs: str = ""


def every_step(small: bool) -> list[Step]:
    """All steps, most important first."""
    found = [
        Step("checks", 20, ("checks",)),
        Step("train-r18", 150, ("train", "r18")),
        Step("train-r50", 160, ("train", "r50")),
        Step("torch-r50", 120, ("torch", "r50"), "torch"),
        Step("torch-r18", 90, ("torch", "r18"), "torch"),
        Step("parity-float64", 60, ("parity", "float64")),
        Step("parity-float32", 150, ("parity", "graph", *([] if small else ("eager", "compiled")))),
        Step("resume", 90, ("resume",)),
        Step("profile-r50", 110, ("profile", "r50")),
        Step("input-r50", 40, ("images", "r50")),
        Step("ranks-1", 120, ("ranks", "1"), "horovod"),
        Step("ranks-2", 150, ("ranks", "2"), "horovod"),
        Step("train-auto-r50", 330, ("train", "r50", "--jit_compile=auto")),
    ]
    for precision in PRECISIONS:
        for xla, seconds in _XLA.items():
            for kind in ("views", "prepared"):
                for recipe in ("r18", "r50", "r50-b32"):
                    name = f"{recipe}-{precision}-{kind}-{xla.removeprefix('--jit_compile=')}"
                    found.append(Step(name, seconds, ("bench", recipe, kind, f"--precision={precision}", xla)))
    if not small:
        return found
    return [s for s in found if s.name in _SMALL_BENCHES or not (s.work[0] == "bench" or s.name in _NOT_SMALL)]


class Results:
    """results.json: {"gpu", "small", "commit", "steps": {name: record}}; a record's "status" says how it ended."""

    def __init__(self, folder: pathlib.Path, small: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._table = folder / "results.json", folder / "table.txt"
        self.about = {"gpu": gpu(), "small": small, "commit": commit()}
        self.records: dict[str, dict] = {}
        if self._file.exists():
            held = json.loads(self._file.read_text())
            for name, here in self.about.items():
                if held[name] != here:
                    _stop(f"--out={folder} holds results of {name} {held[name]}, expected {here}; name another folder")
            self.records = held["steps"]

    def add(self, name: str, record: dict) -> None:
        """Keeps a step's record: both files are written whole and put in their places."""
        self.records[name] = record
        text = json.dumps({**self.about, "steps": self.records}, indent=1) + "\n"
        for path, content in ((self._file, text), (self._table, self.table())):
            draft = path.with_suffix(".draft")
            draft.write_text(content)
            os.replace(draft, path)

    def table(self) -> str:
        """A line or more for each step that was tried, 80 columns wide."""
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        lines = [*textwrap.wrap(about, _WIDTH), "", f"{'step':<28} {'s':>4}  result"]
        for name, record in self.records.items():
            text = said(record)
            first, *more = textwrap.wrap(text, _WIDTH - 35) or [""]
            lines.append(f"{name:<28} {record['seconds']:>4.0f}  {first}")
            lines += [f"{'':35}{line}" for line in more]
        return "\n".join([*lines, *self.ratios()]) + "\n"

    def ratios(self) -> Iterator[str]:
        """How many times as fast a training with views is as PyTorch's steps without: eager, and with torch.compile."""
        for recipe in ("r18", "r50"):
            ours, theirs = (self.records.get(f"{name}-{recipe}", {}) for name in ("train", "torch"))
            if ours.get("status") == theirs.get("status") == "done":
                eager, compiled = (
                    ours["images_per_second"] / theirs[form]["images_per_second"]["median"]
                    for form in ("eager", "compile")
                )
                yield f"{recipe}: a training with views is {eager:.2f} times as fast as PyTorch's eager step"
                yield f"without, {compiled:.2f} times as fast as it is with torch.compile"


def run(step: Step, out: pathlib.Path, options: list[str], limit: float) -> dict:
    """Runs a step's process; returns its record: "status" is done, failed or timed out."""
    folder = out / "steps"
    folder.mkdir(exist_ok=True)
    answer, log = folder / f"{step.name}.json", folder / f"{step.name}.log"
    command = [sys.executable, str(_PROGRAM), str(answer), *options, *step.work]
    began = time.monotonic()
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=_ROOT, stdout=output, stderr=output, start_new_session=True)
        try:
            status = "done" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            _end(process)  # with all that it started
    record = {"status": status, "seconds": time.monotonic() - began}
    if status == "done":
        return {**record, **json.loads(answer.read_text())}
    last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return {**record, "limit": limit, "last_lines": last or ["nothing was printed"]}


def said(record: dict) -> str:
    """What a step found, or how it ended."""
    return record["summary"] if record["status"] == "done" else f"{record['status']}: {record['last_lines'][-1]}"


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def gpu() -> str:
    """The card's name by nvidia-smi, or that there is none."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "none, a CPU"


def commit() -> str:
    """The checkout's commit; "unknown" where git does not say."""
    try:
        command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def chosen(every: list[Step], only: str) -> list[Step]:
    """The steps that --only names, by their names or beginnings of them."""
    names = [name for name in only.split(",") if name]
    for name in names:
        if not any(step.name.startswith(name) for step in every):
            _stop(f"--only={name} came, expected a step's name or its beginning; --list prints them")
    return [step for step in every if not names or any(step.name.startswith(name) for name in names)]


def missing(step: Step, torch: str) -> str:
    """Why a step cannot be run on this machine; nothing if it can."""
    if step.needs == "torch" and not torch:
        return "--torch names no Python with PyTorch"
    if step.needs == "horovod":
        command = [sys.executable, "-c", "import importlib.util as u, sys; sys.exit(not u.find_spec('horovod'))"]
        return "Horovod is not installed" if subprocess.run(command).returncode else ""
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing; returns the number of steps that failed."""
    parser = argparse.ArgumentParser(prog="launch/gpu.sh", description="Checks and measures moco_tf on a GPU.")
    parser.add_argument("--list", action="store_true", help="print the steps and their seconds on an H100")
    parser.add_argument("--only", default="", metavar="STEP,...", help="these steps, or those whose names begin so")
    parser.add_argument("--out", type=pathlib.Path, default=_ROOT / "runs" / "gpu", help="folder of the results")
    parser.add_argument("--torch", default="", metavar="PYTHON", help="Python that has PyTorch")
    parser.add_argument("--minutes", type=float, default=1e9, help="for all steps together")
    parser.add_argument("--small", action="store_true", help="tiny networks: ends on a CPU in under five minutes")
    o = parser.parse_args(argv)
    until, every = time.monotonic() + 60 * o.minutes, chosen(every_step(o.small), o.only)
    if o.list:
        print(*(f"{step.name:<32} {step.seconds:>4} s  {step.needs}".rstrip() for step in every), sep="\n")
        return 0
    if o.torch and not shutil.which(o.torch):
        _stop(f"--torch={o.torch} is no program; expected a Python that has PyTorch")
    results = Results(o.out.absolute(), o.small)
    options = [f"--torch={o.torch}"] + ["--small"] * o.small
    for step, record in _records(every, results, options, o, until):
        results.add(step.name, record)
        print(f"{step.name}: {said(record)}", flush=True)
    print("\n" + results.table(), end="")
    return sum(record["status"] in ("failed", "timed out") for record in results.records.values())


def _records(
    every: list[Step], results: Results, options: list[str], o: argparse.Namespace, until: float
) -> Iterator[tuple[Step, dict]]:
    """Runs the steps that are not done, and says of each how it ended."""
    for step in every:
        if results.records.get(step.name, {}).get("status") == "done":
            continue
        left, seconds = until - time.monotonic(), step.seconds / (4 if o.small else 1)
        reason = missing(step, o.torch)
        if not reason and left < seconds:
            reason = f"about {seconds:.0f} s are needed, {max(0, left):.0f} are left"
        if reason:
            yield step, {"status": "not run", "seconds": 0, "last_lines": [reason]}
        else:
            print(f"{step.name} ...", flush=True)
            yield step, run(step, o.out.absolute(), options, min(left, _LIMIT * step.seconds))


def _stop(message: str) -> None:
    sys.exit(f"launch/gpu.sh: {message}")


if __name__ == "__main__":
    sys.exit(min(main(), 1))
