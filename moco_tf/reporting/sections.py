"""The sections of the page: each is what the template shows, or one sentence that says why there is nothing to show."""

import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from moco_tf import table
from moco_tf.errors import UserError
from moco_tf.reporting import classes, curves, embedding_map, pictures, svg
from moco_tf.reporting.runs import Run
from moco_tf.reporting.subject import Subject, sample_views
from moco_tf.reporting.subject import spread as spread_of_views

Section = dict | str

_THUMBNAIL = 48  # pixels of a side on the map
_SPRITE = 2_500_000  # bytes of all thumbnails of the map
_PICTURE = 96  # pixels of a side elsewhere
_QUERIES, _PAIRS = 8, 12


def attempt(make: Callable, *arguments: object) -> object:
    """What make returns, or the words of its UserError."""
    try:
        return make(*arguments)
    except UserError as error:
        return " ".join(str(error).split())


def tiles(runs: list[Run]) -> list[tuple[str, str]]:
    """(name, value) of the figures that a reader looks for first; of one run, or how many runs there are."""
    if len(runs) > 1:
        return [("runs", str(len(runs)))]
    (run,) = runs
    found = [
        ("method", run.flags.get("method")),
        ("encoder", run.flags.get("arch")),
        ("data", run.flags.get("dataset")),
    ]
    for name, metric, share in (
        ("steps", "step", False),
        ("epochs", "epoch", False),
        ("loss", "loss", False),
        ("contrast top-1", "contrast_top1", True),
        ("monitor's kNN top-1", "knn_top1", True),
    ):
        value = run.last(metric)
        found.append((name, None if value is None else curves.shown(value, share)))
    return [(name, value) for name, value in found if value]


def results(runs: list[Run]) -> Section:
    """The table of moco_tf.table."""
    rows = list(table.rows({run.name: run.folder for run in runs}))
    if all(cell == "-" for _, cells in rows for cell in cells):
        return "Nothing was evaluated yet: moco_tf.knn and moco_tf.lincls with --load of the run folder do that."
    return {"columns": list(table.COLUMNS.values()), "rows": rows}


def charts(specs: tuple[curves.Chart, ...], runs: list[Run]) -> list[dict]:
    """What can be drawn of them."""
    return [drawn for chart in specs if (drawn := curves.draw(chart, runs))]


def readings(made: dict[str, Section | list]) -> dict[str, dict]:
    """The numbers of all charts of the page, for its script."""
    drawn = made["charts"] if isinstance(made["charts"], list) else []
    drawn = drawn + (made["speed"]["charts"] if isinstance(made["speed"], dict) else [])
    return {one["chart"].name: one["data"] for one in drawn}


def no_knn(runs: list[Run]) -> str:
    """Why there is no kNN curve, where there is none."""
    return "" if any(run.last("knn_top1") is not None for run in runs) else "The monitor was off (--knn_every=0)."


def speed(runs: list[Run]) -> Section:
    """Throughput and the time spent waiting for input."""
    rows = []
    for run in runs:
        rates = [value for _, value in run.series("images_per_second", "step")]
        waits = [value for _, value in run.series("input_wait", "step")]
        if rates:
            shown = [curves.shown(value) for value in (np.median(rates), min(rates), max(rates))]
            rows.append([run.name, *shown, curves.shown(np.median(waits), True) if waits else "-"])
    if not rows:
        return "metrics.jsonl holds no images_per_second."
    waiting = any(run.last("input_wait") is not None for run in runs)
    without = "The run did not record how long it waited for input; moco_tf.bench measures that."
    return {"rows": rows, "charts": charts(curves.SPEED, runs), "absent": [] if waiting else [without]}


def recipe(runs: list[Run]) -> dict:
    """The runs, and which of their flags differ."""
    names = sorted(set().union(*(run.flags for run in runs)) - {"workdir"})
    table = [(name, [run.flags.get(name, "-") for run in runs]) for name in names]
    return {"runs": runs, "differing": [(name, values) for name, values in table if len(set(values)) > 1]}


def views(run: Run, data_dir: str | None) -> tuple[Section, list[np.ndarray]]:
    """Pairs of views as the network sees them; also as arrays."""
    found = attempt(sample_views, run, data_dir, _PAIRS)
    if isinstance(found, str):
        return f"No views: {found}.", []
    pairs, looked_at = found
    says = f"Random views of {len(pairs)} training images as {run.name} sees them, normalisation undone"
    says += "; two of each image." if looked_at > 1 else "; this method looks at one of each image."
    return {"says": says, "pairs": [[pictures.uri(view, 160) for view in pair[:looked_at]] for pair in pairs]}, pairs


