"""Near-duplicates: images whose small grey pictures agree, as they are or mirrored.

An encoder's features do not tell copies from images of one kind: it is trained to make these alike. So a picture of
12 x 12 grey values is compared, without its mean, by the cosine, which is the correlation of the two. JPEG, another
size and another brightness hardly change it; crops, turns and frames do, and are not found.

N images, T = 145 numbers of each: the grey values, and a constant that makes flat images alike to each other.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import features, neighbours
from moco_tf.training.collectives import Collectives

SAMPLE = 1000  # images that a threshold is proposed from
_QUICK = 100  # copies that are made for a count alone
_SIDE = 12
WIDTH = _SIDE**2 + 1
_FLAT = _SIDE / 255  # the length of a picture that varies by one grey level
_LEAST_COPIES = 0.01  # share of the copies that may be below what counts as alike to a copy
_LEAST_OF_FEW = 0.05
_DEVIATIONS = 4.0
_TENTH = 1.2816  # deviations from the middle of a normal distribution to its lowest tenth
_FARTHEST = 3.0  # times the distance of such a copy
_EQUAL = 0.99999  # similarity of pictures that differ by rounding alone
_FEW = 0.2  # share of images that must be unlike copies for the spread of these to be known
_BLOCK, _CHUNK = 1024, 16384
_MOST = 10_000_000  # pairs


def thumbnails(images: tf.Tensor) -> tf.Tensor:
    """Rows of length one: images in [0, 1], BxHxWx3, to BxT."""
    grey = tf.image.resize(tf.image.rgb_to_grayscale(images), (_SIDE, _SIDE), antialias=True)
    flat = tf.reshape(grey, [-1, _SIDE**2])
    centred = flat - tf.reduce_mean(flat, axis=1, keepdims=True)
    return tf.math.l2_normalize(tf.pad(centred, [[0, 0], [0, 1]], constant_values=_FLAT), axis=1)


def mirrored(rows: np.ndarray) -> np.ndarray:
    """The rows of the mirrored images."""
    grey = rows[:, :-1].reshape(-1, _SIDE, _SIDE)[:, :, ::-1]
    return np.concatenate([grey.reshape(len(rows), -1), rows[:, -1:]], axis=1)


def copy_of(image: np.ndarray) -> np.ndarray:
    """A copy as it is met elsewhere: mirrored, of three quarters the size, as a JPEG of quality 50; uint8 HxWx3."""
    picture = Image.fromarray(np.ascontiguousarray(image[:, ::-1]))
    small = picture.resize([max(1, 3 * side // 4) for side in picture.size], Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=50)
    return np.asarray(Image.open(stream))


class Proposal(NamedTuple):
    """From which similarity on images are near-duplicates, and the share of the copies of `copy_of` that reach it.

    known: whether enough images were unlike copies to tell strangers from copies.
    """

    threshold: float
    recall: float
    known: bool = True


def propose(nearest: np.ndarray, copies: np.ndarray, least: float = _LEAST_COPIES) -> Proposal:
    """The similarity that hardly any image reaches by chance.

    Images whose nearest other is less alike than nearly all copies (all but the share `least` of them: 99 % where
    nothing else is said) show how near strangers come. The logarithm of
    their distance, 1 - similarity, is roughly normal: the threshold lies four deviations below its middle, where
    one of 30,000 strangers would be. The deviation is that of the nearer half. Its distance is at most three times
    what nearly all copies have, as strangers of a small set are far. Where more than four fifths of the images
    have another that is as alike as a copy, strangers are too few to say: then nearly all copies reach the threshold.

    Args:
        nearest: similarity of some images to the nearest other.
        copies: similarity of some images to their own copies.
        least: share of these that may be less alike than what counts as alike to a copy.
    """
    alike = float(np.quantile(copies, least))
    strangers = nearest[nearest < alike]
    threshold = alike
    known = len(strangers) >= _FEW * len(nearest)
    if known:
        middle, low = np.quantile(np.log(1 - strangers), (0.5, 0.1))
        distance = min(np.exp(middle - _DEVIATIONS * (middle - low) / _TENTH), _FARTHEST * (1 - alike))
        threshold = 1 - max(float(distance), 1e-6)
    return Proposal(threshold, float(np.mean(copies >= threshold)), known)


@functools.lru_cache(maxsize=2)  # the same function for the same encoder: it is traced once
def beside(embed: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """An embed that gives the thumbnails, too."""
    return lambda images: (embed(images), thumbnails(images))


def count_in_train(
    bank: np.ndarray, rows: np.ndarray, test: Source, geometry: tuple[int, int], collectives: Collectives
) -> int | None:
    """How many test images have a near-duplicate among the training images; the same on every rank.

    Where nearly every image has another that is as alike as a copy, nobody knows whether these are strangers or copies.
    Then only equal pictures count, so that test images that are all in the training set are still found; None if there
    are no equal ones. The threshold ignores the worst twentieth of the copies: of so few, a flat one would decide.

    Args:
        bank: thumbnails of this rank's training images, nxT.
        rows: of the test images, QxT.
        test: these images, of which some give the threshold.
        geometry: resize and centre crop of the thumbnails' images.
        collectives: what crosses ranks.
    """
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    nearest = np.concatenate([_largest(block, bank) for block in blocks])
    nearest = collectives.allgather(tf.constant(nearest[None])).numpy().max(axis=0)
    chosen = np.random.default_rng(0).permutation(test.num_examples)[:_QUICK]
    copies = of_copies([(test, int(index)) for index in chosen], geometry, same_size=True)
    proposal = propose(nearest, copies, _LEAST_OF_FEW)
    count = int((nearest >= (proposal.threshold if proposal.known else _EQUAL)).sum())
    return count if proposal.known or count else None


def _halves(rows: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """What stays when an image is mirrored, and what changes its sign: the products of rows in half the work.

    a . b = even(a) . even(b) + odd(a) . odd(b), and with a mirrored the second one is subtracted.
    """
    grey = rows[:, :-1].reshape(-1, _SIDE, _SIDE)
    left, right = grey[:, :, : _SIDE // 2], grey[:, :, : _SIDE // 2 - 1 : -1]
    even, odd = ((part * np.float32(0.5**0.5)).reshape(len(rows), -1) for part in (left + right, left - right))
    return tf.constant(np.concatenate([even, rows[:, -1:]], axis=1)), tf.constant(odd)


def _largest(rows: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Similarity of each row to the most similar one of a bank, as it is or mirrored."""
    halves = _halves(rows)
    parts = [_largest_of(*halves, *_halves(bank[at : at + _CHUNK])).numpy() for at in range(0, len(bank), _CHUNK)]
    return np.max(parts, axis=0)


