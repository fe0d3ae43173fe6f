"""The sections of the page: each is what the template shows, or one sentence that says why there is nothing to show."""

import dataclasses
import pathlib
import time
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from moco_tf import __version__
from moco_tf.config import define
from moco_tf.config.options import Pretrain
from moco_tf.reporting import accuracies, attention, charts, classes, embedding_map, pictures, svg
from moco_tf.reporting.examined import Examination, Examined, SampledViews, Spread, attempt
from moco_tf.reporting.results import RunRecord

Section = dict[str, Any] | str

_THUMBNAIL = 48  # pixels of a side on the map
_SPRITE = 2_500_000  # bytes of all thumbnails of the map
_PICTURE = 96  # pixels of a side elsewhere
_QUERIES, _FIRST = 40, 8  # test images whose neighbours are shown; before a search
_NAMED = 4  # runs in the title
_SEED = 0  # of what is drawn for the page: two pages of one run show the same


@dataclasses.dataclass(frozen=True)
class DrawnMap:
    """The map of features.

    Args:
        shown: what the template shows.
        data: numbers for the page's script; None without a map.
        sheet: the thumbnails; None without a map.
        rows: the test images on it.
    """

    shown: Section
    data: dict[str, Any] | None
    sheet: Image.Image | None
    rows: np.ndarray


def of_files(records: list[RunRecord]) -> dict[str, Any]:
    """What the page shows of the run folders' files."""
    drawn = drawable(charts.CHARTS, records)
    throughput = speed(records)
    names = ", ".join(run.name for run in records[:_NAMED])
    names += f" and {len(records) - _NAMED} more" if records[_NAMED:] else ""
    every = drawn + (throughput["charts"] if isinstance(throughput, dict) else [])
    return {
        "title": f"Report of {names}",
        "subtitle": f"{time.strftime('%Y-%m-%d %H:%M')}, moco_tf {__version__}",
        "footer": f"Written by python -m moco_tf.report, moco_tf {__version__}.",
        "complaints": [complaint for run in records for complaint in run.complaints],
        "tiles": tiles(records),
        "runs": several(records) if len(records) > 1 else None,
        "results": evaluated(records),
        "charts": drawn or "metrics.jsonl holds no curves.",
        "no_knn": no_knn(records),
        "speed": throughput,
        "recipe": recipe(records),
        "environment": environment(records),
        "attention": None,
        "data": {"map": None, "charts": {one["chart"].name: one["data"] for one in every}},
    }


def add_images(
    made: dict[str, Any], records: list[RunRecord], examination: Examination | None, drawn: DrawnMap | None
) -> None:
    """Adds what the page shows of images to its other sections.

    Args:
        made: of `of_files`.
        records: the runs.
        examination: what was computed; None: nothing, as --noimages says.
        drawn: the map; None: likewise.
    """
    if not examination or not drawn:
        made |= dict.fromkeys(("views", "neighbours", "map", "classes", "spread"), "Left out by --noimages.")
        return
    first = examination.first
    made["views"] = views(records[0], examination.views)
    made["spread"] = spread(examination.spread)
    made["map"], made["data"]["map"] = drawn.shown, drawn.data
    if isinstance(first, str):
        made |= dict.fromkeys(("neighbours", "classes"), f"No features: {first}.")
    else:
        made |= {"neighbours": neighbours(first), "classes": class_table(records[0], first)}
        made["attention"] = attention.section(first.attended, first.kind)


def tiles(runs: list[RunRecord]) -> list[tuple[str, str]]:
    """(name, value) of the figures that a reader looks for first, of one run."""
    if len(runs) > 1:
        return []
    (run,) = runs
    found = [
        ("method", run.flags.get("method")),
        ("encoder", run.flags.get("arch")),
        ("data", data_of(run)),
    ]
    for name, metric, share in (
        ("steps", "step", False),
        ("epochs", "epoch", False),
        ("loss", "loss", False),
        ("contrast top-1", "contrast_top1", True),
        ("monitor's kNN top-1", "knn_top1", True),
    ):
        value = run.metrics.last(metric)
        found.append((name, None if value is None else charts.shown(value, share)))
    return [(name, value) for name, value in found if value]


