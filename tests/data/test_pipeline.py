"""Batches: order, ranks, resuming, decoding, unreadable images."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from moco_tf.data import sources
from moco_tf.data.order import Share
from moco_tf.data.pipeline import TrainBatches, epoch_order, eval_batches, view_seeds
from moco_tf.data.records import BadImages
from moco_tf.data.sets import find
from moco_tf.errors import UserError

SIZE = 8
BAD = {  # file name -> contents
    "truncated.jpg": None,  # filled in by `folder`
    "empty.jpg": b"",
    "text.jpg": b"not an image at all\n" * 20,
    "old.tif": b"II*\0" + bytes(100),
    "cut.png": b"\x89PNG\r\n\x1a\n\0\0",
    "bomb.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0\1\0\0" * 2 + bytes(100),  # 65536 x 65536
}


class NoisyCrop:
    """Stands in for RandomResizedCrop: the image's mean colour plus noise from the seed."""

    def crop_one(self, image, seed):
        mean = tf.reduce_mean(tf.cast(image, tf.float32), [0, 1])
        noise = tf.random.stateless_uniform([SIZE, SIZE, 3], seed, 0, 8)
        return tf.cast(tf.clip_by_value(mean + noise, 0, 255), tf.uint8)


TWO = [NoisyCrop(), NoisyCrop()]


def prepare_one(image):
    return tf.cast(tf.image.resize(image, [SIZE, SIZE]), tf.uint8)


def array_source(count=22):
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    return sources.ArraySource("toy", images, np.arange(count) % 3, ("a", "b", "c"))


