"""Packs: what is read back, the same bytes whatever the workers, continuing after a kill, and what is refused."""

import os
import pathlib
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from support.programs import call, parse, start
from support.tfds_sets import examples, image_and_label, prepare

from moco_tf.data import reencoding, sources
from moco_tf.data.order import Share, block_order
from moco_tf.data.packing import only_one
from moco_tf.data.pipeline import TrainBatches, eval_batches
from moco_tf.data.records import BadImages
from moco_tf.data.sets import fashion_mnist, find
from moco_tf.data.sets import tfds as tfds_source
from moco_tf.data.views.geometry import RandomResizedCrop, resize_one
from moco_tf.errors import UserError

TERABYTES = (
    b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(127) + b"\n"
)
SMALL = 0.006  # megabytes a shard: a few images each
CROPS = [RandomResizedCrop(16, (0.2, 1.0))] * 2


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
    return pack(photos, tmp_path_factory.mktemp("packs") / "whole", short_side=0)


def pack(photos, output, **values):
    values = {"dataset": "folder", "shard_mb": SMALL, "workers": 2, **values}
    call("pack", data_dir=photos, output=output, **values)
    return output


def load(output, split="train"):
    return find.load(output.name, split, str(output.parent))


def refusal(*words, **values):
    """The message of a pack program that refuses these flags."""
    with pytest.raises(UserError) as caught:
        call("pack", **values)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


def load_refusal(output, *words, split="train"):
    with pytest.raises(UserError) as caught:
        load(output, split)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def contents(output):
    return {path.name: path.read_bytes() for path in (output / "1.0.0").iterdir()}


def times(output, pattern="*tfrecord*"):
    return {path.name: path.stat().st_mtime_ns for path in (output / "1.0.0").glob(pattern)}


def shards(output, split="train"):
    return sorted((output / "1.0.0").glob(f"{output.name}-{split}.tfrecord-*[0-9]"))


def encoded(source, index):
    return source.read(*map(tf.convert_to_tensor, source.entries(index)))[0].numpy()


def names(source):
    return [source.describe(index) for index in range(source.num_examples)]


# ---- What is read back


@pytest.mark.parametrize("split", ["train", "test"])
def test_everything_comes_back_as_it_was(photos, whole, split):
    folder, pack = find.load("folder", split, str(photos)), load(whole, split)
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
        list(TrainBatches(source, 4, 7, crops=CROPS).batches(1))
        for source in (find.load("folder", "train", str(photos)), load(whole))
    ]
    assert len(batches[0]) == len(batches[1]) == 3
    for of_folder, of_pack in zip(*batches):
        tf.nest.map_structure(np.testing.assert_array_equal, of_folder, of_pack)


def test_tfds_reads_it(photos, whole):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(whole / "1.0.0")
    assert builder.info.full_name == "whole/1.0.0" and builder.info.features["label"].names == ["cat", "grün ✓"]
    for split in ("train", "test"):
        folder = find.load("folder", split, str(photos))
        found = list(builder.as_dataset(split=split).as_numpy_iterator())
        assert [example["label"] for example in found] == folder.labels.tolist()
        for index, example in enumerate(found):
            original = tf.io.read_file(folder.describe(index))  # TFDS decodes JPEGs by TensorFlow's other method
            np.testing.assert_array_equal(example["image"], tf.io.decode_image(original, 3))
            assert os.path.join(photos, os.fsdecode(example["file_name"])) == folder.describe(index)


def test_shards_are_about_as_large_as_asked_for(whole, photos, tmp_path):
    sizes = [path.stat().st_size for path in shards(whole)]
    assert len(sizes) > 3 and SMALL / 3 < np.mean(sizes) / 1e6 <= SMALL
    assert len(shards(pack(photos, tmp_path / "one", shard_mb=1, short_side=0))) == 1