def data_of(run: RunRecord) -> str | None:
    """The name of its data set, of images in folders with that of their folder; None where it is not known."""
    name, place = run.flags.get("dataset"), run.flags.get("data_dir")
    return f"{name} ({pathlib.PurePath(place).name})" if name == "folder" and place else name


def several(runs: list[RunRecord]) -> dict[str, Any]:
    """A row for each run: name, method, encoder, data, epochs, loss; a sentence where their images differ."""
    rows = []
    for run in runs:
        last = [run.metrics.last(metric) for metric in ("epoch", "loss")]
        words = [run.flags.get("method"), run.flags.get("arch"), data_of(run)]
        rows.append((run.name, [word or "-" for word in words], ["-" if v is None else charts.shown(v) for v in last]))
    images = {(run.flags.get("dataset"), run.flags.get("data_dir")) for run in runs}
    return {"rows": rows, "says": "" if len(images) == 1 else "Not all runs learn from the same images."}


def evaluated(runs: list[RunRecord]) -> Section:
    """The tables of moco_tf.table."""
    tables = accuracies.tables({run.name: run.folder for run in runs})
    return {"tables": tables} if tables else accuracies.NOTHING


def drawable(specs: tuple[charts.Chart, ...], runs: list[RunRecord]) -> list[dict[str, Any]]:
    """Those of the charts that can be drawn."""
    return [drawn for chart in specs if (drawn := charts.draw(chart, runs))]


def no_knn(runs: list[RunRecord]) -> str:
    """Why there is no kNN curve, where there is none."""
    known = any(run.metrics.last("knn_top1") is not None for run in runs)
    return "" if known else "No kNN was measured on the way (--knn_every=0, or --monitor without knn)."


def speed(runs: list[RunRecord]) -> Section:
    """Throughput and the time spent waiting for input."""
    rows = []
    for run in runs:
        rates = [value for _, value in run.metrics.series("images_per_second", "step")]
        waits = [value for _, value in run.metrics.series("input_wait", "step")]
        if rates:
            shown = [charts.shown(value) for value in (float(np.median(rates)), min(rates), max(rates))]
            rows.append([run.name, *shown, charts.shown(float(np.median(waits)), True) if waits else "-"])
    if not rows:
        return "metrics.jsonl holds no images_per_second."
    waiting = any(run.metrics.last("input_wait") is not None for run in runs)
    without = "The run did not record how long it waited for input; moco_tf.bench measures that."
    return {"rows": rows, "charts": drawable(charts.SPEED, runs), "absent": [] if waiting else [without]}


def recipe(runs: list[RunRecord]) -> dict[str, Any]:
    """The runs, which of their flags differ, and which of each run's are not the defaults: None: not known."""
    names = sorted(set().union(*(run.flags for run in runs)) - {"workdir"})
    table = [(name, [run.flags.get(name, "-") for run in runs]) for name in names]
    differing = [(name, values) for name, values in table if len(set(values)) > 1]
    return {"runs": [(run, _set(run)) for run in runs], "names": [run.name for run in runs], "differing": differing}


def _set(run: RunRecord) -> set[str] | None:
    """The flags that a recipe or the command line has set; None where the defaults are not known."""
    chosen = [f"--{name}={run.flags[name]}" for name in ("method", "arch") if name in run.flags]
    try:
        defaults = define.texts(define.flagfile(define.parse(Pretrain, ["", *chosen])).splitlines())
    except flags.Error:
        return None
    return {name for name, text in run.flags.items() if defaults.get(name) != text} | {"method", "arch"} & set(
        run.flags
    )