def neighbours(subject: Subject, seed: int) -> dict:
    """Some test images, each with the training images whose features are nearest."""
    rows = np.random.default_rng(seed).permutation(len(subject.test.features))[:_QUERIES]
    queries = []
    for row in rows:
        near = [_near(subject, row, *pair) for pair in zip(subject.similarities[row], subject.nearest[row])]
        label = _name(subject, subject.test.labels[row])
        queries.append({"source": pictures.uri(subject.test.image(row), _PICTURE), "label": label, "near": near})
    says = (
        f"The {subject.nearest.shape[1]} nearest of {len(subject.bank.features):,} training images, by the cosine "
        "of the pooled features, nearest first."
    )
    if subject.class_names:
        says += " ✓ and a solid frame: the same class; ✗ and a dashed frame: another one, which is named."
    return {"says": f"{says} {subject.note}", "queries": queries}


def _near(subject: Subject, row: int, similarity: float, neighbour: int) -> dict:
    label, own = subject.bank.labels[neighbour], subject.test.labels[row]
    return {
        "source": pictures.uri(subject.bank.image(neighbour), _PICTURE),
        "similarity": f"{similarity:.3f}",
        "label": _name(subject, label),
        "same": bool(label == own) if min(label, own) >= 0 else None,
    }


def _name(subject: Subject, label: int) -> str:
    return subject.class_names[label] if 0 <= label < len(subject.class_names) else ""


def the_map(subject: Subject, count: int, seed: int) -> tuple[Section, Image.Image | None, np.ndarray]:
    """The map for the page; also the sheet of thumbnails and the test images that are on it."""
    chosen = np.random.default_rng(seed).permutation(len(subject.test.features))[:count]
    rows = np.sort(chosen)
    points = attempt(embedding_map.project, subject.test.features[rows], seed)
    if isinstance(points, str):
        return f"No map: {points}.", None, rows
    labels = subject.test.labels[rows]
    drawn, (x, y), looks = embedding_map.draw(points, labels)
    side = min(_THUMBNAIL, *(subject.test.source.image_shape or (_THUMBNAIL,)))
    sheet = pictures.sprite((subject.test.image(row) for row in rows), len(rows), side)
    found = {
        "svg": drawn,
        "count": f"{len(rows):,}",
        "says": f"t-SNE of the pooled features of {len(rows):,} test images; marks that lie close together look alike "
        "to the encoder. Distances between groups mean little.",
        "classes": [{**look, "name": _name(subject, look["label"]) or "no class"} for look in looks],
    }
    found["classes"] *= len(looks) > 1  # one alone tells nothing
    found["many"] = len(looks) > classes.MANY
    if max(look["label"] for look in looks) >= svg.LOOKS:
        found["says"] += f" Colours with marks come again after {svg.LOOKS} classes."
    found["data"] = {"x": x, "y": y, "labels": labels.tolist(), "names": subject.class_names, "side": side}
    found["data"] |= {"width": embedding_map.SIDE, "columns": sheet.width // side, "files": _files(subject, rows)}
    found["data"] |= {"index": subject.test.indices[rows].tolist(), "sprite": pictures.sprite_uri(sheet, _SPRITE)}
    found["data"]["predicted"] = None if subject.predicted is None else subject.predicted[rows].tolist()
    return found, sheet, rows


def _files(subject: Subject, rows: np.ndarray) -> list[str] | None:
    source = subject.test.source
    if source.fixed_size:
        return None
    return [pathlib.PurePath(source.describe(int(subject.test.indices[row]))).name for row in rows]


def metadata(subject: Subject, rows: np.ndarray) -> list[tuple[str, ...]]:
    """Columns for TensorBoard's projector."""
    files = _files(subject, rows) or [str(index) for index in subject.test.indices[rows]]
    taken = [""] * len(rows) if subject.predicted is None else [_name(subject, c) for c in subject.predicted[rows]]
    names = [_name(subject, label) for label in subject.test.labels[rows]]
    return [("class", "kNN", "image"), *zip(names, taken, files)]


def class_table(run: Run, subject: Subject) -> Section:
    """Per-class accuracy and confusions of the kNN."""
    evaluated = classes.of_knn(run, subject.checkpoint)
    if evaluated is None and subject.predicted is None:
        return "The images have no labels, so there are no classes to tell apart."
    counts, names, says = evaluated or classes.of_subject(subject)
    matrix = f"With more than {classes.MANY} classes the matrix is too large for a page; "
    matrix += "the run folder has it: knn/confusion.csv." if evaluated else "moco_tf.knn writes it to confusion.csv."
    return {"says": says, "no_matrix": matrix, **classes.summary(counts, names)}


def spread(runs: list[Run], data_dir: str | None, images: int) -> Section:
    """Alignment and uniformity of every run."""
    rows, missing = [], []
    for run in runs:
        found = attempt(spread_of_views, run, data_dir, images)
        if isinstance(found, str):
            missing.append(f"Not for {run.name}: {found}.")
        else:
            rows += [(run.name, name, figures) for name, figures in found.items()]
    if not rows:
        return missing[0]
    says = (
        "Alignment: the mean squared distance of two views of an image, 0 to 4. Uniformity: the logarithm of the mean "
        "of exp(-2 d²) over pairs of images, towards -4 when many dimensions are filled evenly. Features are "
        "normalised; lower is better for both (Wang & Isola, 2020)."
    )
    return {"says": says, "rows": rows, "absent": missing, "several": len(runs) > 1}
