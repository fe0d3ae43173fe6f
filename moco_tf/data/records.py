"""Reads encoded images one by one and in order; what happens to those that cannot be read."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from moco_tf.data.order import Share
from moco_tf.data.sources import RecordSource
from moco_tf.errors import RankError
from moco_tf.training import device
from moco_tf.training.files import one_line

_AHEAD = 2  # batches prepared in advance


@dataclasses.dataclass(frozen=True)
class BadImages:
    """How unreadable images are treated.

    Args:
        limit: so many a rank replaces or leaves out; at one more it stops.
        file: where it lists them, a line of path, tab, reason each; of several ranks, unreadable.txt becomes
            unreadable.rank0.txt and so on.
        reported: whether `left_out` tells of them; not where others meet the same ones.
    """

    limit: int = 0
    file: str | None = None
    reported: bool = True


NO_BAD_IMAGES = BadImages()
# Names of unreadable images by source, its split, the number of images of that, and the path of the list.
_met: dict[tuple[str, str, int, str], set[str]] = {}


def left_out() -> list[str]:
    """A line for each set of images of which some could not be read since the last call: how many, and their list."""
    lines = [
        f"{len(names)} of {count:,} images of {source}{split and f' ({split})'} could not be read and are left out"
        f"{path and f'; see {path}'}"
        for (source, split, count, path), names in _met.items()
    ]
    _met.clear()
    return lines


class UnreadableImages:
    """The unreadable images met by this rank: counted, listed in a file, limited."""

    def __init__(self, source: RecordSource, allowed: BadImages, share: Share) -> None:
        self.path = self._list_of_all = allowed.file
        if self.path and share.size > 1:
            root, extension = os.path.splitext(self.path)
            self.path = f"{root}.rank{share.rank}{extension}"
        self._source = source
        self._limit, self._reported = allowed.limit, allowed.reported
        self._indices: set[int] = set()

    def __len__(self) -> int:
        return len(self._indices)

    def __contains__(self, index: int) -> bool:
        return index in self._indices

    def known(self) -> np.ndarray:
        """Indices of those that this rank met, or that a list names, of any rank or earlier start; int64, ascending."""
        names: set[str] = set()
        if self._list_of_all:
            file = pathlib.Path(self._list_of_all)
            for path in file.parent.glob(f"{file.stem}*{file.suffix}"):
                text = path.read_text(encoding="utf-8", errors="surrogateescape")
                names |= {line.split("\t")[0] for line in text.split("\n") if line}
        count = self._source.num_examples if names else 0
        listed = {index for index in range(count) if self._source.describe(index) in names}
        return np.array(sorted(self._indices | listed), np.int64)

    def add(self, index: int, reason: str) -> None:
        """Counts and lists an image. Raises UserError above the limit, or when no readable image is left."""
        if index in self._indices:
            return
        self._indices.add(index)
        name = self._source.describe(index)
        self._list(name, reason)
        if self._reported:
            source = self._source
            count = source.whole or source.num_examples
            _met.setdefault((source.name, source.split, count, self.path or ""), set()).add(name)
        listed = f", listed in {self.path}" if self.path else ""
        if len(self) > self._limit:
            raise RankError(
                f"{self._source.name}: {len(self)} unreadable images came, expected at most --max_bad_images="
                f"{self._limit}; last {name!r} ({reason}){listed}; mend or remove them, or raise the limit"
            )
        if len(self) == self._source.num_examples:
            raise RankError(
                f"{self._source.name}: none of its {len(self)} images can be read; last {name!r} ({reason}){listed}"
            )

    def _list(self, name: str, reason: str) -> None:
        if not self.path:
            return
        line = f"{name}\t{reason}\n"
        with open(self.path, "a+", encoding="utf-8", errors="surrogateescape") as file:
            file.seek(0)
            if not any(old.split("\t")[0] == name for old in file):  # a resumed run meets the same ones
                file.write(line)


class RecordReader:
    """Reads the images of a RecordSource in parallel and keeps their order, whichever are unreadable.

    Args:
        source: of the images.
        views: (encoded image, seeds of its views) to what is made of it; fails on an unreadable image.
        unreadable: where these are noted.
    """

    def __init__(
        self,
        source: RecordSource,
        views: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]],
        unreadable: UnreadableImages,
    ) -> None:
        self._source = source
        self._views = views
        self._unreadable = unreadable
        self._load_one = tf.function(self._load, autograph=False)

    def batches(
        self,
        indices: np.ndarray,
        seeds: Callable[[np.ndarray], np.ndarray],
        batch_size: int,
        substitutes: Callable[[int], Iterator[int]] | None = None,
    ) -> Iterator[tuple]:
        """(*views, labels, indices) in the order of indices; unreadable images are substituted, else left out.

        Args:
            indices: of the images, int64 N.
            seeds: indices to the seeds of their views, int32 n x V x 2.
            batch_size: images of a batch; the last one may be smaller.
            substitutes: place in `indices` to the indices of images that may stand there.
        """
        chunks, rest = iter(self._dataset(indices, seeds(indices), batch_size)), None
        for start in range(0, len(indices), batch_size):
            stop = min(start + batch_size, len(indices))
            batch, rest = _take(chunks, rest, stop)
            found = batch[0] if batch else np.array([], np.int64)
            if len(found) < stop - start:
                missing = np.setdiff1d(np.arange(start, stop), found)
                batch = self._mend(batch, missing, indices, seeds, substitutes)
            if batch:
                _, *views, labels, chosen = batch
                yield *views, np.asarray(labels), np.asarray(chosen)

    def _load(self, index: tf.Tensor, seeds: tf.Tensor, *entries: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """(*views, label, index) of one image."""
        data, label = self._source.read(*entries)
        return *self._views(data, seeds), label, index

    def _dataset(self, indices: np.ndarray, seeds: np.ndarray, batch_size: int) -> tf.data.Dataset:
        """Batches of (slot, *views, label, index). The slot is the place in indices; unreadable ones are missing."""
        with tf.device("/CPU:0"):
            columns = (np.arange(len(indices)), indices, seeds, *self._source.entries(indices))
            dataset = tf.data.Dataset.from_tensor_slices(columns)
            dataset = dataset.map(
                lambda slot, *example: (slot, *self._load(*example)),
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
            dataset = dataset.ignore_errors(log_warning=False).batch(batch_size).prefetch(_AHEAD)
            # A pool of its own: tf.data would share the threads between operations, two at most, and decode two images
            # at a time however many cores there are.
            options = tf.data.Options()
            options.threading.private_threadpool_size = max(2, device.threads())
            return dataset.with_options(options)

    def _mend(
        self,
        batch: list | None,
        missing: np.ndarray,
        indices: np.ndarray,
        seeds: Callable[[np.ndarray], np.ndarray],
        substitutes: Callable[[int], Iterator[int]] | None,
    ) -> list | None:
        """The batch with its missing slots filled; None when nothing is left of it."""
        rows = []
        for slot in missing:
            row = self._try(int(indices[slot]), seeds)  # again, for the reason: or was it a passing fault?
            candidates = substitutes(slot) if substitutes else iter(())
            while row is None and (candidate := next(candidates, None)) is not None:
                row = self._try(candidate, seeds)
            if row is not None:
                rows.append([np.asarray(value)[None] for value in (slot, *row)])
        parts = ([batch] if batch else []) + rows
        if not parts:
            return None
        columns = [np.concatenate(column) for column in zip(*parts)]
        by_slot = np.argsort(columns[0])
        return [column[by_slot] for column in columns]

    def _try(self, index: int, seeds: Callable[[np.ndarray], np.ndarray]) -> tuple | None:
        """One image as _load gives it; None when it is unreadable, which is then noted."""
        at = np.array([index])
        row = [column[0] for column in (at, seeds(at), *self._source.entries(at))]
        try:
            with tf.device("/CPU:0"):
                return self._load_one(*(tf.convert_to_tensor(value) for value in row))
        except (tf.errors.OpError, UnicodeDecodeError) as error:  # the latter when a message quotes the image's bytes
            self._unreadable.add(index, one_line(error) if isinstance(error, tf.errors.OpError) else "unreadable")
            return None


def _take(chunks: Iterator, rest: list | None, stop: int) -> tuple[list | None, list | None]:
    """The examples with slots below stop, and the rest of what had to be read for that. Slots only ever rise."""
    parts = [rest] if rest else []
    while not parts or parts[-1][0][-1] < stop - 1:
        chunk = next(chunks, None)
        if chunk is None:
            break
        parts.append([chunk[0].numpy(), *chunk[1:]])
    if not parts:
        return None, None
    if len(parts) == 1 and parts[0][0][-1] < stop:
        return parts[0], None  # the usual case copies nothing
    columns = [np.concatenate([np.asarray(value) for value in column]) for column in zip(*parts)]
    cut = np.searchsorted(columns[0], stop)
    below, above = ([column[part] for column in columns] for part in (slice(cut), slice(cut, None)))
    return below if cut else None, above if cut < len(columns[0]) else None
