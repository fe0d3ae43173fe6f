"""Feature vectors of many images: computed part by part, so that a stopped job goes on, then written as one file."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from moco_tf.config.options import DataOptions, Embed, WhichImages
from moco_tf.data.order import Share
from moco_tf.data.records import BadImages
from moco_tf.data.sets import folder
from moco_tf.data.sources import RecordSource, Source
from moco_tf.errors import RankError, UserError
from moco_tf.evaluation import features, subject
from moco_tf.evaluation.subject import Subject
from moco_tf.formats import origin, vectors
from moco_tf.formats.load import SOURCES, announced
from moco_tf.run import prepare, results
from moco_tf.training import device, launcher
from moco_tf.training.collectives import Collectives, broadcast_result
from moco_tf.training.files import digest, replacing, write_whole
from moco_tf.training.lock import RunLock

_PART = 4096  # images, about: what a stopped job loses, and what is in memory at a time
_ABOUT = "about.json"


class Split(NamedTuple):
    """Images, and the numbers of their parts: from first on, each of so many images."""

    name: str
    source: Source
    first: int
    size: int

    @property
    def parts(self) -> range:
        """The numbers."""
        return range(self.first, self.first - (-self.source.num_examples // self.size))

    def path(self, index: int) -> str:
        """Of an image; its place where it is not a file of its own."""
        if isinstance(self.source, RecordSource):
            return self.source.describe(index)
        return "/".join(filter(None, [self.source.name, self.name, str(index)]))


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done.

    Args:
        subject: computes the vectors.
        splits: of the images.
        folder: of finished parts, beside the output.
        batch: images that are computed at a time.
        bad_images: how unreadable images are treated.
        collectives: what crosses ranks; each rank computes every R-th part.
    """

    subject: Subject
    splits: list[Split]
    folder: pathlib.Path
    batch: int
    bad_images: BadImages
    collectives: Collectives

    def file(self, part: int) -> pathlib.Path:
        """Where a part is."""
        return self.folder / f"{part:06}.npz"

    def missing(self, split: Split) -> list[int]:
        """This rank's parts that are not there."""
        own = range(self.collectives.rank, split.parts.stop, self.collectives.size)
        return [part for part in split.parts if part in own and not self.file(part).exists()]


