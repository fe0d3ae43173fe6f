"""Packs: what is read back, the same bytes whatever the workers, going on after a kill, and what is refused."""

import json
import os
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from support import small_imagenet as imagenet
from support.programs import call, parse, start
from support.tfds_sets import examples, image_and_label, prepare

from moco_tf.data import packing, sources
from moco_tf.data.order import Share, block_order
from moco_tf.data.pipeline import TrainBatches, eval_batches
from moco_tf.data.records import BadImages
from moco_tf.data.sets import fashion_mnist, find
from moco_tf.data.sets import tfds as tfds_source
from moco_tf.data.views.geometry import RandomResizedCrop, resize_one
from moco_tf.errors import UserError

SMALL = 0.006  # megabytes a shard: a few images each


def smooth(rng, height, width):
    """A photo-like image: uint8 HxWx3."""
    coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.float32)
    return tf.cast(tf.image.resize(coarse, (height, width)), tf.uint8)


def write_photos(root, count=14):
    """train/ and val/ with two classes of JPEGs, every third a PNG, of short sides 20 to 70."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 4)):
        for i in range(number):
            image = smooth(rng, 20 + 50 * i // number, 40 + 7 * i)
            encode, extension = (tf.io.encode_png, "png") if i % 3 == 0 else (tf.io.encode_jpeg, "jpg")
            path = root / split / ("cat", "grün ✓")[i % 2] / f"{i:02}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image).numpy())
    return root


@pytest.fixture(scope="module", autouse=True)
def _same_threads():
    """TensorFlow of this process has chosen its threads already, whatever --workers says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moco_tf.training.device.configure", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A pack of the photos, kept as they are."""
    output = tmp_path_factory.mktemp("packs") / "whole"
    pack(photos, output, short_side=0)
    return output


def pack(photos, output, **values):
    values = {"dataset": "folder", "shard_mb": SMALL, "workers": 2, **values}
    call("pack", data_dir=photos, output=output, **values)
    return output


def refusal(*words, **values):
    """The message of a pack program that refuses these flags."""
    with pytest.raises(UserError) as caught:
        call("pack", **values)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


def load_refusal(folder, *words, split="train"):
    with pytest.raises(UserError) as caught:
        find.load("packed", split, str(folder))
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def contents(folder, but=("README.md",)):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in but}


def encoded(source, index):
    return source.read(*map(tf.convert_to_tensor, source.entries(index)))[0].numpy()


def names(source):
    return [source.describe(index) for index in range(source.num_examples)]


# ---- What is read back


@pytest.mark.parametrize("split", ["train", "test"])
def test_everything_comes_back_as_it_was(photos, whole, split):
    folder, pack = (find.load(n, split, str(path)) for n, path in (("folder", photos), ("packed", whole)))
    assert isinstance(pack, sources.RecordSource) and pack.image_shape is None
    assert pack.num_examples == folder.num_examples and pack.class_names == folder.class_names
    assert pack.labels.dtype == np.int32 and pack.labels.tolist() == folder.labels.tolist()
    assert names(pack) == [os.path.relpath(name, photos) for name in names(folder)]
    for index in reversed(range(pack.num_examples)):
        assert encoded(pack, index) == pathlib.Path(folder.describe(index)).read_bytes()
    part = pack.subset(np.array([3, 1]))
    assert names(part) == [names(pack)[3], names(pack)[1]] and encoded(part, 0) == encoded(pack, 3)


def test_training_batches_are_those_of_the_folder(photos, whole):
    batches = [
        list(
            TrainBatches(
                find.load(name, "train", str(path)), 4, 7, crops=[RandomResizedCrop(16, (0.2, 1))] * 2
            ).batches(1)
        )
        for name, path in (("folder", photos), ("packed", whole))
    ]
    assert len(batches[0]) == len(batches[1]) == 3
    for of_folder, of_pack in zip(*batches):
        tf.nest.map_structure(np.testing.assert_array_equal, of_folder, of_pack)


