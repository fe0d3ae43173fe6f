"""Batches of images: the order, the share of every rank, decoding, and what happens to unreadable images.

Step s of an epoch takes the global batch order[s*G:(s+1)*G]; rank r of n takes its positions r, r+n, r+2n, ..., so that
n ranks see what one process with SplitBatchNorm(n) sees. The order depends on seed and epoch only, a crop on seed,
epoch, image and view only: a run resumes at any step, on any number of ranks, with the images it would have had.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import tensorflow as tf

from moco_tf.data.sources import ArraySource, RecordSource, Source, decode_rgb
from moco_tf.errors import RankError, UserError

_AHEAD = 2  # batches prepared in advance


class Crop(Protocol):
    """A random crop for one image of any size."""

    def crop_one(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """uint8 HxWx3 and a stateless seed int32 2 -> uint8 SxSx3."""


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The permutation of all examples in an epoch, int64 N."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def view_seeds(seed: int, epoch: int, indices: np.ndarray, views: int) -> np.ndarray:
    """Stateless seeds of each image's views, int32 len(indices) x views x 2, from nothing but the arguments."""
    key = np.random.default_rng([seed, epoch]).integers(0, 1 << 64, size=views, dtype=np.uint64)
    return _splitmix64(indices.astype(np.uint64)[:, None] ^ key[None, :])[..., None].view(np.int32)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Steele et al. 2014: a bijection of uint64 that sends neighbours far apart."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class TrainBatches:
    """One rank's share of every global batch of a source, in a new order every epoch.

    source: an ArraySource yields uint8 images as stored, whatever `crop` says. A RecordSource decodes every image once
        and crops it twice with `crop`, or once with one_view.
    batch_size: global, over all ranks.
    max_bad_images: unreadable images that a rank replaces by others before it stops with a UserError.
    bad_images_file: where it lists them, one line of path, tab, reason each; with many ranks, unreadable.txt becomes
        unreadable.rank0.txt and so on.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        crop: Crop | None = None,
        one_view: bool = False,
        drop_remainder: bool = True,
        max_bad_images: int = 0,
        bad_images_file: str | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % ranks:
            raise UserError(f"--batch_size={batch_size} came, expected a positive multiple of the {ranks} ranks")
        if drop_remainder and batch_size > source.num_examples:
            raise UserError(
                f"--batch_size={batch_size} came, expected at most {source.num_examples}, the number of images in "
                f"{source.name}; give a smaller one"
            )
        if not drop_remainder and ranks > 1:
            raise ValueError("drop_remainder=False would give the ranks batches of different sizes: use one rank")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.steps_per_epoch = source.num_examples // batch_size
        if not drop_remainder:
            self.steps_per_epoch = -(-source.num_examples // batch_size)
        self.unreadable = UnreadableImages(source, max_bad_images, bad_images_file, rank, ranks)
        self._views = 1 if one_view else 2
        if isinstance(source, RecordSource):
            if crop is None:
                raise ValueError(f"the images of {source.name} differ in size: crop is needed")
            views = self._views

            def crops(image: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
                return tuple(crop.crop_one(image, seeds[view]) for view in range(views))

            self._reader = _Reader(source, crops, self.unreadable)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple]:
        """(images, labels int32 B, indices int64 B) for each step of the epoch from start_step on.

        images: of an ArraySource, uint8 array BxHxWx3; of a RecordSource, (crops, other crops of the same images), each
        uint8 BxSxSx3, or the first of them with one_view.
        """
        order = epoch_order(self.seed, epoch, self.source.num_examples)
        steps = range(start_step, self.steps_per_epoch)
        if isinstance(self.source, ArraySource):
            return _array_batches(self.source, [order[self._positions(step)] for step in steps])
        return self._record_batches(epoch, order, steps)

    def _positions(self, step: int) -> np.ndarray:
        """Where this rank's images of a step stand in the order of the epoch."""
        stop = min((step + 1) * self.batch_size, self.source.num_examples)
        return np.arange(step * self.batch_size + self.rank, stop, self.ranks)

    def _record_batches(self, epoch: int, order: np.ndarray, steps: range) -> Iterator[tuple]:
        if not steps:
            return
        positions = np.concatenate([self._positions(step) for step in steps])

        # An unreadable image's place is taken by the next readable one from half an epoch further on: far enough for
        # the queue to have forgotten it, and a function of the place alone, so that resumed runs and other ranks agree.
        def substitutes(slot: int) -> Iterator[int]:
            start = positions[slot] + len(order) // 2
            for step in range(len(order)):
                index = int(order[(start + step) % len(order)])
                if index not in self.unreadable:
                    yield index

        indices = order[positions]
        for slot in np.flatnonzero([index in self.unreadable for index in indices]):
            indices[slot] = next(substitutes(slot), indices[slot])

        def seeds(indices: np.ndarray) -> np.ndarray:
            return view_seeds(self.seed, epoch, indices, self._views)

        batch_size = self.batch_size // self.ranks
        for *views, labels, chosen in self._reader.batches(indices, seeds, batch_size, substitutes):
            yield (tuple(views) if self._views > 1 else views[0]), labels, chosen


