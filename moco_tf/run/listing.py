"""Lists of images: where they are written, and the page with the pictures."""

import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from moco_tf.config import extras
from moco_tf.data.sets import folder
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.reporting.shown import Query
from moco_tf.run.embedding import Split
from moco_tf.run.folder import RunFolder


def output_of(given: str | None, beside: str | None, name: str) -> pathlib.Path:
    """The .csv to write. Raises UserError where it is none, cannot be written, or is there already.

    Args:
        given: --output.
        beside: a run folder, a checkpoint or another file; the default is in the one, or beside the other.
        name: of the default, which may be there already.
    """
    place = RunFolder.around(pathlib.Path(beside or "")).path
    output = pathlib.Path(given) if given else (place if place.is_dir() else place.parent) / f"{name}.csv"
    if output.suffix.lower() != ".csv":
        raise UserError(f"--output={output} came, expected a name that ends in .csv; the page goes beside it")
    if not output.parent.is_dir():
        raise UserError(f"--output={output} is in a folder that is not there; make it, or give another")
    own = pathlib.Path(beside).with_suffix(".csv") if beside else None  # may hold the paths of the vectors
    for path in (output, output.with_suffix(".html")):
        if (given or path == own) and path.exists():
            raise UserError(f"{path} exists already; give another --output, or move it away")
    return output


def write_page(output: pathlib.Path, title: str, says: list[str], queries: list[Query], splits: list[Split]) -> None:
    """Writes the page beside a .csv; says so where the packages that it needs are not installed.

    Args:
        output: the .csv.
        title: of the page.
        says: sentences above the pictures.
        queries: the images.
        splits: where they are; those that are in none are read as files.
    """
    try:
        extras.need("the page", extras.REPORT, "report")
    except UserError as error:
        print(f"no page: {error}", flush=True)
        return
    from moco_tf.reporting import gallery

    read = reader(splits, (one.path for query in queries for one in (query.image, *query.near)))
    path = output.with_suffix(".html")
    missing = gallery.write(path, title, says, queries, read)
    without = "; no picture could be read, give --load or --dataset and --data_dir" if missing else ""
    print(f"page: {path}{without}", flush=True)


def reader(splits: list[Split], paths: Iterable[str]) -> Callable[[str], np.ndarray | None]:
    """What reads the images of these paths, uint8 HxWx3: of the splits, or files; None for what cannot be read."""
    wanted, places = set(paths), dict[str, tuple[Source, int]]()
    for split in splits:
        named = ((split.path(index), index) for index in range(split.source.num_examples))
        places |= {path: (split.source, index) for path, index in named if path in wanted}
    files = sorted(path for path in wanted - places.keys() if os.path.isfile(path))
    if files:
        source = folder.of_paths(files)
        places |= {path: (source, index) for index, path in enumerate(files)}

    def read(path: str) -> np.ndarray | None:
        if path not in places:
            return None
        source, index = places[path]
        try:
            return source.image(index)
        except (tf.errors.OpError, UnicodeDecodeError):  # the latter when a message quotes the image's bytes
            return None

    return read