def test_shards_are_full_and_any_reader_reads_them(photos, whole):
    index = json.loads((whole / "index.json").read_text())
    shards = index["splits"]["train"]
    assert index["finished"] and len(shards) > 2 and not index["splits"]["test"][0]["skipped"]
    sizes = [(whole / f"{shard['name']}.tfrecord").stat().st_size for shard in shards]
    assert sizes == [shard["bytes"] for shard in shards]
    assert all(size <= SMALL * 1e6 or shard["records"] == 1 for size, shard in zip(sizes, shards))
    records = tf.data.TFRecordDataset([str(whole / f"{shard['name']}.tfrecord") for shard in shards])
    features = {key: tf.io.FixedLenFeature([], kind) for key, kind in (("label", tf.int64), ("name", tf.string))}
    found = [tf.io.parse_single_example(record, features) for record in records]
    source = find.load("packed", "train", str(whole))
    assert [int(example["label"]) for example in found] == source.labels.tolist()
    assert [os.fsdecode(example["name"].numpy()) for example in found] == names(source)


def test_larger_images_become_smaller(photos, tmp_path):
    pack(photos, tmp_path / "pack", short_side=40)
    folder, small = (
        find.load("folder", "train", str(photos)),
        find.load("packed", "train", str(tmp_path / "pack")),
    )
    assert names(small) == [os.path.relpath(name, photos) for name in names(folder)]
    smaller = 0
    for index in range(folder.num_examples):
        image, data = folder.image(index), encoded(small, index)
        height, width = image.shape[:2]
        assert data[:4] == encoded(folder, index)[:4]  # a JPEG or PNG as before
        if min(height, width) <= 40:
            assert data == encoded(folder, index)
            continue
        smaller += 1
        wanted = resize_one(image, 40 * height // min(height, width), 40 * width // min(height, width)).numpy()
        assert min(wanted.shape[:2]) == 40 and small.image(index).shape == wanted.shape
        difference = np.abs(small.image(index).astype(int) - wanted)
        assert difference.mean() < 3 if data[:2] == b"\xff\xd8" else not difference.any()
        assert data[:4] == b"\x89PNG" or packing.jpeg_quality(data) == packing.QUALITY
    assert smaller > 3


def test_quality_asks(photos, tmp_path):
    pack(photos, tmp_path / "pack", short_side=40, quality=60)
    small = find.load("packed", "train", str(tmp_path / "pack"))
    found = [packing.jpeg_quality(data) for data in (encoded(small, i) for i in range(14)) if data[:2] == b"\xff\xd8"]
    assert found and set(found) == {60}  # they were of 95
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    for quality in (25, 50, 75, 95, 100):
        data = tf.io.encode_jpeg(image, quality=quality).numpy()
        assert packing.jpeg_quality(data) == pytest.approx(quality, abs=1)
        if quality <= 95:
            encode = packing.encoder(40, quality + 2)
            assert encode(tf.constant(data)).numpy() == data  # not blown up
    assert packing.jpeg_quality(b"\xff\xd8\xff\xe0\0\x10JFIF") == packing.jpeg_quality(b"") == 0


def test_other_formats_and_grey(tmp_path):
    encode = packing.encoder(8, None)
    gif = b"GIF89a\1\0\1\0\x80\0\0\xff\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    assert encode(tf.constant(gif)).numpy() == gif
    bmp = b"BM" + (54 + 16 * 48).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    bmp += b"".join(n.to_bytes(4, "little") for n in (40, 16, 16)) + b"\1\0\x18\0" + bytes(24) + bytes([9]) * (16 * 48)
    data = encode(tf.constant(bmp)).numpy()
    np.testing.assert_array_equal(sources.decode_rgb(tf.constant(data)), np.full((8, 8, 3), 9))
    assert data[:4] == b"\x89PNG"
    grey = tf.io.encode_jpeg(np.full((20, 16, 1), 77, np.uint8))
    np.testing.assert_array_equal(sources.decode_rgb(encode(grey)), np.full((10, 8, 3), 77))


def test_images_in_memory_become_png(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 28, 28, 1)).astype(np.uint8)
    labels = np.arange(30) % 10
    array = sources.ArraySource("fashion_mnist", images, labels, fashion_mnist.CLASS_NAMES)
    monkeypatch.setattr(fashion_mnist, "load", lambda split, data_dir: array)
    call("pack", dataset="fashion_mnist", output=tmp_path / "pack", workers=2)
    source = find.load("packed", "test", str(tmp_path / "pack"))
    assert source.labels.tolist() == labels.tolist() and source.class_names == fashion_mnist.CLASS_NAMES
    assert source.describe(7) == "test 7" and len(encoded(source, 7)) < 28 * 28 + 100  # one channel
    for index in range(30):
        np.testing.assert_array_equal(source.image(index), array.image(index))


