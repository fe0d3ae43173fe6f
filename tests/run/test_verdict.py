"""The verdict at the end of a pre-training on own images: planted curves come out as planted, in 80 columns."""

import json

import numpy as np
import pytest

from moco_tf.run import verdict
from moco_tf.run.folder import RunFolder

DIM = 16  # features that spread evenly have a deviation of 1/4 in each dimension


def curve(losses, noise=0.002, std=0.24, top1=0.3, queue_random=0.0):
    """Lines of metrics: losses with normal noise, fixed by a seed."""
    drawn = np.asarray(losses) + np.random.default_rng(0).normal(0, noise, len(losses))
    own = {"feature_std": std, "contrast_top1": top1, "queue_random": queue_random}
    return [{"step": float(i), "loss": float(loss), **own} for i, loss in enumerate(drawn, 1)]


FALLS, FLAT = np.linspace(6, 4, 100), np.r_[np.linspace(6, 4, 50), np.full(50, 4.0)]
CASES = {
    "still learning (loss 5.81 to 4.19): more --epochs should help": curve(FALLS),
    "levelled off (loss 5.61 to 4): more of the same will hardly help": curve(FLAT),
    # 5 + 69.5 and 89.5 of 99
    "getting worse (loss 5.7 to 5.9 at the end): lower --learning_rate": curve(np.linspace(5, 6, 100)),
    "collapsed: lower --learning_rate or raise --temperature": curve(FALLS, std=0.012),
    "saturated, the task is solved: stronger --views or a larger queue": curve(FALLS, top1=0.96),
    "too short to tell (19 lines of metrics of 20): more --epochs, or a lower --log_every": curve(FALLS[:19]),
    # noise in the queue: these lines do not count
    "too short to tell (0 lines of metrics of 20): more --epochs, or a lower --log_every": curve(
        FALLS, queue_random=0.1
    ),
}


@pytest.mark.parametrize("words", CASES)
def test_planted_curves(words):
    assert verdict.state(CASES[words], DIM) == words


def test_better_by_the_contrast_alone():
    """The loss stands still; the share of queries that find their key rises from 30 to 40 % at the end."""
    lines = curve(FLAT, noise=0)
    for line, top1 in zip(lines, np.r_[np.full(80, 0.3), np.linspace(0.3, 0.4, 20)]):
        line["contrast_top1"] = top1
    assert verdict.state(lines, DIM).startswith("still learning")


def test_noise_is_no_learning():
    """Of 200 flat curves, which differ in their noise, at most one in ten is said to be still learning, or worse."""
    rng = np.random.default_rng(1)
    found = [verdict.state([{"loss": 4 + x} for x in rng.normal(0, 0.1, 100)], DIM) for _ in range(200)]
    assert all(sum(text.startswith(word) for text in found) <= 20 for word in ("still", "getting"))


def test_lines(tmp_path, monkeypatch):
    """Four lines of at most 80 columns; a deviation of 0.24 is 96 % of 1/4."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "runs" / "photos_moco")
    run.path.mkdir(parents=True)
    end = {"step": 101, "knn_top1": 0.432, "rankme": 9.87, "lidar": 3.21}
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*curve(FALLS), end]))
    assert verdict.lines(run, DIM, False) == [
        "verdict: still learning (loss 5.81 to 4.19): more --epochs should help",
        "figures: spread 96%, own view found 30.0%, kNN 43.2%, rankme 9.87, lidar 3.21",
        "next: python -m moco_tf.embed --load=runs/photos_moco --output=vectors.npz",
        "report: python -m moco_tf.report --workdir=runs/photos_moco (report.html there)",
    ]
    assert all(len(line) <= 80 for line in verdict.lines(run, DIM, False))
    spaced = RunFolder(run.path.rename(tmp_path / "my runs"))
    assert verdict.lines(spaced, DIM, True)[2] == "next: python -m moco_tf.lincls --load='my runs'"
    assert verdict.lines(spaced, DIM, True)[3].startswith("report: python -m moco_tf.report --workdir='my runs' (")
    run = RunFolder(spaced.path.rename(run.path))
    assert verdict.lines(run, DIM, True)[2] == "next: python -m moco_tf.lincls --load=runs/photos_moco"


def test_whose_images():
    own = {"folder": True, "mine.birds": True, "my_pack:1.0.0": True, "cifar10:3.0.2": False, "fashion_mnist": False}
    assert {name: verdict.is_own(name) for name in own} == own