def embed(o: Embed, says: bool = True) -> list[Split]:
    """Computes the vectors and writes them, and says where; returns the images.

    Raises:
        UserError: options do not fit, there are no images, or too many cannot be read.
    """
    output = _output(o)
    collectives = prepare.connect(o.device, 0, compiles=False)
    parts = output.with_name(f".{output.name}.parts")
    broadcast_result(collectives, lambda: vectors.check(output, o.embed.feature, parts.exists()))
    if not o.encoder.load:
        raise UserError(f"--load is missing; give {SOURCES}")
    one = subject.of_encoder(
        announced(o.encoder.load, device.dtype_policy(o.device.precision)), o.data, o.embed.feature
    )
    size = max(1, _PART // o.embed.batch_size) * o.embed.batch_size
    splits = images(o.embed, o.data, o.encoder.load, collectives, size)
    bad_images = BadImages(o.data.max_bad_images, f"{output}.unreadable.txt", reported=False)  # `_finish` does
    work = Work(one, splits, parts, o.embed.batch_size, bad_images, collectives)
    began = time.monotonic()
    with _locked(work):
        broadcast_result(collectives, lambda: _begin(work, o))
        computed = float(collectives.mean([tf.constant([compute(work)], tf.float64)])[0][0]) * collectives.size
        if collectives.rank == 0:
            _finish(work, output, computed / (time.monotonic() - began) if says else None)
    collectives.barrier()
    return splits


@contextlib.contextmanager
def _locked(work: Work) -> Iterator[None]:
    """The folder of parts, for this job alone; an error before the first part leaves none."""
    work.folder.mkdir(exist_ok=True)
    with RunLock(work.folder, flag="--output") as lock:
        broadcast_result(work.collectives, lock.acquire)
        try:
            yield
        except UserError:
            if work.collectives.rank == 0 and not any(work.folder.glob("*.npz")):
                shutil.rmtree(work.folder)
            raise


def _finish(work: Work, output: pathlib.Path, rate: float | None) -> None:
    """Writes the parts as one file, removes them, and says what is where, with a rate."""
    rows, total = collected(work), sum(split.source.num_examples for split in work.splits)
    vectors.write(output, rows)
    shutil.rmtree(work.folder)
    shape, left_out = "x".join(map(str, (rows.total, *rows.shape))), total - rows.total
    if rate is not None:
        print(f"{shape} float32 written to {' and '.join(map(str, vectors.files(output)))}; {rate:,.0f} images/s")
    if left_out:
        listed = f"; see {work.bad_images.file}"
        print(f"{left_out:,} of {total:,} images could not be read and are left out{listed}", flush=True)


def _output(o: Embed) -> pathlib.Path:
    if not o.embed.output:
        raise UserError("--output is missing; give the file to write, for example --output=vectors.npz")
    return pathlib.Path(o.embed.output)


def images(
    which: WhichImages, data: DataOptions, load: str | None, collectives: Collectives, size: int = _PART
) -> list[Split]:
    """The images that are asked for, or the run's; says which.

    Args:
        which: of them.
        data: the data set as it was given.
        load: what is loaded.
        collectives: what crosses ranks.
        size: images of a part.

    Raises:
        UserError: there are none.
    """
    given = which.images
    if given and data.dataset:
        raise UserError(f"--images={given} came with --dataset={data.dataset}, expected one of them; leave one out")
    found = data if given else origin.completed(data, load)
    if given and given != "-" and os.path.isdir(given):
        found = dataclasses.replace(data, dataset="folder", data_dir=os.path.abspath(given), holdout=0)
    if collectives.rank == 0:
        print(f"images: {given}" if given else results.said(data, found, load), flush=True)
    if found.dataset:
        of = _of_folder if given else _of_data
        sources = of(dataclasses.replace(found, holdout=0), which.split, collectives)
    else:
        sources = {"": folder.of_paths(broadcast_result(collectives, lambda: _paths(str(given))))}
    splits: list[Split] = []
    for name, source in sources.items():
        splits.append(Split(name, source, splits[-1].parts.stop if splits else 0, size))
    return splits


def _of_data(data: DataOptions, split: str, collectives: Collectives) -> dict[str, Source]:
    """The images of a data set by split; of "all" the test images, where there are any."""
    if data.dataset == "folder" and split == "all" and not folder.has_splits(data.data_dir):
        return {"": prepare.source(data, "train", collectives)}
    names, found = ("train", "test") if split == "all" else (split,), dict[str, Source]()
    for name in names:
        try:
            found[name] = prepare.source(data, name, collectives)
        except UserError as error:
            if not found:
                raise
            launcher.note(f"no test images: {error}")
    return found


def _of_folder(data: DataOptions, split: str, collectives: Collectives) -> dict[str, Source]:
    """All images below a folder that is given: by split and class where its folders say so, then the others."""
    if split != "all":
        return _of_data(data, split, collectives)
    place = str(data.data_dir)
    try:
        found = _of_data(data, split, collectives)
    except UserError as error:
        launcher.note(f"without splits and labels: {error}")
        return {"": folder.of_paths(folder.images(place))}
    if others := folder.beside(place, found):
        launcher.note(f"{len(others):,} images of {place} are of neither split: they come last, without labels")
        found[""] = folder.of_paths(others)
    return found


def _paths(given: str) -> list[str]:
    """The paths that --images gives: of one image, a text file's lines, or standard input's."""
    if given == "-":
        content = sys.stdin.buffer.read()
    else:
        try:
            content = pathlib.Path(given).read_bytes()
        except OSError as error:
            raise UserError(f"--images={given} cannot be read ({error.strerror}); expected {_EXPECTED}") from None
        if not given.lower().endswith(".txt"):
            return [given]
    lines = content.decode("utf-8-sig", "surrogateescape").split("\n")
    paths = [line.rstrip("\r") for line in lines if line.strip()]
    if not paths:
        raise UserError(f"--images={given} names no image; expected {_EXPECTED}")
    return paths


_EXPECTED = "a folder, an image, a .txt file with a path in each line, or - for such lines on standard input"


def _begin(work: Work, o: Embed) -> None:
    """Keeps the parts of an earlier start of the same job; removes others, and says so."""
    one = work.subject
    names = digest(
        os.fsencode(split.path(i)) + b"\n" for split in work.splits for i in range(split.source.num_examples)
    )
    about: dict[str, Any] = {
        "weights": one.weights,
        "feature": o.embed.feature,
        "precision": o.device.precision,
        "images": names,
    }
    about |= {"size": one.image_size, "resize": one.test_resize, "mean": one.mean, "std": one.std, "batch": work.batch}
    text, file = json.dumps(about), work.folder / _ABOUT
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    there = sorted(work.folder.glob("*.npz"))
    if before != text:
        for path in there:
            path.unlink()
    if there:
        kept = (
            f"going on after {len(there)} parts" if before == text else "beginning anew: the parts are of another job"
        )
        print(f"{kept}, in {work.folder}", flush=True)
    write_whole(file, text)


def compute(work: Work) -> int:
    """Computes and writes this rank's missing parts; returns the number of their images."""
    missing = [(split, work.missing(split)) for split in work.splits]
    counts = [sum(min(s.size, s.source.num_examples - (p - s.first) * s.size) for p in parts) for s, parts in missing]
    pause, first = 0.5 if sys.stderr.isatty() else 10.0, work.collectives.rank == 0
    with tqdm.tqdm(total=sum(counts), unit=" images", dynamic_ncols=True, mininterval=pause, disable=not first) as bar:
        for split, parts in missing:
            for part, columns in zip(parts, _computed(work, split, parts)):
                if not np.isfinite(columns[0]).all():
                    raise RankError(features.NOT_FINITE)
                _write(work.file(part), columns)
                bar.update(len(columns[0]))
    return sum(counts)


def _computed(work: Work, split: Split, parts: list[int]) -> Iterator[list[np.ndarray]]:
    """(vectors, labels, indices) of each of these parts: one pipeline for all, whose batches end where parts do."""
    share = Share(work.collectives.rank, work.collectives.size)
    geometry = work.subject.geometry(split.source)
    batches = features.computing(work.subject.embed, split.source, geometry, share, work.bad_images)
    starts = [(part - split.first) * split.size for part in parts]
    stops = [min(start + split.size, split.source.num_examples) for start in starts]
    indices = np.concatenate([np.arange(0), *map(np.arange, starts, stops)])
    found = batches(indices, work.batch)
    batch = next(found, None)
    for stop in stops:
        columns: list[list[np.ndarray]] = [[], [], []]
        while batch is not None and batch[2][0] < stop:
            for column, values in zip(columns, batch):
                column.append(np.asarray(values))
            batch = next(found, None)
        yield [np.concatenate(column) if column else np.zeros(0, np.int64) for column in columns]


def _write(path: pathlib.Path, columns: list[np.ndarray]) -> None:
    with replacing(path) as draft:
        np.savez(draft, vectors=columns[0], labels=columns[1], indices=columns[2])


def collected(work: Work) -> vectors.Rows:
    """All rows, from the finished parts."""
    counts, shape = 0, (0,)
    for split in work.splits:
        for part in split.parts:
            with np.load(work.file(part), allow_pickle=False) as file:
                counts += len(file["indices"])
                shape = file["vectors"].shape[1:] or shape

    def parts() -> Iterator[vectors.Part]:
        for split in work.splits:
            names = dict(enumerate(split.source.class_names))
            for part in split.parts:
                with np.load(work.file(part), allow_pickle=False) as file:
                    indices, labels, numbers = (file[name] for name in ("indices", "labels", "vectors"))
                if len(indices):
                    texts = [split.path(int(i)) for i in indices], [split.name] * len(indices)
                    yield vectors.Part(*texts, [names.get(int(label), "") for label in labels], numbers)

    return vectors.Rows(parts, counts, shape)
