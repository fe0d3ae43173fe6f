"""Label-free measures of an encoder on training images: which of these, how many views of each, and the figures.

N images, n images of which q views are made, D width of the features.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from moco_tf.config.options import ViewOptions
from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.data.pipeline import TrainBatches
from moco_tf.data.records import BadImages
from moco_tf.data.sources import Source
from moco_tf.data.views import recipes
from moco_tf.evaluation import features, label_free, uniformity
from moco_tf.methods import base
from moco_tf.run import prepare
from moco_tf.training.collectives import Collectives

IMAGES = 25_600  # N at most: as many as RankMe's authors take
VIEWED, VIEWS = 2_500, 10  # n at most, and q
_BATCH = 128
_OF_IMAGES, _OF_VIEWS = {"rankme", "alpha_req"}, {"lidar", "uniformity", "alignment"}

Embed = Callable[[tf.Tensor], tf.Tensor]
Seen = tuple[np.ndarray | None, np.ndarray | None]  # features of images as they are, NxD, and of views, nxqxD


def see(
    embed: Embed,
    wanted: Sequence[str],
    train: Source,
    geometry: tuple[int, int],
    views: ViewOptions,
    seed: int,
    collectives: Collectives,
    bad_images: BadImages,
) -> Seen:
    """The features that the measures need, the same on every rank; None in place of what they do not.

    Args:
        embed: float32 images in [0, 1], BxSxSx3, to features; one function for one encoder, so that it is traced once.
        wanted: measures.
        train: training images, of which the seed draws.
        geometry: of `features.test_geometry`.
        views: the random views of an image.
        seed: of the choice and the views.
        collectives: ranks share the images out, but not the views: each makes them all.
        bad_images: how unreadable images are treated.

    Raises:
        UserError: no image can be read, or the views cannot be made.
    """
    plain, viewed = None, None
    if _OF_IMAGES & set(wanted):
        plain, _ = features.extract(embed, some(train, IMAGES, seed), geometry, _BATCH, collectives, bad_images)
    if _OF_VIEWS & set(wanted):
        both = prepare.random_views(views, geometry[1], NORMALISATIONS["none"])
        prepare.check_crop(views.views, both, train)
        viewed = _of_views(embed, some(train, VIEWED, seed), both, seed, bad_images)
    return plain, viewed


def figures(seen: Seen, wanted: Sequence[str]) -> dict[str, float]:
    """The measures by name, in the order in which they are wanted; NaN where features are not finite, or too few."""
    plain, viewed = seen
    found: dict[str, float] = {}
    if plain is not None:
        found |= {"rankme": label_free.rankme(plain), "alpha_req": label_free.alpha_req(plain)}
    if viewed is not None:
        found["lidar"] = label_free.lidar(viewed) if len(viewed) > 1 else np.nan
        found["alignment"], found["uniformity"] = _on_sphere(viewed[:, 0], viewed[:, 1])
    return {name: found[name] for name in wanted if name in found}


def sizes(seen: Seen) -> dict[str, int]:
    """How many features the figures are of: images, images viewed, views of each, width."""
    plain, viewed = seen
    found = {} if plain is None else {"images": len(plain), "width": plain.shape[-1]}
    return found if viewed is None else found | dict(zip(("images_viewed", "views_of_each", "width"), viewed.shape))


def words(found: dict[str, float]) -> str:
    """The figures in a line."""
    names = {"rankme": "RankMe", "alpha_req": "alpha-ReQ", "lidar": "LiDAR"}
    return ", ".join(f"{names.get(name, name)} {value:.4g}" for name, value in found.items())


def some(source: Source, count: int, seed: int) -> Source:
    """At most so many of the images, which the seed draws, in their order."""
    if count >= source.num_examples:
        return source
    chosen = np.random.default_rng(seed).choice(source.num_examples, count, replace=False)
    return source.subset(np.sort(chosen))


def view_pairs(
    source: Source,
    views: tuple[recipes.View, recipes.View],
    seed: int,
    bad_images: BadImages,
    epoch: int = 0,
) -> Iterator[tuple[tf.Tensor, tf.Tensor, np.ndarray]]:
    """Two random views of every image, BxSxSx3 each, made as a training step makes them, and the images' indices, B.

    Args:
        source: the images, which come in the order of the epoch.
        views: of the first and the second view, crops included.
        seed: of order and views.
        bad_images: how many unreadable images are replaced by others.
        epoch: another one has other views.
    """
    crops, size = prepare.crops(views), min(_BATCH, source.num_examples)
    batches = TrainBatches(source, size, seed, crops=crops, bad_images=bad_images, drop_remainder=False)
    rest = [prepare.in_step(view, source) for view in views]
    for number, (images, _, indices) in enumerate(batches.batches(epoch), epoch * batches.steps_per_epoch):
        first, second, *_ = base.unpack((images,))
        count = len(first)
        seeds = (tf.constant([seed * 16 + use, number]) for use in (base.FIRST_VIEW, base.SECOND_VIEW))
        each = zip(rest, (first, second), seeds)
        one, other = (view(tf.constant(x), seed, tf.range(count), count) for view, x, seed in each)
        yield one, other, np.asarray(indices)


def _of_views(
    embed: Embed, source: Source, views: tuple[recipes.View, recipes.View], seed: int, bad_images: BadImages
) -> np.ndarray:
    """Features of VIEWS random views of every readable image, n x q x D, the images in the source's order."""
    compute, columns = tf.function(embed, autograph=False, reduce_retracing=True), []
    for epoch in range(VIEWS // 2):
        parts = [(compute(x), compute(y), rows) for x, y, rows in view_pairs(source, views, seed, bad_images, epoch)]
        first, second, indices = (np.concatenate(column) for column in zip(*parts))
        _, rows = np.unique(indices, return_index=True)  # what stands for an unreadable image comes twice
        columns += [first[rows], second[rows]]
    return np.stack(columns, axis=1)


def _on_sphere(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Alignment of two views of each image, and the mean of both views' uniformity."""
    x, y = features.normalised(x), features.normalised(y)
    if len(x) < 2 or not min(np.linalg.norm(x, axis=1).min(), np.linalg.norm(y, axis=1).min()) > 0.5:
        return np.nan, np.nan  # a feature of zero, or that is not finite, has no direction
    return uniformity.alignment(x, y), (uniformity.uniformity(x) + uniformity.uniformity(y)) / 2
