"""Writes one self-contained HTML page about a run, or about several beside each other.

    python -m moco_tf.report --workdir=runs/v2
    python -m moco_tf.report --workdir=runs/moco,runs/simclr --output=comparison.html

The page asks for nothing over a network. Curves, table and recipe are of all runs, pictures of the first one. What
TensorBoard shows besides curves (sample views, the embedding projector) goes to the first one's tensorboard/report/.
"""

import os
import pathlib
import time
import types

from moco_tf import __version__
from moco_tf.config import define
from moco_tf.config.options import Report
from moco_tf.errors import UserError
from moco_tf.reporting import board, curves, page, runs, sections
from moco_tf.reporting.runs import Run
from moco_tf.reporting.subject import Subject, examine
from moco_tf.run import program
from moco_tf.training import device

_VIEWED = 1000  # test images whose views give alignment and uniformity
_NAMED = 4  # runs in the title
_SEED = 0  # of what is drawn for the page: two pages of one run show the same


def main(options: Report) -> None:
    """Writes the report of --workdir."""
    o = types.SimpleNamespace(**define.values_of(options))
    found = runs.read_all(o.workdir or [])
    output = pathlib.Path(o.output or found[0].folder / "report.html")
    check_output(output)
    for run in found:
        print("".join(f"note: {complaint}\n" for complaint in run.complaints), end="", flush=True)
    device.configure(0, 1)
    made, the_map = of_images(o, found)
    made |= of_files(found)
    text = page.render(**made, data={"map": the_map, "charts": sections.readings(made)})
    page.write(output, text)
    print(f"written to {output} ({len(text.encode(errors='replace')) / 1e6:.1f} MB)", flush=True)


def check_output(path: pathlib.Path) -> None:
    """Refuses a page that could not be written, before the work."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"--output={path} is a folder; expected the file to write, such as {path / 'report.html'}")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be written: {folder} is no writable folder; give another --output")


def of_files(found: list[Run]) -> dict[str, object]:
    """The sections that need nothing but the run folders' files."""
    drawn = sections.charts(curves.CHARTS, found)
    names = ", ".join(run.name for run in found[:_NAMED]) + (
        f" and {len(found) - _NAMED} more" if found[_NAMED:] else ""
    )
    return {
        "title": f"Report of {names}",
        "subtitle": f"{time.strftime('%Y-%m-%d %H:%M')}, moco_tf {__version__}",
        "footer": f"Written by python -m moco_tf.report, moco_tf {__version__}.",
        "complaints": [complaint for run in found for complaint in run.complaints],
        "tiles": sections.tiles(found),
        "results": sections.results(found),
        "charts": drawn or "metrics.jsonl holds no curves.",
        "no_knn": sections.no_knn(found),
        "speed": sections.speed(found),
        "recipe": sections.recipe(found),
    }


def of_images(o: object, found: list[Run]) -> tuple[dict[str, object], dict | None]:
    """The sections that need images and an encoder, and the map's data for the page's script."""
    if not o.images:
        return dict.fromkeys(("views", "neighbours", "map", "classes", "spread"), "Left out by --noimages."), None
    first = found[0]
    views, pairs = sections.views(first, o.data_dir)
    made, the_map = pictured(o, first, look_at(o, first), pairs)
    print("computing alignment and uniformity", flush=True)
    return made | {"views": views, "spread": sections.spread(found, o.data_dir, _VIEWED)}, the_map


def look_at(o: object, run: Run) -> Subject | str:
    """The first run's images and features, or why there are none."""
    print(f"{run.name}: computing features", flush=True)
    subject = sections.attempt(examine, run, o.data_dir, o.bank_images, o.test_images)
    if isinstance(subject, str):
        print(f"{run.name}: no features: {subject}", flush=True)
    return subject


def pictured(o: object, run: Run, subject: Subject | str, pairs: list) -> tuple[dict, dict | None]:
    """(neighbours, map and classes of the first run, the map's data); writes TensorBoard's part too."""
    if isinstance(subject, str):
        return dict.fromkeys(("neighbours", "map", "classes"), f"No features: {subject}."), None
    print(f"{run.name}: drawing", flush=True)
    the_map, sheet, rows = sections.the_map(subject, o.map_images, _SEED)
    try:
        folder = board.fresh_folder(run.folder)
        if pairs:
            board.write_views(folder, pairs)
        if sheet:
            board.write_projector(folder, subject.test, rows, sections.metadata(subject, rows), sheet)
    except OSError as error:
        print(f"{run.name}: nothing written for TensorBoard ({error.strerror or error})", flush=True)
    made = {
        "neighbours": sections.neighbours(subject, _SEED),
        "map": the_map,
        "classes": sections.class_table(run, subject),
    }
    return made, None if isinstance(the_map, str) else the_map.pop("data")


if __name__ == "__main__":
    program.run(main, Report)