def test_tfds(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "_offline", lambda: True)
    wanted = examples(9, [(4 + i, 12 - i, 3) for i in range(9)])
    prepare(tmp_path, "sizes", image_and_label((None, None, 3)), train=wanted)
    values = {"dataset": "sizes", "data_dir": tmp_path, "output": tmp_path / "pack", "workers": 2}
    assert not (tmp_path / "pack").exists()
    refusal("expected test or validation", "pack --splits=train alone", **values)
    call("pack", splits="train", **values)
    source = find.load("packed", "train", str(tmp_path / "pack"))
    assert source.labels.tolist() == [example["label"] for example in wanted] and source.class_names == ("no", "yes")
    assert source.describe(2).startswith("sizes/1.0.0/sizes-train.tfrecord")
    for index in (8, 0, 3):
        np.testing.assert_array_equal(source.image(index), wanted[index]["image"])
    load_refusal(tmp_path / "pack", "has the splits train, expected test", split="test")


def test_imagenet100(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train, validation = (imagenet.examples(*ids) for ids in (imagenet.TRAIN, ("n01692333",)))
    prepare(tmp_path / "tfds", "imagenet2012", imagenet.features, "5.1.0", train=train, validation=validation)
    output = tmp_path / "pack"
    call("pack", dataset="imagenet100", data_dir=tmp_path / "tfds", output=output, short_side=0, workers=2)
    source = find.load("packed", "train", str(output))
    assert source.labels.tolist() == imagenet.LABELS and source.num_classes == 100
    for index, kept in enumerate(imagenet.KEPT):
        np.testing.assert_array_equal(source.image(index), train[kept]["image"])
    assert find.load("packed", "test", str(output)).labels.tolist() == [1]


def test_card(photos, whole):
    text = (whole / "README.md").read_text(encoding="utf-8")
    for words in (
        "| source | folder |",
        "as they were, byte for byte",
        "| train | 14 images in ",
        "| cat | 7 | 2 |",
        "| grün ✓ | 7 | 2 |",
        "--short_side=0 --shard_mb=0.006",
        f"TensorFlow {tf.__version__}",
    ):
        assert words in text, (words, text)


# ---- The same bytes, in one go or not


@pytest.fixture(scope="module")
def small(photos, tmp_path_factory):
    """The bytes of a pack made by one worker, with a damaged image in the middle and at the end of train/."""
    root = shutil.copytree(photos, tmp_path_factory.mktemp("some") / "photos")
    for name in ("train/cat/04.jpg", "train/grün ✓/99.jpg"):
        (root / name).write_bytes(b"no image")
    return root, contents(pack(root, root.parent / "pack", short_side=40, workers=1))


@pytest.mark.parametrize("workers", [3, 8])
def test_workers_change_nothing(small, tmp_path, workers):
    root, wanted = small
    assert contents(pack(root, tmp_path / "pack", short_side=40, workers=workers)) == wanted


def test_unreadable_images_are_left_out_and_listed(small, tmp_path):
    root, wanted = small
    lines = wanted["unreadable.txt"].decode().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["train/cat/04.jpg", "train/grün ✓/99.jpg"]
    assert all("Unknown image file format" in line.split("\t")[1] for line in lines), lines
    output = root.parent / "pack"
    source = find.load("packed", "train", str(output))
    kept = [os.path.relpath(name, root) for name in names(find.load("folder", "train", str(root)))]
    assert names(source) == [name for name in kept if name not in ("train/cat/04.jpg", "train/grün ✓/99.jpg")]
    assert source.labels.tolist() == [0 if "cat" in name else 1 for name in names(source)]
    assert "2 unreadable left out" in (output / "README.md").read_text()
    values = {"dataset": "folder", "data_dir": root, "max_bad_images": 1, "shard_mb": SMALL, "short_side": 40}
    refusal("2 unreadable images", "--max_bad_images=1", "99.jpg", output=tmp_path / "pack", **values)
    load_refusal(tmp_path / "pack", "unfinished pack", "run the command again")
    call("pack", output=tmp_path / "pack", **{**values, "max_bad_images": 2})
    assert contents(tmp_path / "pack") == wanted


@pytest.mark.parametrize("stop", range(4))
def test_going_on(small, tmp_path, monkeypatch, stop):
    """Stopped at any shard's rename: nothing that is there is written again, and all bytes are the same."""
    root, wanted = small
    replace, done = os.replace, []

    def failing(draft, path):
        if str(path).endswith(".tfrecord") and len(done) == stop:
            raise KeyboardInterrupt
        done.extend([path] if str(path).endswith(".tfrecord") else [])
        replace(draft, path)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        pack(root, tmp_path / "pack", short_side=40)
    monkeypatch.setattr(os, "replace", replace)
    load_refusal(tmp_path / "pack", "unfinished pack")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pack").glob("[!.]*.tfrecord")}
    assert len(before) == stop
    pack(root, tmp_path / "pack", short_side=40)
    assert contents(tmp_path / "pack") == wanted
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())


