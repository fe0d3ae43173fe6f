"""What a pre-training on somebody's own images says at its end: how far it has come, its figures, what to do next.

The thresholds, and why they are these: docs/evaluation.md.
"""

import math
import os
import pathlib
import re
import shlex
import statistics
import textwrap
from collections.abc import Sequence

from moco_tf.config.options import LABEL_FREE
from moco_tf.contrast.collapse import has_collapsed
from moco_tf.data import normalisation
from moco_tf.run.folder import Metrics, RunFolder

FEWEST = 20  # lines of metrics: of fewer, fifths are too noisy to compare
SOLVED = 0.95  # share of queries whose own key is the nearest
NOISE = 2.0  # standard errors

Line = dict[str, float]


def is_own(dataset: str) -> bool:
    """Whether a data set is none that the package knows: a folder, a module of the user's, another TFDS name."""
    return "." in re.split("[/:]", dataset)[0] or normalisation.known("auto", dataset) is None


def lines(folder: RunFolder, feature_dim: int, probe: bool) -> list[str]:
    """Four lines of at most 80 columns, where the path is short; one more where many figures were measured.

    Args:
        folder: of the run.
        feature_dim: C of its head.
        probe: whether a linear probe can follow: there are labels and test images.
    """
    metrics, path = folder.read_metrics(), shlex.quote(_short(folder.path))
    then = f"moco_tf.lincls --load={path}" if probe else f"moco_tf.embed --load={path} --output=vectors.npz"
    return [
        f"verdict: {state(metrics.lines, feature_dim)}",
        *textwrap.wrap(figures(metrics, feature_dim), 80, subsequent_indent="  "),
        f"next: python -m {then}",
        f"report: python -m moco_tf.report --workdir={path} (report.html there)",
    ]


def state(every: Sequence[Line], feature_dim: int) -> str:
    """How far the training has come, by the lines of its metrics, and what helps; feature_dim: C of its head."""
    # While a queue or a bank still holds noise, the loss says little.
    found = [line for line in every if "loss" in line and not (line.get("queue_random") or line.get("bank_random"))]
    if len(found) < FEWEST:
        return f"too short to tell ({len(found)} lines of metrics of {FEWEST}): more --epochs, or a lower --log_every"
    size = len(found) // 5
    before, last = found[-2 * size : -size], found[-size:]
    if has_collapsed(_mean(last, "feature_std", 1.0), feature_dim):
        return "collapsed: lower --learning_rate or raise --temperature"
    if _mean(last, "contrast_top1", 0.0) >= SOLVED:
        return "saturated, the task is solved: stronger --views or a larger queue"
    loss = f"loss {_mean(found[:size], 'loss', 0):.3g} to {_mean(last, 'loss', 0):.3g}"
    if _moved(before, last, "loss") < -NOISE or _moved(before, last, "contrast_top1") > NOISE:
        return f"still learning ({loss}): more --epochs should help"
    if _moved(before, last, "loss") > NOISE:
        rise = f"{_mean(before, 'loss', 0):.3g} to {_mean(last, 'loss', 0):.3g}"
        return f"getting worse (loss {rise} at the end): lower --learning_rate"
    return f"levelled off ({loss}): more of the same will hardly help"


def figures(metrics: Metrics, feature_dim: int) -> str:
    """What was measured last: spread of the features, the share of views that find their image, the monitor's."""
    shares = {"contrast_top1": "own view found", "knn_top1": "kNN", "probe_top1": "probe"}
    std = metrics.last("feature_std")
    parts = [f"spread {std * math.sqrt(feature_dim):.0%}"] if std is not None else []
    parts += [f"{word} {value:.1%}" for name, word in shares.items() if (value := metrics.last(name)) is not None]
    parts += [f"{name} {value:.3g}" for name in LABEL_FREE if (value := metrics.last(name)) is not None]
    return f"figures: {', '.join(parts) or 'none'}"


def _mean(found: Sequence[Line], name: str, default: float) -> float:
    values = [line[name] for line in found if name in line]
    return statistics.fmean(values) if values else default


def _moved(before: Sequence[Line], last: Sequence[Line], name: str) -> float:
    """By how many standard errors a metric's mean has moved between two stretches; 0 without it."""
    pairs = [[line[name] for line in part if name in line] for part in (before, last)]
    if any(len(values) < 2 for values in pairs):
        return 0.0
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in pairs))
    moved = statistics.fmean(pairs[1]) - statistics.fmean(pairs[0])
    return moved / error if error else math.copysign(math.inf, moved) if moved else 0.0


def _short(path: pathlib.Path) -> str:
    """A path from here where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