def eval_batches(
    source: Source,
    batch_size: int,
    rank: int = 0,
    ranks: int = 1,
    prepare_one: Callable[[tf.Tensor], tf.Tensor] | None = None,
    max_bad_images: int = 0,
    bad_images_file: str | None = None,
) -> Iterator[tuple]:
    """(images uint8 BxHxWx3, labels int32 B, indices int64 B), every example exactly once over all ranks.

    batch_size: of this rank; the last batch may be smaller, and ranks may differ by one batch.
    prepare_one: uint8 HxWx3 -> uint8 SxSx3, needed for a RecordSource. Its unreadable images are left out, counted and
        listed as in TrainBatches.
    """
    indices = np.arange(rank, source.num_examples, ranks)
    if isinstance(source, ArraySource):
        return _array_batches(source, [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)])
    if prepare_one is None:
        raise ValueError(f"the images of {source.name} differ in size: prepare_one is needed")
    unreadable = UnreadableImages(source, max_bad_images, bad_images_file, rank, ranks)
    reader = _Reader(source, lambda image, _: (prepare_one(image),), unreadable)
    return reader.batches(indices, lambda indices: np.zeros((len(indices), 0), np.int32), batch_size)


def _array_batches(source: ArraySource, index_batches: list[np.ndarray]) -> Iterator[tuple]:
    """Batches by fancy indexing, prepared in a background thread that ends with the iterator."""

    def batch(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.ascontiguousarray(source.images[indices]), source.labels[indices], indices

    pool = ThreadPoolExecutor(1)
    try:
        ahead: deque = deque()
        for indices in index_batches:
            ahead.append(pool.submit(batch, indices))
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class UnreadableImages:
    """The unreadable images met by this rank: counted, listed in a file, limited."""

    def __init__(self, source: Source, limit: int, path: str | None, rank: int = 0, ranks: int = 1) -> None:
        if path and ranks > 1:
            root, extension = os.path.splitext(path)
            path = f"{root}.rank{rank}{extension}"
        self.path = path
        self._source = source
        self._limit = limit
        self._indices: set[int] = set()

    def __len__(self) -> int:
        return len(self._indices)

    def __contains__(self, index: int) -> bool:
        return index in self._indices

    def add(self, index: int, reason: str) -> None:
        """Counts and lists an image. Raises UserError above the limit, or when no readable image is left."""
        if index in self._indices:
            return
        self._indices.add(index)
        name = self._source.describe(index)
        self._list(name, reason)
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
            if not any(old.split("\t")[0] == name for old in file):  # a resumed run meets its old acquaintances
                file.write(line)


class _Reader:
    """Decodes the images of a RecordSource in parallel and keeps their order, whichever are unreadable."""

    def __init__(
        self,
        source: RecordSource,
        views: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]],
        unreadable: UnreadableImages,
    ) -> None:
        self._source = source
        self._views = views
        self._unreadable = unreadable
        self._load_one = tf.function(self._load)

    def batches(
        self,
        indices: np.ndarray,
        seeds: Callable[[np.ndarray], np.ndarray],
        batch_size: int,
        substitutes: Callable[[int], Iterator[int]] | None = None,
    ) -> Iterator[tuple]:
        """(*views, labels, indices) in the order of indices; unreadable images are substituted, else left out."""
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
        return *self._views(decode_rgb(data), seeds), label, index

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
            return dataset.ignore_errors(log_warning=False).batch(batch_size).prefetch(_AHEAD)

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
            self._unreadable.add(index, _reason(error))
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


def _reason(error: Exception) -> str:
    """The line of TensorFlow's message that says what is wrong, without tracebacks and node names."""
    message = error.message if isinstance(error, tf.errors.OpError) else "not an image"
    line = message.split("\n\t [[")[0].strip().split("\n")[-1]
    return line.split("}} ")[-1].split(" [Op:")[0].replace("\t", " ")[:200]
