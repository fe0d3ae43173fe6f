"""Features of a data set: every image once, resized and cropped as in tests, over all ranks."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from moco_tf.data.augment_geometry import resize_center_crop, resize_center_crop_one
from moco_tf.data.pipeline import eval_batches
from moco_tf.data.sources import ArraySource, Source
from moco_tf.networks.encoder import Encoder
from moco_tf.training.collectives import Collectives


def test_geometry(source: Source, image_size: int, test_resize: int = 0) -> tuple[int, int]:
    """(short side to resize to, side of the centre crop) of test images.

    Images whose size is the network's are taken as they are; others are resized to 256/224 of it, as for ImageNet.
    """
    size = image_size or (min(source.image_shape) if source.image_shape else 224)
    if test_resize:
        return test_resize, size
    return (size, size) if source.image_shape == (size, size) else (round(size * 256 / 224), size)


def prepare_batch(images: tf.Tensor, geometry: tuple[int, int]) -> tf.Tensor:
    """Test images of one size as float32 BxSxSx3 in [0, 1]: uint8 BxHxWx3 in."""
    resize, size = geometry
    if images.shape[1:3] == (size, size) and resize == size:
        return tf.cast(images, tf.float32) / 255.0
    return resize_center_crop(images, resize, size)


def embedder(
    encoder: Encoder, feature: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Images in [0, 1] to features, in inference mode: "backbone" BxD, "head" BxC."""
    mean, std = tf.constant(mean), tf.constant(std)

    def embed(images: tf.Tensor) -> tf.Tensor:
        x = (images - mean) / std
        return encoder.features(x, training=False) if feature == "backbone" else encoder(x, training=False)

    return embed


def raw_pixels(images: tf.Tensor) -> tf.Tensor:
    """Images in [0, 1] to their pixels in a row: the baseline that knows nothing."""
    return tf.reshape(images, [tf.shape(images)[0], -1])


def extract(
    embed: Callable[[tf.Tensor], tf.Tensor],
    source: Source,
    geometry: tuple[int, int],
    batch_size: int,
    collectives: Collectives,
    max_bad_images: int = 0,
    bad_images_file: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N x D float32) and labels (N int32) of all readable images, in the source's order, on every rank.

    Args:
        embed: float32 images in [0, 1], BxSxSx3, to features.
        source: the images.
        geometry: of `test_geometry`.
        batch_size: of one rank.
        collectives: each rank computes its share, then all are gathered.
        max_bad_images, bad_images_file: of `eval_batches`.
    """
    compute = tf.function(lambda images: embed(prepare_batch(images, geometry)), reduce_retracing=True)
    prepare_one = None if isinstance(source, ArraySource) else lambda image: resize_center_crop_one(image, *geometry)
    parts = [
        (compute(tf.constant(images)).numpy(), labels, indices)
        for images, labels, indices in eval_batches(
            source,
            batch_size,
            collectives.rank,
            collectives.size,
            prepare_one,
            max_bad_images,
            bad_images_file,
        )
    ]
    features, labels, indices = (np.concatenate(column) for column in zip(*parts))
    if collectives.size > 1:
        features, labels, indices = (collectives.allgather(tf.constant(c)).numpy() for c in (features, labels, indices))
    order = np.argsort(indices)
    return features[order], labels[order]


def normalised(features: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