@tf.function(reduce_retracing=True)
def _largest_of(even: tf.Tensor, odd: tf.Tensor, other_even: tf.Tensor, other_odd: tf.Tensor) -> tf.Tensor:
    changing = tf.abs(tf.matmul(odd, other_odd, transpose_b=True))
    return tf.reduce_max(tf.matmul(even, other_even, transpose_b=True) + changing, axis=1)


def nearest_others(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Similarity of these rows to the nearest other one, as it is or mirrored: n of NxT."""
    k = min(2, len(rows))
    both = [neighbours.nearest(rows, queries, k) for queries in (rows[chosen], mirrored(rows[chosen]))]
    similarities, found = (np.concatenate(column, axis=1) for column in zip(*both))
    return np.where(found == chosen[:, None], -1.0, similarities).max(axis=1)


def of_copies(places: Iterable[tuple[Source, int]], geometry: tuple[int, int], same_size: bool = False) -> np.ndarray:
    """Similarity of images to their own copies; of those that can be read.

    Args:
        places: source and index of each.
        geometry: what they are resized to, and the side of the centre that is cut out.
        same_size: give a copy the image's size again: of another size it may be cut otherwise.
    """

    def row(image: np.ndarray) -> np.ndarray:
        return thumbnails(features.prepare_batch(tf.constant(image[None]), geometry)).numpy()

    found = []
    for source, index in places:
        with contextlib.suppress(tf.errors.OpError, UnicodeDecodeError):  # the latter when a message quotes bytes
            image = source.image(index)
            copy = copy_of(image)
            if same_size:
                copy = np.asarray(Image.fromarray(copy).resize(image.shape[1::-1], Image.Resampling.BICUBIC))
            found.append(float((row(image) * mirrored(row(copy))).sum()))
    return np.array(found)


class Pairs(NamedTuple):
    """Two rows each, the lower one first; their similarity, and whether it is that to the mirrored image: P each."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray


def pairs(rows: np.ndarray, threshold: float) -> Pairs:
    """All pairs of rows, NxT, that are at least so similar. Raises UserError for more than 10 million."""
    parts, total = [], 0
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        halves = _halves(block)
        for other in range(start, len(rows), _CHUNK):
            found = [part.numpy() for part in _above(*halves, *_halves(rows[other : other + _CHUNK]), threshold)]
            first, second = start + found[0], other + found[1]
            parts.append([column[second > first] for column in (first, second, *found[2:])])
            total += len(parts[-1][0])
            if total > _MOST:
                raise UserError(f"more than {_MOST:,} pairs reach --threshold={threshold:.4f}, expected few; raise it")
    return Pairs(*(np.concatenate(column) for column in zip(*parts)))


@tf.function(reduce_retracing=True)
def _above(
    even: tf.Tensor, odd: tf.Tensor, other_even: tf.Tensor, other_odd: tf.Tensor, threshold: float
) -> tuple[tf.Tensor, ...]:
    changing = tf.matmul(odd, other_odd, transpose_b=True)
    best = tf.matmul(even, other_even, transpose_b=True) + tf.abs(changing)
    places = tf.where(best >= threshold)
    return places[:, 0], places[:, 1], tf.gather_nd(best, places), tf.gather_nd(changing, places) < 0


def groups(count: int, found: Pairs) -> np.ndarray:
    """The lowest row of each row's group, N: rows are of one group where pairs lead from one to the other."""
    lowest = np.arange(count)
    while True:
        least = np.minimum(lowest[found.first], lowest[found.second])
        new = lowest.copy()
        np.minimum.at(new, found.first, least)
        np.minimum.at(new, found.second, least)
        new = new[new]
        if (new == lowest).all():
            return lowest
        lowest = new