def write_folder(root, count=20, bad=()):
    """count JPEGs and PNGs of growing brightness and different sizes, and the bad ones, in two classes."""
    good = None
    for i in range(count):
        image = np.full([10 + i, 12, 3], 10 * i, np.uint8)
        encode, extension = (tf.io.encode_png, "png") if i % 3 == 0 else (tf.io.encode_jpeg, "jpg")
        path = root / "train" / "ab"[i % 2] / f"{i:03}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image).numpy())
    good = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 255, [40, 40, 3]).astype(np.uint8)).numpy()
    for name in bad:
        (root / "train" / "a" / name).write_bytes(good[: len(good) // 2] if BAD[name] is None else BAD[name])
    return find.load("folder", "train", str(root))


def numpy_batches(batches):
    return [tf.nest.map_structure(np.asarray, batch) for batch in batches]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(1, 2, 100)
    assert sorted(order) == list(range(100))
    np.testing.assert_array_equal(order, epoch_order(1, 2, 100))
    assert not np.array_equal(order, epoch_order(1, 3, 100))
    assert not np.array_equal(order, epoch_order(2, 2, 100))


def test_view_seeds_depend_on_image_not_on_company():
    seeds = view_seeds(3, 4, np.arange(1000), 2)
    assert seeds.shape == (1000, 2, 2) and seeds.dtype == np.int32
    np.testing.assert_array_equal(seeds[[17, 5]], view_seeds(3, 4, np.array([17, 5]), 2))
    assert len(np.unique(seeds.reshape(-1, 2), axis=0)) == 2000
    assert not (view_seeds(3, 5, np.arange(1000), 2) == seeds).all(-1).any()


def test_array_batches():
    source = array_source()
    batches = TrainBatches(source, 4, seed=0)
    assert batches.steps_per_epoch == 5
    got = list(batches.batches(epoch=1))
    order = epoch_order(0, 1, 22)
    np.testing.assert_array_equal(np.concatenate([indices for _, _, indices in got]), order[:20])
    for images, labels, indices in got:
        assert images.dtype == np.uint8 and images.shape == (4, 2, 2, 3)
        assert labels.dtype == np.int32 and indices.dtype == np.int64
        np.testing.assert_array_equal(images, source.images[indices])
        np.testing.assert_array_equal(labels, source.labels[indices])
    assert_same(got[3:], list(batches.batches(1, start_step=3)))
    assert list(batches.batches(1, start_step=5)) == []


def test_last_partial_batch_can_be_kept_on_one_rank():
    batches = TrainBatches(array_source(), 4, seed=0, drop_remainder=False)
    got = [indices for _, _, indices in batches.batches(0)]
    assert batches.steps_per_epoch == len(got) == 6 and len(got[-1]) == 2
    assert sorted(np.concatenate(got)) == list(range(22))
    with pytest.raises(ValueError, match="one rank"):
        TrainBatches(array_source(), 4, 0, Share(0, 2), drop_remainder=False)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_stride_the_global_batch(ranks):
    whole = list(TrainBatches(array_source(), 8, seed=5).batches(2))
    shares = [list(TrainBatches(array_source(), 8, 5, Share(rank, ranks)).batches(2)) for rank in range(ranks)]
    for step, (_, _, indices) in enumerate(whole):
        for rank in range(ranks):
            np.testing.assert_array_equal(shares[rank][step][2], indices[rank::ranks])


def test_batch_size_is_checked():
    for batch_size, ranks in [(0, 1), (5, 2), (23, 1)]:
        with pytest.raises(UserError, match=f"--batch_size={batch_size} came, expected") as caught:
            TrainBatches(array_source(), batch_size, 0, Share(0, ranks))
        assert "\n" not in str(caught.value)


def test_threads_end_with_the_iterator():
    before = threading.active_count()
    iterator = TrainBatches(array_source(), 2, seed=0).batches(0)
    next(iterator)
    assert threading.active_count() > before
    iterator.close()
    assert threading.active_count() == before


def test_grey_images_come_as_rgb():
    grey = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
    source = sources.ArraySource("grey", grey)
    images, labels, indices = next(TrainBatches(source, 5, seed=0).batches(0))
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(images, np.repeat(grey[indices], 3, -1))
    assert (labels == -1).all() and source.num_classes == 0


def test_record_batches(tmp_path):
    source = write_folder(tmp_path)
    batches = TrainBatches(source, 6, seed=1, crops=TWO)
    got = numpy_batches(batches.batches(0))
    assert batches.steps_per_epoch == len(got) == 3
    np.testing.assert_array_equal(np.concatenate([indices for _, _, indices in got]), epoch_order(1, 0, 20)[:18])
    for (first, second), labels, indices in got:
        assert first.shape == second.shape == (6, SIZE, SIZE, 3) and first.dtype == np.uint8
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(labels, source.labels[indices])
        brightness = np.array([source.image(i).mean() for i in indices])
        np.testing.assert_allclose(first.mean((1, 2, 3)), brightness + 3.5, atol=1.5)
    assert_same(got, numpy_batches(batches.batches(0)))
    assert_same(got[1:], numpy_batches(batches.batches(0, start_step=1)))
    assert list(batches.batches(0, start_step=3)) == []
    one_view = numpy_batches(TrainBatches(source, 6, seed=1, crops=[NoisyCrop()]).batches(0))
    assert_same([batch[0] for batch in one_view], [batch[0][0] for batch in got])


def test_each_view_has_its_own_crop(tmp_path):
    class Dark:
        def crop_one(self, image, seed):
            return tf.zeros_like(NoisyCrop().crop_one(image, seed))

    source = write_folder(tmp_path, count=4)
    ((first, second), *_) = next(TrainBatches(source, 4, 0, crops=[NoisyCrop(), Dark()]).batches(0))
    ((alike, _), *_) = next(TrainBatches(source, 4, 0, crops=TWO).batches(0))
    np.testing.assert_array_equal(first, alike)
    assert not second.numpy().any()


def test_record_batches_need_functions(tmp_path):
    source = write_folder(tmp_path, count=2)
    with pytest.raises(ValueError, match="crop"):
        TrainBatches(source, 2, seed=0)
    with pytest.raises(ValueError, match="prepare_one"):
        eval_batches(source, 2)


def test_unreadable_images_are_replaced_and_listed(tmp_path):
    source = write_folder(tmp_path, bad=BAD)
    file = tmp_path / "unreadable.txt"
    batches = TrainBatches(source, 4, 3, crops=TWO, bad_images=BadImages(len(BAD), str(file)))
    first = numpy_batches(batches.batches(0))
    indices = np.concatenate([indices for _, _, indices in first])
    assert len(first) == batches.steps_per_epoch == 6 and {len(labels) for _, labels, _ in first} == {4}
    bad = {i for i in range(source.num_examples) if source.describe(i).rsplit("/")[-1] in BAD}
    order = epoch_order(3, 0, source.num_examples)[:24]
    keeps = ~np.isin(order, list(bad))
    assert not keeps.all() and not bad & set(indices)
    np.testing.assert_array_equal(indices[keeps], order[keeps])  # nothing else moves

    # Known now: the same batches come without a search, and on any rank, from any step.
    met = len(batches.unreadable)
    assert_same(first, numpy_batches(batches.batches(0)))
    assert len(batches.unreadable) == met
    resumed = TrainBatches(source, 4, 3, crops=TWO, bad_images=BadImages(9, str(file)))
    assert_same(first[4:], numpy_batches(resumed.batches(0, start_step=4)))
    for rank in range(2):
        share = TrainBatches(source, 4, 3, Share(rank, 2), TWO, bad_images=BadImages(9, str(file)))
        for whole, part in zip(first, numpy_batches(share.batches(0)), strict=True):
            np.testing.assert_array_equal(whole[2][rank::2], part[2])
            np.testing.assert_array_equal(whole[0][1][rank::2], part[0][1])
        assert (tmp_path / f"unreadable.rank{rank}.txt").exists()

    lines = [line.split("\t") for line in file.read_text().splitlines()]
    assert all(len(line) == 2 and line[1] for line in lines)
    assert len({line[0] for line in lines}) == len(lines) >= met  # none listed twice
    assert {line[0].rsplit("/")[-1] for line in lines} <= set(BAD)


def test_every_kind_of_bad_image_is_found_in_evaluation(tmp_path):
    source = write_folder(tmp_path, bad=BAD)
    file = tmp_path / "unreadable.txt"
    got = numpy_batches(eval_batches(source, 4, prepare_one=prepare_one, bad_images=BadImages(len(BAD), str(file))))
    indices = np.concatenate([indices for _, _, indices in got])
    names = [source.describe(i).rsplit("/")[-1] for i in range(source.num_examples)]
    assert list(indices) == [i for i, name in enumerate(names) if name not in BAD]
    listed = dict(line.split("\t") for line in file.read_text().splitlines())
    assert {path.rsplit("/")[-1] for path in listed} == set(BAD)
    assert "too many pixels" in listed[str(tmp_path / "train/a/bomb.png")]


@pytest.mark.parametrize("limit", [0, 2])
def test_too_many_unreadable_images_stop_the_run(tmp_path, limit):
    source = write_folder(tmp_path, count=8, bad=["empty.jpg", "text.jpg", "cut.png"])
    batches = TrainBatches(source, 11, seed=0, crops=TWO, bad_images=BadImages(limit))
    with pytest.raises(UserError, match=f"{limit + 1} unreadable.*--max_bad_images={limit}") as caught:
        list(batches.batches(0))
    assert "\n" not in str(caught.value)


def test_all_images_unreadable_is_an_error_not_a_loop(tmp_path):
    source = write_folder(tmp_path, count=2, bad=["empty.jpg", "text.jpg"])
    for path in (tmp_path / "train").rglob("0*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of its 4 images") as caught:
        list(TrainBatches(source, 2, seed=0, crops=TWO, bad_images=BadImages(1000)).batches(0))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="none of its 4 images"):
        list(eval_batches(source, 3, prepare_one=prepare_one, bad_images=BadImages(1000)))


def test_a_mistake_in_the_crop_is_not_an_unreadable_image(tmp_path):
    class Wrong:
        def crop_one(self, image, seed):
            return image.no_such_method()

    batches = TrainBatches(write_folder(tmp_path, count=4), 2, seed=0, crops=[Wrong()], bad_images=BadImages(1000))
    with pytest.raises(AttributeError):
        list(batches.batches(0))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_eval_batches_give_every_example_once(tmp_path, ranks):
    for source, prepare in [(array_source(), None), (write_folder(tmp_path), prepare_one)]:
        seen = []
        for rank in range(ranks):
            got = numpy_batches(eval_batches(source, 4, Share(rank, ranks), prepare))
            assert all(len(images) == 4 for images, _, _ in got[:-1]) and 1 <= len(got[-1][0]) <= 4
            mine = np.concatenate([indices for _, _, indices in got])
            np.testing.assert_array_equal(mine, np.arange(rank, source.num_examples, ranks))
            np.testing.assert_array_equal(np.concatenate([labels for _, labels, _ in got]), source.labels[mine])
            seen += list(mine)
        assert sorted(seen) == list(range(source.num_examples))