def environment(runs: list[RunRecord]) -> Section:
    """What each run's newest start ran on, and the flags that differ from its recipe."""
    found = {run.name: run.folder.read_environment() for run in runs}
    texts = {name: _environment_texts(entries[-1]) for name, entries in found.items() if entries}
    if not texts:
        return "No environment.json: the runs are of an earlier version."
    names = dict.fromkeys(name for each in texts.values() for name in each)
    starts = max(map(len, found.values()))
    says = f"Of the newest start; environment.json in the run folder has {starts}." if starts > 1 else ""
    return {"says": says, "runs": [*texts], "rows": [(n, [own.get(n, "-") for own in texts.values()]) for n in names]}


def _environment_texts(entry: dict[str, Any]) -> dict[str, str]:
    """An entry of environment.json as texts by name, without the command, whose paths are nobody else's."""
    found: dict[str, Any] = {}
    for name, value in entry.items():
        if name in ("machine", "versions") and isinstance(value, dict):
            found |= value
        elif isinstance(value, dict):
            pairs = ((key, " to ".join(map(str, own)) if isinstance(own, list) else own) for key, own in value.items())
            found["differs from the recipe" if name == "changed" else name] = ", ".join(f"{k} {v}" for k, v in pairs)
        elif name != "command":
            found[name] = value
    return {str(name): str(value) for name, value in found.items() if value not in (None, "")}


def views(run: RunRecord, found: SampledViews | str) -> Section:
    """Pairs of views as the network sees them."""
    if isinstance(found, str):
        return f"No views: {found}."
    says = f"Random views of {len(found.pairs)} training images as {run.name} sees them, normalisation undone"
    says += "; two of each image." if found.looked_at > 1 else "; this method looks at one of each image."
    return {"says": says, "pairs": [[pictures.uri(v, 160) for v in pair[: found.looked_at]] for pair in found.pairs]}


def neighbours(examined: Examined, seed: int = _SEED) -> dict[str, Any]:
    """Some test images, each with the training images whose features are nearest."""
    rows = np.random.default_rng(seed).permutation(len(examined.test.features))[:_QUERIES]
    queries = []
    for row in rows:
        near = [_near(examined, row, *pair) for pair in zip(examined.similarities[row], examined.nearest[row])]
        label = examined.class_name(examined.test.labels[row])
        name = (examined.test.files(np.array([row])) or [f"{examined.kind} {examined.test.indices[row]}"])[0]
        shown = {"source": pictures.uri(examined.test.image(row), _PICTURE), "label": label, "title": name, "note": ""}
        queries.append({**shown, "near": near, "text": f"{label} {name}".lower()})
    says = (
        f"The {examined.nearest.shape[1]} nearest of {len(examined.bank.features):,} training images, by the cosine "
        "of the pooled features, nearest first."
    )
    if examined.class_names:
        says += " ✓ and a solid frame: the same class; ✗ and a dashed frame: another one, which is named."
    says = f"{says} {examined.note}"
    return {
        "says": says,
        "queries": queries,
        "kind": examined.kind,
        "near_kind": "training image",
        "first": _FIRST,
        "columns": 8,
    }


def _near(examined: Examined, row: int, similarity: float, neighbour: int) -> dict[str, Any]:
    label, own = examined.bank.labels[neighbour], examined.test.labels[row]
    return {
        "source": pictures.uri(examined.bank.image(neighbour), _PICTURE),
        "similarity": f"{similarity:.3f}",
        "label": examined.class_name(label),
        "same": bool(label == own) if min(label, own) >= 0 else None,
        "title": "",
        "note": "",
    }


