"""Curves of one or several runs: drawn by matplotlib, read out by the page's script."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from moco_tf.reporting import svg
from moco_tf.reporting.results import RunRecord

_POINTS = 300  # of a curve; longer ones become means of neighbouring lines
_WIDTH, _HEIGHT = 400, 250
_LEAST_SPAN = 0.2  # of the largest value, where an axis does not begin at 0
_DASHES = ("-", (0, (4, 2)))
_DASH_SIGNS = "─┄"  # the same in text


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is drawn: metrics by their names for people; a share is shown in percent; whether the axis begins at 0."""

    name: str
    title: str
    metrics: dict[str, str]
    share: bool = False
    says: str = ""
    from_zero: bool = True


CHARTS = (
    Chart("loss", "Loss", {"loss": "loss"}, False, "With a queue it first rises while real keys replace noise.", False),
    Chart(
        "contrast",
        "Contrast accuracy",
        {"contrast_top1": "top-1", "contrast_top5": "top-5"},
        True,
        "How often the own key is among the likeliest one, or five.",
    ),
    Chart("train", "Training accuracy", {"train_top1": "top-1", "train_top5": "top-5"}, True),
    Chart("knn", "kNN accuracy", {"knn_top1": "top-1", "knn_top5": "top-5"}, True, "Of the monitor (--knn_every)."),
    Chart(
        "probe", "Probe that learns along", {"probe_top1": "test images", "probe_train_top1": "training views"}, True
    ),
    Chart("ranks", "Label-free ranks", {"rankme": "RankMe", "lidar": "LiDAR"}, says="Up to the features' width."),
    Chart("rate", "Learning rate", {"learning_rate": "learning rate"}),
    Chart("std", "Deviation of features", {"feature_std": "feature_std"}, says="0 where the features collapsed."),
)
SPEED = (
    Chart("speed", "Images per second", {"images_per_second": "images/s"}),
    Chart("wait", "Waiting for input", {"input_wait": "share of time"}, True, "The share of a step's time."),
)


def draw(chart: Chart, runs: list[RunRecord]) -> dict[str, Any] | None:
    """The chart for the page: svg, legend, data for the script, a table; None where no run has its metrics."""
    axis = "epoch" if all("epoch" in line for run in runs for line in run.metrics.lines) else "step"
    lines = [
        (number, style, _label(run.name if len(runs) > 1 else "", label, len(chart.metrics)), points)
        for number, run in enumerate(runs)
        for style, (metric, label) in enumerate(chart.metrics.items())
        if (points := _thinned(run.metrics.series(metric, axis)))
    ]
    if not lines:
        return None
    with svg.figure(chart.name, _WIDTH, _HEIGHT) as figure:
        axes = figure.add_axes((0.16, 0.19, 0.81, 0.76))
        data = []
        for run, style, _, points in lines:
            _plot(axes, points, run if len(runs) > 1 else style, style)
        axes.set_xlabel(axis)
        axes.grid(axis="y", linewidth=0.8)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, chart.share)))
        note = _settle(axes, chart, [points for *_, points in lines])
        drawn = svg.text(figure)  # settles the limits, which `places` needs
        for _, _, label, points in lines:
            x, y = svg.places(figure, points)
            data.append({"label": label, "at": [p[0] for p in points], "value": [p[1] for p in points], "x": x, "y": y})
    return {
        "chart": chart,
        "says": f"{chart.says} {note}".strip(),
        "axis": axis,
        "svg": drawn,
        "legend": _legend(chart, runs, lines),
        "summary": _summary(chart, axis, lines),
        "data": {"axis": axis, "share": chart.share, "series": data, "width": _WIDTH, "height": _HEIGHT},
    }


def _settle(axes: Axes, chart: Chart, curves: list[list[tuple[float, float]]]) -> str:
    """Sets the limits, so that little is not drawn as much; says where an axis does not begin at 0.

    Across from 0 to the last point; upwards from 0, or, of a loss and of values below 0, over a fifth of the largest.
    """
    points = np.array([point for curve in curves for point in curve])
    (last, high), low = points.max(axis=0), float(points[:, 1].min())
    axes.set_xlim(min(0.0, float(points[:, 0].min())), float(last) * 1.02 or 1.0)
    if low >= 0 and (chart.from_zero or low < 0.3 * high):
        axes.set_ylim(0, float(high) * 1.06 or 1.0)
        return ""
    reach = 0.55 * max(high - low, _LEAST_SPAN * max(abs(high), abs(low)))
    bottom, top = (high + low) / 2 - reach, (high + low) / 2 + reach
    axes.set_ylim(bottom, top)
    return "The axis does not begin at 0." if bottom > 0 else ""


def _plot(axes: Axes, points: list[tuple[float, float]], look: int, style: int) -> None:
    (x, y), found = zip(*points), svg.look(look)
    axes.plot(
        x,
        y,
        color=svg.colour(found["colour"]),
        linestyle=_DASHES[style],
        marker=svg.MARKERS[found["marker"]],
        markersize=5,
        markevery=max(1, len(x) // 8),
        markeredgecolor=svg.colour("surface"),
        markeredgewidth=0.7,
    )


def _legend(chart: Chart, runs: list[RunRecord], lines: list) -> list[dict[str, str]]:
    """A line for each curve; where several runs have several metrics, for each run and for each metric."""
    if len(runs) > 1 and len(chart.metrics) > 1:
        found = [_entry(runs[number].name, number, 0) for number in sorted({number for number, *_ in lines})]
        names, drawn = list(chart.metrics.values()), sorted({style for _, style, *_ in lines})
        return found + [{"label": names[s], "colour": "ink", "sign": _DASH_SIGNS[s] * 3} for s in drawn]
    return [_entry(label, number if len(runs) > 1 else style, style) for number, style, label, _ in lines]


def _entry(label: str, number: int, style: int) -> dict[str, str]:
    found, dash = svg.look(number), _DASH_SIGNS[style]
    return {"label": label, "colour": f"c{found['colour']}", "sign": f"{dash}{found['sign']}{dash}"}


def _label(run: str, metric: str, metrics: int) -> str:
    return f"{run}, {metric}" if run and metrics > 1 else run or metric


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _POINTS:
        return points
    return [tuple(part.mean(axis=0).tolist()) for part in np.array_split(np.array(points), _POINTS)]


def _summary(chart: Chart, axis: str, lines: list) -> list[list[str]]:
    """A row of words for each line: label, first, smallest, largest, newest value."""
    rows = []
    for _, _, label, points in lines:
        values = [value for _, value in points]
        rows.append([label, *(shown(v, chart.share) for v in (values[0], min(values), max(values), values[-1]))])
    return rows


def _tick(value: float, share: bool) -> str:
    return f"{100 * value:.4g} %" if share else shown(value)


def shown(value: float, share: bool = False) -> str:
    """A number for people."""
    return f"{100 * value:.1f} %" if share else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
