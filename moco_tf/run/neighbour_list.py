"""The nearest images of one image, or of each: N rows of D, k neighbours, in blocks of Q queries."""

import contextlib
import csv
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tqdm

from moco_tf.config.options import Embed, EmbedOptions, Neighbours
from moco_tf.data.order import EVERYTHING
from moco_tf.data.records import BadImages
from moco_tf.data.sets import folder
from moco_tf.errors import UserError
from moco_tf.evaluation import approximate, features, neighbours, subject
from moco_tf.formats import vectors
from moco_tf.formats.load import SOURCES, announced
from moco_tf.reporting.shown import Query, Shown
from moco_tf.run import embedding, listing
from moco_tf.run.embedding import Split
from moco_tf.training import device, launcher
from moco_tf.training.collectives import SingleProcess
from moco_tf.training.files import replacing

_BLOCK = 4096  # queries
_SHOWN = 60  # queries on the page
_PICTURES = 48  # neighbours of each there
_COLUMNS = ("path", "split", "label", "rank", "similarity", "neighbour", "neighbour_split", "neighbour_label")

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class Near(NamedTuple):
    """An image's place in the table (-1: it is not in it) and its path; similarities and rows of its neighbours."""

    row: int
    path: str
    similarities: np.ndarray
    rows: np.ndarray


def write(o: Neighbours) -> None:
    """Searches, and writes the .csv and the page.

    Raises:
        UserError: options do not fit, or there are no vectors.
    """
    output = listing.output_of(o.neighbours.output, o.neighbours.vectors or o.encoder.load, "neighbours")
    if o.neighbours.feature == "dense":
        raise UserError("--feature=dense came, expected backbone, head or patches: a map is no vector; give another")
    with _vectors(o, output) as (table, splits):
        if launcher.is_first_rank():
            _write(o, output, table, splits)


@contextlib.contextmanager
def _vectors(o: Neighbours, output: pathlib.Path) -> Iterator[tuple[vectors.Table, list[Split]]]:
    """The vectors of the file that is named, or computed, and the images where they are known."""
    n = o.neighbours
    if n.vectors:
        device.configure(o.device.threads, 1)
        known = o.encoder.load or o.data.dataset or n.images
        yield vectors.read(pathlib.Path(n.vectors)), _images(o) if known else []
        return
    if not o.encoder.load:
        raise UserError(f"--load and --vectors are missing; give a file of moco_tf.embed, or {SOURCES}")
    file = output.with_name(f".{output.stem}.npz")
    file.unlink(missing_ok=True)  # of a search that was stopped
    given = EmbedOptions(images=n.images, split=n.split, feature=n.feature, batch_size=n.batch_size, output=str(file))
    try:
        splits = embedding.embed(Embed(o.encoder, given, o.data, o.device), says=False)
        yield vectors.read(file) if launcher.is_first_rank() else _NOTHING, splits
    finally:
        if launcher.is_first_rank():
            file.unlink(missing_ok=True)


_NOTHING = vectors.Table((), (), (), np.zeros((0, 0), np.float32))


def _images(o: Neighbours) -> list[Split]:
    return embedding.images(o.neighbours, o.data, o.encoder.load, SingleProcess())


def _write(o: Neighbours, output: pathlib.Path, table: vectors.Table, splits: list[Split]) -> None:
    total = len(table.paths)
    if total < 2:
        raise UserError("one vector came, expected two or more")
    rows, k = neighbours.Normalised(table.vectors), min(o.neighbours.k, total - 1)
    _check(rows)
    if o.neighbours.image:
        found, wanted = iter([_of_one(o, table, rows)]), None
        says = [f"The {k} nearest of {total:,} images, compared with each."]
    else:
        search, how = _search(rows, k, o.neighbours.exact)
        chosen = np.random.default_rng(0).permutation(total)[:_SHOWN]
        found, wanted = _of_each(table, rows, search, k), set(chosen.tolist())
        says = [f"The {k} nearest of each of {total:,} images, {how}."]
        says += [f"Here are {_SHOWN} of them, drawn at random."] if total > _SHOWN else []
    shown = _write_csv(output, table, found, wanted)
    print(f"{says[0][:-1]}: written to {output}", flush=True)
    says.append("Near is a large cosine of the vectors; the number below a picture is the cosine.")
    listing.write_page(output, "Nearest neighbours", says, [_query(table, near) for near in shown], splits)


def _check(rows: neighbours.Normalised) -> None:
    bad = zero = 0
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        bad += int((~np.isfinite(block)).any(axis=1).sum())
        zero += int((~block.any(axis=1)).sum())
    if bad:
        raise UserError(f"{bad} of {len(rows):,} vectors are not finite, expected numbers; write them anew")
    if zero:
        print(f"warning: {zero} of {len(rows):,} vectors are all zero: they are alike to any other", flush=True)


