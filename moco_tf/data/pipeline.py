"""Batches of images: the order, the share of every rank, decoding, and what happens to unreadable images.

Step s of an epoch takes the global batch order[s*G:(s+1)*G]; rank r of n takes its positions r, r+n, r+2n, ..., so that
n ranks see what one process with SplitBatchNorm(n) sees. The order depends on seed and epoch only (order.py), a crop on
seed, epoch, image and view only: a run resumes at any step, on any number of ranks, with the images it would have had.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import tensorflow as tf

from moco_tf.data.order import EVERYTHING, LANES, ORDERS, ReadAhead, Share, block_order, epoch_order
from moco_tf.data.prefetch import to_device
from moco_tf.data.records import NO_BAD_IMAGES, BadImages, RecordReader, UnreadableImages
from moco_tf.data.sources import ArraySource, RecordSource, Source
from moco_tf.errors import UserError
from moco_tf.training import device

_AHEAD = 2  # batches prepared in advance


class Crop(Protocol):
    """A random crop for one image of any size."""

    def crop_one(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """uint8 HxWx3 and a stateless seed int32 2 -> uint8 SxSx3."""


def view_seeds(seed: int, epoch: int, indices: np.ndarray, views: int) -> np.ndarray:
    """Stateless seeds of each image's views, int32 N x views x 2, from nothing but the arguments.

    Args:
        seed, epoch: any numbers from 0 on.
        indices: of the images, int64 N.
        views: how many views of each.
    """
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

    Args:
        source: of images. Those of one size come as they are stored; all others are decoded once and cropped.
        batch_size: global, over all ranks.
        seed: of order and crops.
        share: this rank's.
        crops: one for each view, for a source of many sizes.
        bad_images: how many a rank replaces by others.
        order: "random", or "blocks" to read large files block by block, see order.py.
        drop_remainder: whether an epoch ends with the last whole batch.

    Raises:
        UserError: the source has too few images for this, or cannot be read in this order.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        share: Share = EVERYTHING,
        crops: Sequence[Crop] = (),
        bad_images: BadImages = NO_BAD_IMAGES,
        order: str = "random",
        drop_remainder: bool = True,
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}; expected one of {', '.join(ORDERS)}")
        if order == "blocks":
            _check_blocks(source, share.size)
        if batch_size < 1 or batch_size % share.size:
            raise UserError(f"--batch_size={batch_size} came, expected a positive multiple of the {share.size} ranks")
        if drop_remainder and batch_size > source.num_examples:
            raise UserError(
                f"--batch_size={batch_size} came, expected at most {source.num_examples}, the number of images in "
                f"{source.name}; give a smaller one"
            )
        if not drop_remainder and share.size > 1:
            raise ValueError("drop_remainder=False would give the ranks batches of different sizes: use one rank")
        self.source, self.batch_size, self.seed, self.share, self.order = source, batch_size, seed, share, order
        self.steps_per_epoch = source.num_examples // batch_size
        if not drop_remainder:
            self.steps_per_epoch = -(-source.num_examples // batch_size)
        self._crops = tuple(crops)
        self._images: tf.Tensor | None = None  # all of them, see keep_on_device
        if isinstance(source, RecordSource):
            if not crops:
                raise ValueError(f"the images of {source.name} differ in size: crops are needed")
            self.unreadable = UnreadableImages(source, bad_images, share)
            self._decode = source.decode
            self._reader = RecordReader(source, self._cropped, self.unreadable)

    def keep_on_device(self) -> None:
        """Copies all images, which have one size, to the device; then `batches` gives indices in their place."""
        assert isinstance(self.source, ArraySource)
        with tf.device("/GPU:0" if device.has_gpu() else "/CPU:0"):
            self._images = tf.identity(tf.constant(self.source.images))

    @property
    def on_device(self) -> bool:
        """Whether all images are on the device."""
        return self._images is not None

    def fetch(self, batch: tuple) -> tuple:
        """A batch with its images, inside of the step: looked up where they are all on the device."""
        return batch if self._images is None else (tf.gather(self._images, batch[0]), *batch[1:])

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple]:
        """(images, labels int32 B, indices int64 B) for each step of the epoch from start_step on.

        images: indices after `keep_on_device`. Of a source of one size, uint8 array BxHxWx3; of others, a tuple of one
        batch of crops for each view, each uint8 BxSxSx3, or that batch alone where there is one view. Where there is a
        GPU they are tensors on it.
        """
        order = (block_order if self.order == "blocks" else epoch_order)(self.seed, epoch, self.source.num_examples)
        steps = range(start_step, self.steps_per_epoch)
        if isinstance(self.source, ArraySource):
            every, labels = [order[self._positions(step)] for step in steps], self.source.labels
            if self.on_device:
                return ((indices, labels[indices], indices) for indices in every)
            batches = _array_batches(self.source, every)
        else:
            batches = self._record_batches(epoch, order, steps)
        return to_device(batches, "/GPU:0") if device.has_gpu() else batches

    def _cropped(self, data: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image = self._decode(data)
        return tuple(crop.crop_one(image, seeds[view]) for view, crop in enumerate(self._crops))

    def _positions(self, step: int) -> np.ndarray:
        """Where this rank's images of a step stand in the order of the epoch."""
        stop = min((step + 1) * self.batch_size, self.source.num_examples)
        return np.arange(step * self.batch_size + self.share.rank, stop, self.share.size)

    def _record_batches(self, epoch: int, order: np.ndarray, steps: range) -> Generator[tuple, None, None]:
        if not steps:
            return
        positions = np.concatenate([self._positions(step) for step in steps])

        # An unreadable image's place is taken by the next readable one from half an epoch further on: far enough for
        # the queue to have forgotten it, and a function of the place alone, so that resumed runs and other ranks agree.
        def substitutes(slot: int) -> Iterator[int]:
            start = int(positions[slot]) + len(order) // 2
            for step in range(len(order)):
                index = int(order[(start + step) % len(order)])
                if index not in self.unreadable:
                    yield index

        indices = order[positions]
        for slot in np.flatnonzero([index in self.unreadable for index in indices]):
            indices[slot] = next(substitutes(int(slot)), indices[slot])

        def seeds(indices: np.ndarray) -> np.ndarray:
            return view_seeds(self.seed, epoch, indices, len(self._crops))

        rank_batch, span = self.batch_size // self.share.size, self.source.read_span
        ahead = ReadAhead(indices, span) if span and self.order == "blocks" else None
        try:
            for number, batch in enumerate(self._reader.batches(indices, seeds, rank_batch, substitutes)):
                if ahead:
                    ahead.reached(number * rank_batch)
                *views, labels, chosen = batch
                yield (tuple(views) if len(views) > 1 else views[0]), labels, chosen
        finally:
            if ahead:
                ahead.close()


