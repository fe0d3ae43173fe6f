"""Small data sets as TensorFlow Datasets prepares them."""

import numpy as np
import pytest
import tensorflow as tf

RNG = np.random.default_rng(0)


def prepare(data_dir, name, features, version="1.0.0", **splits):
    """A prepared TFDS set made of lists of example dicts."""
    tfds = pytest.importorskip("tensorflow_datasets")
    spec = tfds.features.FeaturesDict(features(tfds.features))

    def dataset(examples):
        signature = tf.nest.map_structure(lambda f: tf.TensorSpec(f.shape, f.tf_dtype), dict(spec))
        return tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=signature)

    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        features=spec,
        split_datasets={key: dataset(examples) for key, examples in splits.items()},
        data_dir=str(data_dir),
        disable_shuffling=True,
    )


def examples(count, shape, labels=None):
    shapes = shape if isinstance(shape, list) else [shape] * count
    images = [RNG.integers(0, 255, shapes[i]).astype(np.uint8) for i in range(count)]
    labels = np.arange(count) % 2 if labels is None else labels
    return [{"image": image, "label": np.int64(label)} for image, label in zip(images, labels)]


def image_and_label(shape):
    return lambda f: {"image": f.Image(shape=shape, encoding_format="png"), "label": f.ClassLabel(names=["no", "yes"])}
