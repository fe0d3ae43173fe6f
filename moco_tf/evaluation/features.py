"""Features of a data set: every image once, resized and cropped as in tests, over all ranks."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from moco_tf.data.order import Share
from moco_tf.data.pipeline import reading
from moco_tf.data.records import NO_BAD_IMAGES, BadImages
from moco_tf.data.sources import Source
from moco_tf.data.views.geometry import resize_center_crop
from moco_tf.errors import RankError, UserError
from moco_tf.evaluation.robustness import Alter
from moco_tf.networks.encoder import Encoder
from moco_tf.training.collectives import Collectives


def test_geometry(source: Source, image_size: int, test_resize: int = 0) -> tuple[int, int]:
    """(short side to resize to, or 0: as `prepare` chooses, side of the centre crop) of test images."""
    return test_resize, image_size or (min(source.image_shape) if source.image_shape else 224)


def short_side(size: int) -> int:
    """What the short side of a test image is resized to before a centre of this size is cut out: 256/224 of it."""
    return round(size * 256 / 224)


def prepare(images: tf.Tensor, geometry: tuple[int, int]) -> tf.Tensor:
    """Test images of one size as the network takes them: uint8 BxHxWx3, H and W perhaps not known yet, to BxSxSx3.

    Where no short side is given, images whose size is the network's are taken as they are, whatever holds them; others
    are resized to 256/224 of it, as for ImageNet.
    """
    resize, size = geometry
    if resize not in (0, size):
        return resize_center_crop(images, resize, size)
    if images.shape[1:3] == (size, size):
        return images
    as_it_is = tf.reduce_all(tf.shape(images)[1:3] == size)
    return tf.ensure_shape(
        tf.cond(as_it_is, lambda: images, lambda: resize_center_crop(images, resize or short_side(size), size)),
        (images.shape[0], size, size, 3),
    )


def prepare_batch(images: tf.Tensor, geometry: tuple[int, int]) -> tf.Tensor:
    """As `prepare`, then as float32 in [0, 1]."""
    return tf.cast(prepare(images, geometry), tf.float32) / 255.0


def embedder(
    encoder: Encoder, feature: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Images in [0, 1] to features, in inference mode.

    Args:
        encoder: of the features.
        feature: "backbone": BxD; "head": BxC; "dense": BxRxCxD, the backbone's map before it is pooled;
            "patches": BxD, the mean of that map, on a ViT that of its patches in place of the class token.
        mean, std: of RGB in [0, 1], to normalise with.
    """
    mean, std = tf.constant(mean), tf.constant(std)

    def embed(images: tf.Tensor) -> tf.Tensor:
        x = (images - mean) / std
        if feature in ("dense", "patches"):
            found = encoder.backbone.feature_map(x)
            return found if feature == "dense" else tf.reduce_mean(found, axis=[1, 2])
        return encoder.features(x, training=False) if feature == "backbone" else encoder(x, training=False)

    return embed


def raw_pixels(images: tf.Tensor) -> tf.Tensor:
    """Images in [0, 1] to their pixels in a row: the baseline that knows nothing."""
    return tf.reshape(images, [tf.shape(images)[0], -1])


def extract(
    embed: Callable[[tf.Tensor], tf.Tensor],
    source: Source,
    geometry: tuple[int, int],
    rank_batch: int,
    collectives: Collectives,
    bad_images: BadImages = NO_BAD_IMAGES,
    alter: Alter | None = None,
    done: Callable[[int], object] = lambda images: None,
) -> tuple[np.ndarray, ...]:
    """Features (N x D float32) and labels (N int32) of all readable images, in the source's order, on every rank.

    Takes 4 N D bytes of each rank; of several ranks, three times as much while the shares are put in order. An embed
    that returns several tensors has as many columns in place of the features.

    Args:
        embed, source, geometry, rank_batch, collectives, bad_images, alter, done: of `extract_share`.
    """
    share = extract_share(embed, source, geometry, rank_batch, collectives, bad_images, alter, done)
    if collectives.size == 1:
        return share[:-1]
    *columns, indices = (collectives.allgather(tf.constant(column)).numpy() for column in share)
    order = np.argsort(indices)
    return tuple(column[order] for column in columns)