def the_map(examined: Examined | str, count: int, seed: int = _SEED) -> DrawnMap:
    """The map of some test images.

    Args:
        examined: the images, or why there are none.
        count: at most so many images.
        seed: of the choice and the map.
    """
    if isinstance(examined, str):
        return DrawnMap(f"No features: {examined}.", None, None, np.zeros(0, int))
    test = examined.test
    rows = np.sort(np.random.default_rng(seed).permutation(len(test.features))[:count])
    points = attempt(embedding_map.project, test.features[rows], seed)
    if isinstance(points, str):
        return DrawnMap(f"No map: {points}.", None, None, rows)
    drawn, places, looks = embedding_map.draw(points, test.labels[rows])
    side = min(_THUMBNAIL, *(test.source.image_shape or (_THUMBNAIL,)))
    sheet = pictures.sprite((test.image(row) for row in rows), len(rows), side)
    shown = _shown_map(examined, drawn, looks, len(rows))
    return DrawnMap(shown, _map_data(examined, places, sheet, rows), sheet, rows)


def _shown_map(examined: Examined, drawn: str, looks: list[dict[str, Any]], count: int) -> dict[str, Any]:
    says = (
        f"t-SNE of the pooled features of {count:,} {examined.kind}s; marks that lie close together look alike to the "
        "encoder. Distances between groups mean little."
    )
    if max(look["label"] for look in looks) >= svg.LOOKS:
        says += f" Colours with marks come again after {svg.LOOKS} classes."
    named = [{**look, "name": examined.class_name(look["label"]) or "no class"} for look in looks]
    return {
        "svg": drawn,
        "count": f"{count:,}",
        "says": says,
        "classes": named if len(looks) > 1 else [],  # one alone tells nothing
        "many": len(looks) > classes.MANY,
    }


def _map_data(examined: Examined, places: list[list[float]], sheet: Image.Image, rows: np.ndarray) -> dict[str, Any]:
    """What the page's script reads.

    Args:
        examined: the images.
        places: x and y of each on the map.
        sheet: their thumbnails.
        rows: which test images are on the map.
    """
    test, (x, y) = examined.test, places
    columns = int(np.ceil(np.sqrt(len(rows))))
    return {
        "x": x,
        "y": y,
        "labels": test.labels[rows].tolist(),
        "names": examined.class_names,
        "side": sheet.width // columns,
        "width": embedding_map.SIDE,
        "columns": columns,
        "files": test.files(rows),
        "index": test.indices[rows].tolist(),
        "kind": examined.kind,
        "sprite": pictures.sprite_uri(sheet, _SPRITE),
        "predicted": None if examined.predicted is None else examined.predicted[rows].tolist(),
    }


def class_table(run: RunRecord, examined: Examined) -> Section:
    """Accuracy of each class and confusions of the kNN."""
    evaluated = found = classes.of_knn(run, examined.checkpoint)
    if found is None and examined.predicted is not None:
        found = classes.of_examined(examined, examined.predicted)
    if found is None:
        return "The images have no labels, so there are no classes to tell apart."
    matrix = f"With more than {classes.MANY} classes the matrix is too large for a page; "
    matrix += "the run folder has it in confusion.csv." if evaluated else "moco_tf.knn writes it to confusion.csv."
    return {"says": found.says, "no_matrix": matrix, **classes.summary(found)}


def spread(found: dict[str, Spread | str]) -> Section:
    """The label-free measures of every run, by its name."""
    rows, missing = [], []
    for name, figures in found.items():
        if isinstance(figures, str):
            missing.append(f"Not for {name}: {figures}.")
        else:
            rows += [(name, what, list(own.values())) for what, own in figures.items()]
    if not rows:
        return missing[0]
    says = (
        "Of training images, without labels. RankMe: how many dimensions the features fill; LiDAR: in how many of them "
        "images differ more than views of one image do; up to the width of the features, higher is better. alpha-ReQ: "
        "how fast the spectrum of the features falls; near 1 is best. Compare runs of one method and network. "
        "Alignment: the mean squared distance of two views of an image, 0 to 4. Uniformity: the logarithm of the mean "
        "of exp(-2 d²) over pairs of images, towards -4 when many dimensions are filled evenly. Features are "
        "normalised; lower is better for both (Wang & Isola, 2020)."
    )
    return {"says": says, "rows": rows, "absent": missing, "several": len(found) > 1}