def test_images_without_labels(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    image = tf.io.encode_png(np.full((5, 6, 3), 9, np.uint8)).numpy()
    (tmp_path / "some").mkdir()
    for name in "abc":
        (tmp_path / "some" / f"{name}.png").write_bytes(image)
    source = load(pack(tmp_path / "some", tmp_path / "bare", splits="train"))
    assert (
        source.labels.tolist() == [-1] * 3 and source.num_classes == 0 and names(source) == ["a.png", "b.png", "c.png"]
    )
    assert encoded(source, 1) == image
    found = next(iter(tfds.builder_from_directory(tmp_path / "bare" / "1.0.0").as_dataset(split="train")))
    assert found.keys() == {"image", "file_name"} and found["image"].shape == (5, 6, 3)


def test_larger_images_become_smaller(photos, tmp_path):
    small = load(pack(photos, tmp_path / "small", short_side=40))
    folder = find.load("folder", "train", str(photos))
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
        assert data[:4] == b"\x89PNG" or reencoding.jpeg_quality(data) == reencoding.QUALITY
    assert smaller > 3


def test_quality_asks(photos, tmp_path):
    small = load(pack(photos, tmp_path / "small", short_side=40, quality=60))
    data = (encoded(small, i) for i in range(14))
    found = [reencoding.jpeg_quality(image) for image in data if image[:2] == b"\xff\xd8"]
    assert found and set(found) == {60}  # they were of 95
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    for quality in (25, 50, 75, 95, 100):
        data = tf.io.encode_jpeg(image, quality=quality).numpy()
        assert reencoding.jpeg_quality(data) == pytest.approx(quality, abs=1)
        if quality <= 95:
            encode = reencoding.encoder(40, quality + 2)
            assert encode(tf.constant(data)).numpy() == data  # not blown up
    assert reencoding.jpeg_quality(b"\xff\xd8\xff\xe0\0\x10JFIF") == reencoding.jpeg_quality(b"") == 0


def test_other_formats_and_grey(tmp_path):
    encode = reencoding.encoder(8, None)
    gif = b"GIF89a\1\0\1\0\x80\0\0\xff\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    data = encode(tf.constant(gif)).numpy()  # TFDS would read all frames
    assert data[:4] == b"\x89PNG" and sources.decode_rgb(tf.constant(data)).numpy().tolist() == [[[255, 0, 0]]]
    bmp = b"BM" + (54 + 16 * 48).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    bmp += b"".join(n.to_bytes(4, "little") for n in (40, 16, 16)) + b"\1\0\x18\0" + bytes(24) + bytes([9]) * (16 * 48)
    data = encode(tf.constant(bmp)).numpy()
    np.testing.assert_array_equal(sources.decode_rgb(tf.constant(data)), np.full((8, 8, 3), 9))
    assert data[:4] == b"\x89PNG"
    grey = tf.io.encode_jpeg(np.full((20, 16, 1), 77, np.uint8))
    np.testing.assert_array_equal(sources.decode_rgb(encode(grey)), np.full((10, 8, 3), 77))


@pytest.mark.parametrize("short_side", [28, 20])
def test_images_in_memory_become_png(tmp_path, monkeypatch, short_side):
    """Those of one size, which stay as they are, come back as images in memory: training crops them in the step."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 28, 28, 1)).astype(np.uint8)
    labels = np.arange(30) % 10
    array = sources.ArraySource("fashion_mnist", images, labels, fashion_mnist.CLASS_NAMES)
    monkeypatch.setattr(fashion_mnist, "load", lambda split, data_dir: array)
    call("pack", dataset="fashion_mnist", output=tmp_path / "clothes", workers=2, short_side=short_side)
    source = load(tmp_path / "clothes", "test")
    assert source.labels.tolist() == labels.tolist() and source.class_names == fashion_mnist.CLASS_NAMES
    if short_side == 28:
        np.testing.assert_array_equal(source.images, array.images)
    else:
        assert source.image(3).shape == (20, 20, 3) and source.describe(7) == "test 7"


def test_tfds(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "_offline", lambda: True)
    wanted = examples(9, [(4 + i, 12 - i, 3) for i in range(9)])
    prepare(tmp_path, "sizes", image_and_label((None, None, 3)), train=wanted)
    values = {"dataset": "sizes", "data_dir": tmp_path, "output": tmp_path / "pack", "workers": 2}
    refusal("expected test or validation", "pack --splits=train alone", **values)
    assert not (tmp_path / "pack").exists()
    call("pack", splits="train", **values)
    source = load(tmp_path / "pack")
    assert source.labels.tolist() == [example["label"] for example in wanted] and source.class_names == ("no", "yes")
    assert source.describe(2).startswith("sizes/1.0.0/sizes-train.tfrecord")
    for index in (8, 0, 3):
        np.testing.assert_array_equal(source.image(index), wanted[index]["image"])
    load_refusal(tmp_path / "pack", "has the splits train, expected test", split="test")


def test_a_pack_is_read_by_blocks(whole):
    """Every image once, from any step, the same on two ranks; only sources of large files can be read so."""
    source = load(whole)
    options = {"batch_size": 4, "seed": 1, "crops": CROPS, "order": "blocks"}
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
    with pytest.raises(UserError, match="--read_order=blocks came with toy, expected a TFDS set"):
        TrainBatches(toy, **options)


def test_part_of_a_pack_is_read_by_blocks_too(whole):
    part = load(whole).subset(np.array([0, 3, 9, 11]))
    batches = TrainBatches(part, 2, 0, crops=CROPS, order="blocks")
    assert sorted(np.concatenate([batch[2] for batch in batches.batches(0)])) == [0, 1, 2, 3]
    part.read_span(np.array([1, 3]))


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
    source = load(root.parent / "pack")
    kept = [os.path.relpath(name, root) for name in names(find.load("folder", "train", str(root)))]
    assert names(source) == [name for name in kept if name not in ("train/cat/04.jpg", "train/grün ✓/99.jpg")]
    assert source.labels.tolist() == [0 if "cat" in name else 1 for name in names(source)]
    values = {"dataset": "folder", "data_dir": root, "max_bad_images": 1, "shard_mb": SMALL, "short_side": 40}
    refusal("2 unreadable images", "--max_bad_images=1", "99.jpg", output=tmp_path / "pack", **values)
    load_refusal(tmp_path / "pack", "unfinished pack", "run the command again")
    refusal("2 unreadable images", "--max_bad_images=1", "99.jpg", output=tmp_path / "pack", **values)
    call("pack", output=tmp_path / "pack", **{**values, "max_bad_images": 2})
    assert contents(tmp_path / "pack") == wanted


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_going_on(small, tmp_path, monkeypatch, stop):
    """Stopped at any shard's rename: nothing that is there is written again, and all bytes are the same."""
    root, wanted = small
    replace, done = os.replace, []

    def failing(draft, path):
        if str(path)[-1].isdigit() and len(done) == stop:
            raise KeyboardInterrupt
        done.extend([path] if str(path)[-1].isdigit() else [])
        replace(draft, path)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        pack(root, tmp_path / "pack", short_side=40)
    monkeypatch.setattr(os, "replace", replace)
    load_refusal(tmp_path / "pack", "unfinished pack")
    before = times(tmp_path / "pack", "pack-*[0-9]")
    assert len(before) == stop
    pack(root, tmp_path / "pack", short_side=40)
    (tmp_path / "pack" / "1.0.0").joinpath(f".{shards(tmp_path / 'pack')[stop].name}").unlink(missing_ok=True)
    assert contents(tmp_path / "pack") == wanted
    assert before.items() <= times(tmp_path / "pack").items()


def test_a_lost_shard_is_made_again(small, tmp_path):
    root, wanted = small
    output = shutil.copytree(root.parent / "pack", tmp_path / "pack")
    shards(output)[1].unlink()
    pathlib.Path(f"{shards(output)[1]}.npy").write_bytes(b"")
    before = times(output, "*-0000[034]-of-*")
    load_refusal(output, "pack-train.tfrecord-00001-of-", "cannot be read (No such file or directory)")
    pack(root, output, short_side=40)
    assert contents(output) == wanted
    assert before.items() <= times(output).items()


def test_killed_for_real(tmp_path):
    """A process killed when its first shard is there; what it leaves is continued."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "train").mkdir(parents=True)
    data = tf.io.encode_png(rng.integers(0, 256, (256, 256, 3)).astype(np.uint8)).numpy()
    for number in range(150):
        (tmp_path / "photos" / "train" / f"{number}.png").write_bytes(data)
    values = {"dataset": "folder", "data_dir": tmp_path / "photos", "splits": "train", "shard_mb": 0.3}
    output = tmp_path / "one" / "pack"
    process = start("pack", output=output, **values)
    while not (output.exists() and shards(output)) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    load_refusal(output, "unfinished pack")
    before = times(output, "pack-*[0-9]")
    call("pack", output=output, **values)
    assert before.items() <= times(output).items()
    call("pack", output=tmp_path / "other" / "pack", **values)
    assert contents(output) == contents(tmp_path / "other" / "pack")


def test_again_changes_nothing(photos, whole, capsys):
    before, wanted = times(whole), contents(whole)
    pack(photos, whole, short_side=0)
    assert before == times(whole) and contents(whole) == wanted
    out = capsys.readouterr().out
    assert f"{whole}/1.0.0 holds 14 train and 4 test images in " in out
    assert f"use it with --dataset=whole --data_dir={whole.parent}" in out


# ---- Damage, and what is refused


def test_verify(whole, tmp_path, capsys):
    call("pack", verify=True, output=whole)
    assert "14 train and 4 test images" in capsys.readouterr().out
    output = shutil.copytree(whole, tmp_path / "whole")
    path = shards(output)[1]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    load(output)  # sizes fit
    refusal(f"{path} is no whole pack or shard (corrupted record at ", "remove it", verify=True, output=output)
    data[100] ^= 1
    path.write_bytes(data[: tfds_source.record_places(str(shards(whole)[1]))[0].sum() + 4])
    refusal(f"{path} is no whole", "1 records came, expected ", verify=True, output=output)
    path.unlink()
    refusal(f"{path} is no whole", "No such file", verify=True, output=output)
    refusal("nothing/1.0.0 is no whole pack", verify=True, output=tmp_path / "nothing")


def test_damaged_packs_are_not_read(whole, tmp_path):
    output = shutil.copytree(whole, tmp_path / "whole")
    path = shards(output)[0]
    path.write_bytes(path.read_bytes()[:-5])
    load_refusal(output, "whole-train.tfrecord-00000-of-", "bytes came, expected")


@pytest.mark.parametrize("labels", [b"", bytes(200), TERABYTES, [0], [0.0] * 14, [7] * 14])
def test_labels_that_do_not_fit_are_not_used(whole, tmp_path, labels):
    output = shutil.copytree(whole, tmp_path / "whole")
    path = pathlib.Path(f"{shards(output)[0]}.npy")
    if isinstance(labels, bytes):
        path.write_bytes(labels)
    else:
        count = len(np.load(path))
        np.save(path, np.array(labels[:1] * (count + (len(labels) == 1)), type(labels[0]) if labels[0] else np.float32))
    source = load(output)
    assert source.labels is None and source.num_examples == 14
    assert next(eval_batches(source, 14, prepare_one=lambda i: i[:8, :8]))[1].tolist() == load(whole).labels.tolist()


def test_a_damaged_record_is_unreadable(whole, tmp_path):
    output = shutil.copytree(whole, tmp_path / "whole")
    source = load(output)
    name, (_, offset, length) = source.describe(0), source.entries(0)
    path = shards(output)[0]
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
        ({"output": ""}, ["--output is missing", "--output=packs/birds"]),
        ({"output": "packs/Birds"}, ["/packs/Birds came", "small letters"]),
        ({"output": "packs/cifar10"}, ["/packs/cifar10 came", "no data set has yet"]),
        ({"output": "packed"}, ["/packed came"]),
        ({"splits": "train,val"}, ["--splits=train,val", "expected some of train, test"]),
        ({"short_side": 0, "quality": 80}, ["--quality=80", "--short_side=0", "leave one of them out"]),
        ({"dataset": "packed"}, ["--dataset=packed is gone", "--output=DIR/NAME", "--dataset=NAME --data_dir=DIR"]),
        ({"data_dir": "nowhere"}, ["nowhere is not a folder"]),
        ({"dataset": "Cifar 10"}, ["expected a TensorFlow Datasets name"]),
    ],
)
def test_flags(photos, tmp_path, values, words):
    refusal(*words, **{"dataset": "folder", "data_dir": photos, "output": tmp_path / "pack", **values})
    assert not (tmp_path / "pack").exists()


def test_other_folders_are_left_alone(photos, whole, tmp_path):
    values = {"dataset": "folder", "data_dir": photos, "short_side": 0, "shard_mb": SMALL}
    (tmp_path / "full" / "1.0.0").mkdir(parents=True)
    (tmp_path / "full" / "1.0.0" / "holiday.jpg").write_text("mine")
    refusal("'holiday.jpg'", "is no pack, expected an empty folder", output=tmp_path / "full", **values)
    assert [path.name for path in (tmp_path / "full" / "1.0.0").iterdir()] == ["holiday.jpg"]
    (tmp_path / "file").write_text("mine")
    refusal("cannot be written (Not a directory)", output=tmp_path / "file", **values)
    wanted = contents(whole)
    refusal("other short_side", "give another --output", output=whole, **{**values, "short_side": 64})
    refusal("other test, expected", output=whole, splits="train", **values)
    other = shutil.copytree(photos, tmp_path / "photos")
    (other / "train" / "cat" / "00.png").write_bytes(tf.io.encode_png(np.zeros((20, 40, 3), np.uint8)).numpy())
    refusal("other train, expected", output=whole, **{**values, "data_dir": other})
    assert contents(whole) == wanted
    (tmp_path / "broken" / "1.0.0").mkdir(parents=True)
    for text in ("{", "3"):
        (tmp_path / "broken" / "1.0.0" / "pack.json").write_text(text)
        refusal("pack.json cannot be read", "remove", output=tmp_path / "broken", **values)


def test_one_process_at_a_time(photos, tmp_path):
    with only_one(tmp_path / "pack" / "1.0.0"):
        refusal("is being packed by another process", dataset="folder", data_dir=photos, output=tmp_path / "pack")
    assert not list((tmp_path / "pack" / "1.0.0").iterdir())


def test_flags_are_documented():
    options = parse("pack", "--dataset=folder", "--data_dir=photos", "--output=packs/birds", "--quality=80").pack
    assert options.quality == 80 and options.short_side == 256 and options.shard_mb == 128 and options.workers == 0
    assert not options.verify