def extract_share(
    embed: Callable[[tf.Tensor], tf.Tensor],
    source: Source,
    geometry: tuple[int, int],
    rank_batch: int,
    collectives: Collectives,
    bad_images: BadImages = NO_BAD_IMAGES,
    alter: Alter | None = None,
    done: Callable[[int], object] = lambda images: None,
) -> tuple[np.ndarray, ...]:
    """Features (n x D float32), labels (n int32) and indices (n int64, ascending) of this rank's readable images.

    An embed that returns several tensors has as many columns in place of the features.

    Args:
        embed: float32 images in [0, 1], BxSxSx3, to features.
        source: the images; rank r of R has those of index r, r + R, r + 2R ...
        geometry: of `test_geometry`.
        rank_batch: images of a batch of one rank.
        collectives: which rank this is; nothing crosses ranks.
        bad_images: of `eval_batches`.
        alter: what is done to the images first.
        done: called with the number of images of each batch, for a progress bar.

    Raises:
        UserError: too few images, or too few that can be read.
    """
    rank, ranks = collectives.rank, collectives.size
    if source.num_examples < ranks:
        raise UserError(f"{source.name} has {source.num_examples} images, expected one for each of {ranks} ranks")
    own, filled = np.arange(rank, source.num_examples, ranks), 0
    count, columns = len(own), tuple[np.ndarray, ...]()
    for batch in computing(embed, source, geometry, Share(rank, ranks), bad_images, alter)(own, rank_batch):
        # One array, filled in place: a list of parts that is joined in the end takes the memory twice.
        columns = columns or tuple(np.empty((count, *part.shape[1:]), part.dtype) for part in batch)
        for column, part in zip(columns, batch):
            column[filled : filled + len(part)] = part
        filled += len(batch[0])
        done(len(batch[0]))
    if not filled:
        raise RankError(f"{source.name}: none of a rank's {count} images can be read; mend them, or use fewer ranks")
    columns = tuple(column[:filled] for column in columns)
    if bool(np.all(np.diff(columns[-1]) > 0)):
        return columns
    order = np.argsort(columns[-1])
    return tuple(column[order] for column in columns)


def computing(
    embed: Callable[[tf.Tensor], tf.Tensor],
    source: Source,
    geometry: tuple[int, int],
    share: Share,
    bad_images: BadImages = NO_BAD_IMAGES,
    alter: Alter | None = None,
) -> Callable[[np.ndarray, int], Iterator[tuple[np.ndarray, ...]]]:
    """(indices int64 N, B) to (features B x ..., labels B int32, indices B int64) of these images, batch by batch.

    An embed that returns several tensors has as many columns in place of the features.

    Args:
        embed, source, geometry, bad_images, alter, done: of `extract_share`.
        share: this rank, for the list of unreadable images.
    """
    prepare_one, in_batch = None, geometry
    if not source.fixed_size:  # images of many sizes: resized and cut one by one, and not again
        prepare_one, in_batch = lambda image: prepare(image[None], geometry)[0], (geometry[1], geometry[1])
    compute, read = _compiled(embed, in_batch), reading(source, share, prepare_one, bad_images)

    def batches(indices: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, ...]]:
        for images, labels, chosen in read(indices, size):
            images = images if alter is None else alter(np.asarray(images), np.asarray(chosen))
            found = compute(tf.constant(images))
            yield *(part.numpy() for part in (found if isinstance(found, tuple) else (found,))), labels, chosen

    return batches


@functools.lru_cache(maxsize=2)  # an evaluation on the way traces once, not each time
def _compiled(embed: Callable[[tf.Tensor], tf.Tensor], geometry: tuple[int, int]) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.function(lambda images: embed(prepare_batch(images, geometry)), autograph=False, reduce_retracing=True)


NOT_FINITE = (
    "the encoder's features are not all finite, expected numbers; it has diverged, or overflows in this "
    "--precision: give an earlier checkpoint, or --precision=float32"
)


def check_finite(features: np.ndarray, collectives: Collectives) -> None:
    """Refuses features with an infinity or NaN on any rank: NxD; rank 0 says how many of all ranks' are zero, if any.

    Raises:
        UserError: on all ranks.
    """
    blocks = [features[i : i + 4096] for i in range(0, len(features), 4096)]
    bad = sum(not np.isfinite(block).all() for block in blocks)
    zero = sum(int((~block.any(axis=1)).sum()) for block in blocks)
    means = collectives.mean([tf.constant([bad, zero, len(features)], tf.float64)])[0]
    bad, zero, count = (round(float(mean) * collectives.size) for mean in means)
    if bad:
        raise UserError(NOT_FINITE)
    if zero and collectives.rank == 0:
        print(f"warning: {zero} of {count} features are all zero: they are alike to any other", flush=True)


def normalised(features: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