def _check_blocks(source: Source, size: int) -> None:
    """Whether a source can be read by blocks. Raises UserError."""
    if source.read_span is None:
        raise UserError(
            f"--read_order=blocks came with {source.name}, expected a TFDS set of large images, as a pack is; leave it "
            "out, or pack the images with moco_tf.pack"
        )
    if LANES % size:
        raise UserError(f"--read_order=blocks came on {size} ranks, expected a divisor of {LANES}; use as many ranks")


def eval_batches(
    source: Source,
    rank_batch: int,
    share: Share = EVERYTHING,
    prepare_one: Callable[[tf.Tensor], tf.Tensor] | None = None,
    bad_images: BadImages = NO_BAD_IMAGES,
) -> Iterator[tuple]:
    """(images uint8 BxHxWx3, labels int32 B, indices int64 B), every example exactly once over all ranks.

    Args:
        source: of images.
        rank_batch: B, images of a batch of this rank; the last may be smaller, and ranks may differ by one batch.
        share: this rank's.
        prepare_one: uint8 HxWx3 -> uint8 SxSx3, needed where images differ in size.
        bad_images: how many are left out.
    """
    indices = np.arange(share.rank, source.num_examples, share.size)
    return reading(source, share, prepare_one, bad_images)(indices, rank_batch)


def reading(
    source: Source,
    share: Share,
    prepare_one: Callable[[tf.Tensor], tf.Tensor] | None,
    bad_images: BadImages,
) -> Callable[[np.ndarray, int], Iterator[tuple]]:
    """(indices int64 N, B) to batches as of `eval_batches`, of these images in this order. Args: of `eval_batches`."""
    if isinstance(source, ArraySource):
        return lambda indices, size: _array_batches(
            source, [indices[i : i + size] for i in range(0, len(indices), size)]
        )
    if prepare_one is None:
        raise ValueError(f"the images of {source.name} differ in size: prepare_one is needed")
    reader = RecordReader(
        source, lambda data, _: (prepare_one(source.decode(data)),), UnreadableImages(source, bad_images, share)
    )
    return lambda indices, size: reader.batches(indices, lambda chosen: np.zeros((len(chosen), 0), np.int32), size)


def _array_batches(source: ArraySource, index_batches: list[np.ndarray]) -> Generator[tuple, None, None]:
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