def _search(rows: neighbours.Normalised, k: int, exact: bool) -> tuple[Search, str]:
    """What finds the neighbours of queries, and how, in words."""

    def compare(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return neighbours.nearest(rows, queries, k)

    if exact or len(rows) < approximate.LARGE:
        return compare, "compared with each"
    if not approximate.available():
        launcher.note("comparing all with all; pip install 'moco_tf[faiss]' makes that faster")
        return compare, "compared with each"
    index = approximate.Approximate(rows, k + 1)
    return index.nearest, f"of which FAISS finds {index.recall:.1%}, measured on {index.measured_on:,} images"


def _of_each(table: vectors.Table, rows: neighbours.Normalised, search: Search, k: int) -> Iterator[Near]:
    pause = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm.tqdm(total=len(rows), unit=" images", dynamic_ncols=True, mininterval=pause) as bar:
        for start in range(0, len(rows), _BLOCK):
            queries = rows[start : start + _BLOCK]
            for row, found in enumerate(zip(*search(queries, k + 1)), start):
                yield _without_itself(row, table.paths[row], *found, k)
            bar.update(len(queries))


def _of_one(o: Neighbours, table: vectors.Table, rows: neighbours.Normalised) -> Near:
    """Of the image that is named. Raises UserError where there is none."""
    image = str(o.neighbours.image)
    row = _row_of(table.paths, image)
    query = _vector(o, image, rows.shape[1]) if row < 0 else rows[row : row + 1]
    similarities, found = neighbours.nearest(rows, query, min(o.neighbours.k + 1, len(rows)))
    path = image if row < 0 else str(table.paths[row])
    return _without_itself(row, path, similarities[0], found[0], o.neighbours.k)


def _without_itself(row: int, path: str, similarities: np.ndarray, rows: np.ndarray, k: int) -> Near:
    others = (rows != row) & (rows >= 0)
    return Near(row, str(path), similarities[others][:k], rows[others][:k])


def _row_of(paths: Sequence[str], image: str) -> int:
    """Of the image of this path, or of the only one that ends in it; -1: of none. Raises UserError for several."""
    same = {image, os.path.abspath(image)}
    ending = [row for row, path in enumerate(paths) if path in same or path.endswith(f"/{image}")]
    exact = [row for row in ending if paths[row] in same]
    if not exact and os.path.isfile(image):  # another file
        return -1
    if len(ending) > 1 and not exact:
        first, second, *_ = (paths[row] for row in ending)
        raise UserError(
            f"--image={image} came, {len(ending)} images end in it, such as {first} and {second}; give more"
        )
    return (exact or ending or [-1])[0]


def _vector(o: Neighbours, image: str, width: int) -> np.ndarray:
    """Of an image that is not in the table: 1xD. Raises UserError."""
    if not o.encoder.load:
        raise UserError(
            f"--image={image} is none of the images, expected the path of one; or give --load, the encoder of the "
            "vectors, and any image"
        )
    if not os.path.isfile(image):
        raise UserError(f"--image={image} is none of the images and no file, expected one of them")
    loaded = announced(o.encoder.load, device.dtype_policy(o.device.precision))
    one, source = subject.of_encoder(loaded, o.data, o.neighbours.feature), folder.of_paths([image])
    batches = features.computing(one.embed, source, one.geometry(source), EVERYTHING, BadImages())
    found, *_ = next(batches(np.arange(1), 1))
    if found.shape[1] != width:
        raise UserError(
            f"--load={o.encoder.load} makes vectors of {found.shape[1]}, expected {width} as in the file; give the "
            "encoder and --feature of the vectors"
        )
    return features.normalised(found)


def _write_csv(
    output: pathlib.Path, table: vectors.Table, found: Iterable[Near], wanted: set[int] | None
) -> list[Near]:
    """Writes a line for each neighbour; returns what is wanted for the page, None: all."""
    shown = []
    with replacing(output) as draft, open(draft, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(_COLUMNS)
        for near in found:
            own = (near.path, *((table.splits[near.row], table.labels[near.row]) if near.row >= 0 else ("", "")))
            for rank, (similarity, row) in enumerate(zip(near.similarities, near.rows), 1):
                other = table.paths[row], table.splits[row], table.labels[row]
                lines.writerow([*own, rank, f"{similarity:.6f}", *other])
            if wanted is None or near.row in wanted:
                shown.append(near)
    return shown


def _query(table: vectors.Table, near: Near) -> Query:
    pairs = list(zip(near.similarities, near.rows))[:_PICTURES]
    label = str(table.labels[near.row]) if near.row >= 0 else ""
    others = [Shown(str(table.paths[row]), str(table.labels[row]), float(similarity)) for similarity, row in pairs]
    return Query(Shown(near.path, label), others)