def test_a_lost_shard_is_made_again(small, tmp_path):
    root, wanted = small
    output = shutil.copytree(root.parent / "pack", tmp_path / "pack")
    (output / "train-00001.tfrecord").unlink()
    (output / "train-00002.npy").write_bytes(b"")
    times = {path: path.stat().st_mtime_ns for path in output.glob("train-0000[034]*")}
    load_refusal(output, "train-00001.tfrecord cannot be read", "run the command in README.md again")
    pack(root, output, short_side=40)
    assert contents(output) == wanted
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in times.items())


def test_killed_for_real(tmp_path):
    """A process killed when its first shard is there; what it leaves is gone on with."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "train").mkdir(parents=True)
    data = tf.io.encode_png(rng.integers(0, 256, (256, 256, 3)).astype(np.uint8)).numpy()
    for number in range(150):
        (tmp_path / "photos" / "train" / f"{number}.png").write_bytes(data)
    values = {"dataset": "folder", "data_dir": tmp_path / "photos", "splits": "train", "shard_mb": 0.3}
    output = tmp_path / "pack"
    process = start("pack", output=output, **values)
    while not (output / "train-00000.tfrecord").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    load_refusal(output, "unfinished pack")
    call("pack", output=output, **values)
    call("pack", output=tmp_path / "other", **values)
    assert contents(output) == contents(tmp_path / "other")


def test_again_changes_nothing(photos, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*-0*")}
    wanted = contents(whole, but=())
    pack(photos, whole, short_side=0)
    assert before == {path: path.stat().st_mtime_ns for path in whole.glob("*-0*")}
    assert contents(whole, but=()) == wanted
    assert f"{whole} holds 14 train and 4 test images in " in capsys.readouterr().out


# ---- Damage, and what is refused


def test_verify(whole, tmp_path, capsys):
    call("pack", verify=True, output=whole)
    assert "14 train and 4 test images" in capsys.readouterr().out
    output = shutil.copytree(whole, tmp_path / "pack")
    path = output / "train-00001.tfrecord"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    find.load("packed", "train", str(output))  # sizes fit
    refusal("train-00001.tfrecord: the SHA-256", "expected", "remove it", verify=True, output=output)
    (output / "test-00000.npy").unlink()
    refusal("train-00001.tfrecord", "2 such shards of", verify=True, output=output)
    path.write_bytes(data[:-1])
    refusal(f"{len(data) - 1} bytes came, expected {len(data)}", verify=True, output=output)
    (output / "notes.txt").write_text("mine")
    refusal("'notes.txt'", "no part of the pack", verify=True, output=output)
    refusal("has no index.json", verify=True, output=tmp_path / "nothing")


def test_damaged_packs_are_not_read(whole, tmp_path):
    output = shutil.copytree(whole, tmp_path / "pack")
    shard, places = output / "train-00000.tfrecord", output / "train-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-5])
    load_refusal(output, "train-00000.tfrecord: ", "bytes came, expected", "copy the pack again")
    shutil.copy(whole / shard.name, shard)
    places.write_bytes(bytes(places.stat().st_size))
    load_refusal(output, "train-00000.npy is damaged", "copy the pack again")
    places.unlink()
    load_refusal(output, "train-00000.npy cannot be read (No such file or directory)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["has no index.json", "expected a folder that moco_tf.pack wrote"]),
        ("{", ["cannot be read (JSONDecodeError"]),
        ("[]", ["is no index of a pack"]),
        ('{"format": "other"}', ["is no index of a pack"]),
        ('{"format": "moco_tf packed images", "version": 2}', ["version 2, expected 1"]),
        ('{"format": "moco_tf packed images", "version": 1}', ["is damaged"]),
        ('{"format": "moco_tf packed images", "version": 1, "splits": {"train": [1]}}', ["is damaged"]),
        (lambda text: text.replace('"train-00000"', '"../train-00000"'), ["is damaged"]),
        (lambda text: text.replace('"records": ', '"records": -'), ["is damaged"]),
        (lambda text: text.replace('"finished": true', '"finished": false'), ["unfinished pack"]),
    ],
)
def test_indices_that_are_none(whole, tmp_path, text, words):
    index = (whole / "index.json").read_text()
    if text is not None:
        (tmp_path / "index.json").write_text(text if isinstance(text, str) else text(index))
    load_refusal(tmp_path, *words)


def test_a_damaged_record_is_unreadable(whole, tmp_path):
    output = shutil.copytree(whole, tmp_path / "pack")
    source = find.load("packed", "train", str(output))
    name, (_, offset, length, _) = source.describe(0), source.entries(0)
    path = output / "train-00000.tfrecord"
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = b"\xff" * length
    path.write_bytes(data)
    listed = tmp_path / "unreadable.txt"
    got = list(eval_batches(source, 20, prepare_one=lambda i: i[:8, :8], bad_images=BadImages(1, str(listed))))
    assert got[0][2].tolist() == list(range(1, 14))
    assert f"{path} record at byte {offset}" in listed.read_text() and name.startswith("train/")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"output": ""}, ["--output is missing", "--output=packed/"]),
        ({"splits": "train,val"}, ["--splits=train,val", "expected some of train, test"]),
        ({"short_side": 0, "quality": 80}, ["--quality=80", "--short_side=0", "leave one of them out"]),
        ({"dataset": "packed"}, ["--dataset=packed came"]),
        ({"data_dir": "nowhere"}, ["nowhere is not a folder"]),
        ({"dataset": "Cifar 10"}, ["expected a TensorFlow Datasets name"]),
    ],
)
def test_flags(photos, tmp_path, values, words):
    refusal(*words, **{"dataset": "folder", "data_dir": photos, "output": tmp_path / "pack", **values})
    assert not (tmp_path / "pack").exists()


def test_packed_needs_a_data_dir(tmp_path):
    with pytest.raises(UserError, match="without --data_dir"):
        find.load("packed", "train")
    load_refusal(tmp_path / "nothing", "has no index.json")


def test_other_folders_are_left_alone(photos, whole, tmp_path):
    values = {"dataset": "folder", "data_dir": photos, "short_side": 0, "shard_mb": SMALL}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "README.md").write_text("mine")
    refusal("is not empty and no pack", output=tmp_path / "full", **values)
    (tmp_path / "full" / "holiday.jpg").write_text("mine")
    refusal("'holiday.jpg'", "expected an empty folder or a pack", output=tmp_path / "full", **values)
    assert {path.name for path in (tmp_path / "full").iterdir()} == {"README.md", "holiday.jpg"}
    refusal("cannot be written (Not a directory)", output=tmp_path / "full" / "README.md", **values)
    wanted = contents(whole, but=())
    refusal("other short_side", "give another folder", output=whole, **{**values, "short_side": 64})
    refusal(
        "other short_side, quality, shard_mb", output=whole, **{**values, "quality": 70, "short_side": 1, "shard_mb": 9}
    )
    refusal("other test, expected", output=whole, splits="train", **values)
    other = shutil.copytree(photos, tmp_path / "photos")
    (other / "train" / "cat" / "00.png").write_bytes(tf.io.encode_png(np.zeros((20, 40, 3), np.uint8)).numpy())
    refusal("other train, expected", output=whole, **{**values, "data_dir": other})
    assert contents(whole, but=()) == wanted


def test_one_process_at_a_time(photos, tmp_path):
    from moco_tf.pack import only_one

    with only_one(tmp_path / "pack"):
        refusal("is being packed by another process", dataset="folder", data_dir=photos, output=tmp_path / "pack")
    assert not list((tmp_path / "pack").iterdir())


def test_flags_are_documented():
    options, text = parse("pack", "--dataset=folder", "--data_dir=photos", "--output=packed/", "--quality=80")
    assert options.quality == 80 and options.short_side == 256 and options.shard_mb == 128 and options.workers == 0
    assert "--quality=80" in text and not options.verify


def test_a_pack_is_read_by_blocks(whole):
    """Every image once, from any step, the same on two ranks; only sources of large files can be read so."""
    source = find.load("packed", "train", str(whole))
    options = {"batch_size": 4, "seed": 1, "crops": [RandomResizedCrop(8, (0.2, 1.0))] * 2, "order": "blocks"}
    got = list(TrainBatches(source, **options).batches(0))
    indices = np.concatenate([batch[2] for batch in got])
    np.testing.assert_array_equal(indices, block_order(1, 0, source.num_examples)[: len(indices)])
    for batch in got:
        np.testing.assert_array_equal(batch[1], source.labels[batch[2]])
    resumed = next(TrainBatches(source, **options).batches(0, start_step=2))
    np.testing.assert_array_equal(resumed[0][0], got[2][0][0])
    share = list(TrainBatches(source, share=Share(1, 2), **options).batches(0))
    np.testing.assert_array_equal(np.concatenate([batch[2] for batch in share]), indices[1::2])
    with pytest.raises(UserError, match="--read_order=blocks came on 3 ranks"):
        TrainBatches(source, share=Share(0, 3), **options | {"batch_size": 3})
    toy = sources.ArraySource("toy", np.zeros((8, 2, 2, 3), np.uint8))
    with pytest.raises(UserError, match="--read_order=blocks came with toy, expected a pack"):
        TrainBatches(toy, **options)


def test_part_of_a_pack_is_read_by_blocks_too(whole):
    part = find.load("packed", "train", str(whole)).subset(np.array([0, 3, 9, 11]))
    batches = TrainBatches(part, 2, 0, crops=[RandomResizedCrop(8, (0.2, 1.0))] * 2, order="blocks")
    assert sorted(np.concatenate([batch[2] for batch in batches.batches(0)])) == [0, 1, 2, 3]
    part.read_span(np.array([1, 3]))
