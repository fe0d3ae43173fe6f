"""Calls programs as users do, and reads what they write."""

import json
import pathlib
import subprocess
import sys
from importlib import import_module

import numpy as np
import tensorflow as tf

from moco_tf.config import define, options

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = {"image_size": 24, "batch_size": 16, "queue_size": 64, "epochs": 2, "steps": 6, "log_every": 2, "k": 5}


def arguments(*files, **values):
    """Command-line flags: flagfiles of flags/ or anywhere, then values."""
    return [f"--flagfile={ROOT / 'flags' / file}" for file in files] + [f"--{n}={v}" for n, v in values.items()]


def parse(program, *argv):
    """Options as program.run makes them for moco_tf.<program>."""
    return define.parse(options.PROGRAMS[program], [program, *argv])


def call(program, *files, **values):
    """Runs a program's main function in this process."""
    import_module(f"moco_tf.{program}").main(parse(program, *arguments(*files, **values)))


def start(program, *files, argv=(), **values):
    """A program in a process of its own."""
    command = [sys.executable, "-m", f"moco_tf.{program}", *argv, *arguments(*files, **values)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_photos(folder, classes=("bird", "cat", "dog"), count=30, seed=0):
    """Noisy PNGs of one colour a class, of many sizes, in class folders."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 120, (*rng.integers(20, 40, 2), 3))
            image[..., label % 3] += 120
            tf.io.write_file(str(folder / name / f"{number:02}.png"), tf.io.encode_png(image.astype(np.uint8)))


def make_photos(folder):
    """train/ and val/ of write_photos below folder."""
    write_photos(folder / "train")
    write_photos(folder / "val", count=8, seed=1)
    return folder


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return {line["step"]: line["loss"] for line in metrics(run) if "loss" in line}


def steps_kept(run):
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


_OF_THE_CLOCK = ("time", "images_per_second", "input_wait", "model_flop_utilisation")


def learnt(run):
    """metrics.jsonl without what the clock says."""
    return [{k: v for k, v in line.items() if k not in _OF_THE_CLOCK} for line in metrics(run)]
