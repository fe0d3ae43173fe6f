"""ImageNet-100 out of a small imagenet2012: which images, their labels, the label pass and its cache."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from support.small_imagenet import KEPT, LABELS, TRAIN, examples, features
from support.tfds_sets import prepare

from moco_tf.data import sources
from moco_tf.data.pipeline import TrainBatches, eval_batches
from moco_tf.data.sets import find, imagenet100
from moco_tf.data.sets import tfds as tfds_source
from moco_tf.data.sets.imagenet100 import CLASS_NAMES
from moco_tf.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees the cache or the network of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tfds_source, "_offline", lambda: True)


@pytest.fixture
def small_imagenet(tmp_path):
    train = examples(*TRAIN)
    validation = examples("n01440764", "n01692333")
    secret = [{**example, "label": np.int64(-1)} for example in examples("n01440764", "n01692333")]
    prepare(tmp_path / "tfds", "imagenet2012", features, "5.1.0", train=train, validation=validation, test=secret)
    return train, validation


def load(tmp_path, split="train"):
    return find.load("imagenet100", split, str(tmp_path / "tfds"))


def test_the_list():
    """That of HobbitLong/CMC, imagenet100.txt, here sorted; the sum is of the published ids, sorted, one a line."""
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 100 and list(CLASS_NAMES) == sorted(CLASS_NAMES)
    digest = hashlib.sha256("".join(f"{wnid}\n" for wnid in CLASS_NAMES).encode()).hexdigest()
    assert digest == "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"


def test_every_class_is_one_of_imagenet():
    tfds = pytest.importorskip("tensorflow_datasets")
    names = tfds.builder("imagenet2012").info.features["label"].names
    assert len(names) == 1000 and set(CLASS_NAMES) <= set(names)


def test_images_and_labels(small_imagenet, tmp_path):
    train, validation = small_imagenet
    source = load(tmp_path)
    assert isinstance(source, sources.RecordSource) and source.name == "imagenet100"
    assert source.num_examples == 5 and source.num_classes == 100 and source.class_names == CLASS_NAMES
    assert source.labels.tolist() == LABELS and source.labels.dtype == np.int32
    for index, original in enumerate(KEPT):
        np.testing.assert_array_equal(source.image(index), train[original]["image"])
        assert source.class_names[source.labels[index]] == TRAIN[original]
    test = load(tmp_path, "test")  # the validation split: the test split's labels are secret
    assert test.labels.tolist() == [1]
    np.testing.assert_array_equal(test.image(0), validation[1]["image"])


def test_in_batches(small_imagenet, tmp_path):
    source = load(tmp_path)
    (batch,) = eval_batches(source, 8, prepare_one=lambda image: image[:4])
    assert batch[1].tolist() == LABELS and batch[2].tolist() == [0, 1, 2, 3, 4]
    (part,) = eval_batches(source.subset(np.array([3, 0])), 8, prepare_one=lambda image: image[:4])
    assert part[1].tolist() == [48, 99]
    np.testing.assert_array_equal(part[0], np.asarray(batch[0])[[3, 0]])

    class Corner:
        def crop_one(self, image, seed):
            return image[:4, :4]

    for _, labels, indices in TrainBatches(source, 5, seed=0, crops=[Corner()] * 2).batches(0):
        assert labels.tolist() == [LABELS[index] for index in indices]


def test_labels_are_read_once(small_imagenet, tmp_path, monkeypatch):
    first = load(tmp_path)
    (cache,) = (tmp_path / "cache" / "moco_tf").iterdir()
    read = imagenet100._read_labels
    monkeypatch.setattr(imagenet100, "_read_labels", lambda source: pytest.fail("read again"))
    assert load(tmp_path).labels.tolist() == first.labels.tolist()
    monkeypatch.setattr(imagenet100, "_read_labels", read)
    for damaged in (b"", cache.read_bytes()[:-3], bytes(len(TRAIN))):
        cache.write_bytes(damaged)
        assert load(tmp_path).labels.tolist() == LABELS
    assert len(np.load(cache)) == len(TRAIN)  # whole again


def test_a_cache_that_cannot_be_written_is_done_without(small_imagenet, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(tmp_path).labels.tolist() == LABELS


def test_other_data_is_not_taken_for_the_cached(small_imagenet, tmp_path):
    assert load(tmp_path).num_examples == 5
    prepare(tmp_path / "other", "imagenet2012", features, "5.1.0", train=examples("n15075141", "n01558993"))
    assert find.load("imagenet100", "train", str(tmp_path / "other")).labels.tolist() == [0]


def test_damaged_records_are_left_out(small_imagenet, tmp_path):
    (path,) = (tmp_path / "tfds/imagenet2012/5.1.0").glob("*train*tfrecord*")
    offset, length = tfds_source.record_places(str(path))[2]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = b"\xff" * length
    path.write_bytes(data)
    source = load(tmp_path)
    assert source.labels.tolist() == [99, 48, 48, 35]
    assert f"record at byte {tfds_source.record_places(str(path))[7][0]}" in source.describe(3)


def error_of(*arguments):
    with pytest.raises(UserError) as caught:
        find.load(*arguments)
    assert "\n" not in str(caught.value) and "--dataset=imagenet100" in str(caught.value)
    return str(caught.value)


def test_errors(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    assert "imagenet2012" in error_of("imagenet100", "train", str(tmp_path / "nothing"))


@pytest.mark.parametrize(("name", "side", "count"), [("cifar100", 32, 100), ("stl10", 96, 10)])
def test_tfds_sets_of_the_recipes_fit(name, side, count):
    """What TFDS says of the other sets that are loaded by name, without their data."""
    tfds = pytest.importorskip("tensorflow_datasets")
    image, class_names = tfds_source._features(name, tfds.builder(name).info.features)
    assert image.shape == (side, side, 3) and len(class_names) == count
    assert tf.dtypes.as_dtype(image.np_dtype) == tf.uint8
