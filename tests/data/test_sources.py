"""Data sets: Fashion-MNIST files, folders, TensorFlow Datasets, and what is said when they are not as expected."""

import gzip
import io
import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.tfds_sets import examples, image_and_label, prepare

from moco_tf.data import normalisation, sample_images, sources
from moco_tf.data.pipeline import TrainBatches, eval_batches
from moco_tf.data.records import BadImages
from moco_tf.data.sets import fashion_mnist, find
from moco_tf.data.sets import tfds as tfds_source
from moco_tf.errors import UserError

RNG = np.random.default_rng(0)


def error_of(*arguments):
    """The one line of the UserError that `load` raises."""
    with pytest.raises(UserError) as caught:
        find.load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def empty_tfds_dir(tmp_path, monkeypatch):
    """No test sees the data sets of this machine, or its network."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default_tfds"))
    monkeypatch.setattr(tfds_source, "_offline", lambda: True)


# ---- Fashion-MNIST


def write_idx(path, array, magic=None, data=None):
    header = (magic or bytes([0, 0, 8, array.ndim])) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + (array.tobytes() if data is None else data)))


@pytest.fixture
def idx_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", str(tmp_path / "no_debian"))
    for prefix, count in [("train", 12), ("t10k", 5)]:
        images = RNG.integers(0, 255, [count, 28, 28]).astype(np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count).astype(np.uint8) % 10)
    return tmp_path


def test_fashion_mnist_of_debian():
    if not os.path.isdir(fashion_mnist.DEBIAN_DIR):
        pytest.skip(f"{fashion_mnist.DEBIAN_DIR} is not there: apt-get install dataset-fashion-mnist")
    for split, count in [("train", 60000), ("test", 10000)]:
        source = find.load("fashion_mnist", split)
        assert source.num_examples == count and source.images.shape == (count, 28, 28, 3)
        assert source.image_shape == (28, 28) and source.images.dtype == np.uint8
        assert source.num_classes == 10 and source.class_names[9] == "Ankle boot"
        assert source.labels.dtype == np.int32
        assert (np.bincount(source.labels) == count // 10).all()
        if split == "train":
            assert source.images[..., 0].mean() / 255 == pytest.approx(0.2860, abs=5e-5)  # the known 72.94 / 255
            assert source.labels[:5].tolist() == [9, 0, 0, 3, 0]
        np.testing.assert_array_equal(source.image(3), source.images[3])


def test_fashion_mnist_in_data_dir(idx_dir):
    source = find.load("fashion_mnist", "test", str(idx_dir))
    assert source.num_examples == 5 and source.images.shape == (5, 28, 28, 3)
    assert source.labels.tolist() == [0, 1, 2, 3, 4]


def test_fashion_mnist_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", str(tmp_path / "no_debian"))
    message = error_of("fashion_mnist", "train", str(tmp_path / "nothing"))
    assert "apt-get install dataset-fashion-mnist" in message and "--data_dir" in message


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: path.write_bytes(b"plain"), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:20] + bytes(99)), "cannot be read"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "0 bytes beginning with"),
        (lambda path: write_idx(path, np.zeros([12, 28, 28], np.uint8), b"\0\0\x0d\x03"), "expected an idx file"),
        (lambda path: write_idx(path, np.zeros([12, 28, 28], np.uint8), data=bytes(99)), "99 bytes of data came"),
        (lambda path: write_idx(path, np.zeros([11, 28, 28], np.uint8)), "12 labels came, expected 11"),
        (lambda path: write_idx(path, np.zeros([12, 27, 28], np.uint8)), "27x28"),
    ],
)
def test_broken_idx_files(idx_dir, write, expected):
    write(idx_dir / "train-images-idx3-ubyte.gz")
    assert expected in error_of("fashion_mnist", "train", str(idx_dir))


def test_labels_out_of_range(idx_dir):
    write_idx(idx_dir / "train-labels-idx1-ubyte.gz", np.full(12, 10, np.uint8))
    assert "labels up to 10" in error_of("fashion_mnist", "train", str(idx_dir))


# ---- Folders


def jpeg(brightness=128, shape=(9, 11, 3)):
    return tf.io.encode_jpeg(np.full(shape, brightness, np.uint8)).numpy()


def write_files(root, *paths, data=None):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg() if data is None else data)


def names(source, root):
    return [os.path.relpath(source.describe(i), root) for i in range(source.num_examples)]


def test_folder_with_classes(tmp_path):
    write_files(tmp_path, "train/dog/2.jpg", "train/dog/10.JPEG", "train/cat/deep/er/1.png", "train/cat/notes.txt")
    write_files(
        tmp_path, "train/cat/.hidden.jpg", "train/.git/x.jpg", "train/eel/1.jpg", "val/dog/1.jpg", "val/cat/9.jpg"
    )
    source = find.load("folder", "train", str(tmp_path))
    assert names(source, tmp_path) == [
        "train/cat/deep/er/1.png",
        "train/dog/10.JPEG",
        "train/dog/2.jpg",
        "train/eel/1.jpg",
    ]
    assert source.class_names == ("cat", "dog", "eel") and source.num_classes == 3
    assert source.labels.tolist() == [0, 1, 1, 2] and source.labels.dtype == np.int32
    assert source.image_shape is None and source.image(0).shape == (9, 11, 3)
    test = find.load("folder", "test", str(tmp_path))
    assert names(test, tmp_path) == ["val/cat/9.jpg", "val/dog/1.jpg"]
    assert test.labels.tolist() == [0, 1] and test.class_names == source.class_names


@pytest.mark.parametrize("paths", [("b.jpg", "a/c.png"), ("train/b.jpg", "train/a.jpg")])
def test_folder_without_labels(tmp_path, paths):
    write_files(tmp_path, *paths)
    source = find.load("folder", "train", str(tmp_path))
    assert names(source, tmp_path) == sorted(paths)
    assert source.labels.tolist() == [-1, -1] and source.num_classes == 0 and source.class_names == ()
    assert "neither val/ nor test/" in error_of("folder", "test", str(tmp_path))


def test_folder_follows_links_once(tmp_path):
    write_files(tmp_path, "elsewhere/1.jpg", "data/train/a/0.jpg")
    (tmp_path / "data/train/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    source = find.load("folder", "train", str(tmp_path / "data"))
    assert names(source, tmp_path / "data") == ["train/a/0.jpg", "train/b/1.jpg"]


def test_folder_with_odd_names(tmp_path):
    write_files(tmp_path, "train/grün ✓/a b#?.jpg", "train/x/1.jpg")
    with open(os.fsencode(tmp_path / "train/x") + b"/\xff.jpg", "wb") as file:  # not UTF-8
        file.write(b"broken")
    source = find.load("folder", "train", str(tmp_path))
    listed = tmp_path / "unreadable.txt"
    got = list(eval_batches(source, 8, prepare_one=lambda image: image, bad_images=BadImages(1, str(listed))))
    assert got[0][2].tolist() == [0, 1]
    assert b"\xff.jpg\t" in listed.read_bytes()


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        ((), "train", "no images"),
        (("notes.txt",), "train", "no images"),
        (("train/a/notes.txt", "train/b/1.jpg"), "train", "a has no images"),
        (("train/a/1.jpg", "train/2.jpg"), "train", "beside the class folders"),
        (("train/a/1.jpg",), "test", "neither val/ nor test/, nor valid/ or validation/ (it holds train/)"),
        (("val/a/1.jpg",), "train", "no train/"),
        (
            ("Training/a/1.jpg", "Testing/a/1.jpg"),
            "train",
            "Training/ but no train/ (it holds Testing/, ",
        ),
        (("Train/a/1.jpg", "Val/a/1.jpg"), "train", "has Train/ but no train/"),
        (("train/a/1.jpg", "val/b/1.jpg"), "test", "class 'b'"),
        (("train/a/1.jpg", "val/notes.txt"), "test", "no class folders"),
        (("train/a/1.jpg", "val/1.jpg"), "test", "beside the class folders"),
        (("train/a/1.jpg", "val/a/notes.txt"), "test", "has no images"),
    ],
)
def test_folder_errors(tmp_path, files, split, expected):
    root = tmp_path / "data"
    root.mkdir()
    write_files(root, *files)
    assert expected in error_of("folder", split, str(root))


def test_folder_needs_a_data_dir(tmp_path):
    assert "without --data_dir" in error_of("folder", "train")
    assert "is not a folder" in error_of("folder", "train", str(tmp_path / "nothing"))
    assert "expected one of train, test" in error_of("folder", "val", str(tmp_path))


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_held_out_folders_of_every_name(tmp_path, held_out):
    write_files(tmp_path, "train/a/1.jpg", "train/b/1.jpg", f"{held_out}/b/2.jpg")
    source = find.load("folder", "test", str(tmp_path))
    assert names(source, tmp_path) == [f"{held_out}/b/2.jpg"] and source.labels.tolist() == [1]
    write_files(tmp_path, "val/a/9.jpg")  # the first of them
    assert names(find.load("folder", "test", str(tmp_path)), tmp_path)[0] == "val/a/9.jpg"


def test_class_folders_without_train(tmp_path, capsys):
    """As Keras and torchvision have them."""
    write_files(tmp_path, "dog/1.jpg", "cat/deep/2.JPG", "cat/1.png", "notes/read.q", "readme.txt")
    source = find.load("folder", "train", str(tmp_path))
    assert names(source, tmp_path) == ["cat/1.png", "cat/deep/2.JPG", "dog/1.jpg", "notes/read.q"]  # it is a JPEG
    (tmp_path / "notes/read.q").write_text("no image")
    source = find.load("folder", "train", str(tmp_path))
    assert source.class_names == ("cat", "dog") and source.labels.tolist() == [0, 0, 1]
    said = capsys.readouterr().out
    assert f"{tmp_path} has no train/: its 2 folders with images are the classes (cat, dog)" in said
    assert "without images, and no classes: notes" in said
    assert f"{tmp_path}: passed over, as no images: 1 .q, 1 .txt" in said
    message = error_of("folder", "test", str(tmp_path))
    assert "neither val/ nor test/" in message and "--holdout=N" in message
    assert "it holds cat/, dog/, notes/, 1 .txt" in message


def test_an_image_beside_class_folders(tmp_path, capsys):
    write_files(tmp_path, "dog/1.jpg", "cat/1.jpg", "overview.jpg")
    assert find.load("folder", "train", str(tmp_path)).labels.tolist() == [-1, -1, -1]
    assert "1 images (such as overview.jpg) lie beside 2 folders with images" in capsys.readouterr().out


def test_the_widest_integers(tmp_path):
    """Pillow's mode I has a sign: 31 bits."""
    (tmp_path / "train").mkdir()
    Image.fromarray(np.full((4, 4), 2**31 - 1, np.int32)).save(tmp_path / "train/1.tiff")
    Image.fromarray(np.full((4, 4), 2**30, np.int32)).save(tmp_path / "train/2.tiff")
    source = find.load("folder", "train", str(tmp_path))
    assert source.white == 2**31 - 1
    assert [source.image(row).max() for row in (0, 1)] == [255, 128]


def test_a_set_one_level_down(tmp_path):
    write_files(tmp_path, "photos/train/a/1.jpg", "photos/val/a/1.jpg")
    for split in ("train", "test"):
        message = error_of("folder", split, str(tmp_path))
        assert f"{tmp_path} has no train/, and {tmp_path}/photos has one; give --data_dir={tmp_path}/photos" in message
    write_files(tmp_path, "bus/train/1.jpg", "car/1.jpg")  # a class that has a folder of this name
    (tmp_path / "photos").rename(tmp_path / ".photos")
    assert find.load("folder", "train", str(tmp_path)).class_names == ("bus", "car")


def test_images_are_recognised_by_their_contents(tmp_path, capsys):
    png = tf.io.encode_png(np.zeros([3, 4, 3], np.uint8)).numpy()
    write_files(tmp_path, *(f"{i}{ending}" for i in range(8) for ending in (".jpg", ".jfif", ".jpe", ".JPG", "")))
    write_files(tmp_path, "scan.001", "a.b.q", "x.bin", data=png)
    write_files(tmp_path, "notes", "list.dat", "x.csv", data=b"no image")
    write_files(tmp_path, "empty", data=b"")
    write_files(tmp_path, "phone.HEIC", "broken.png", data=b"damaged")  # to be listed as unreadable
    os.mkfifo(tmp_path / "pipe")
    source = find.load("folder", "train", str(tmp_path))
    assert source.num_examples == 40 + 3 + 2
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}: passed over, as no images: ")
    assert all(kind in said for kind in ("3 without extension", "1 .dat", "1 .csv"))


def deep_png(largest):
    return tf.io.encode_png(np.linspace(0, largest, 12).astype(np.uint16).reshape(3, 4, 1)).numpy()


def test_sixteen_bits_are_scaled_by_the_range_of_the_training_images(tmp_path, capsys):
    """4095 for 12 bits in all images, also dark ones and those of the other split."""
    write_files(tmp_path, "train/a/1.png", data=deep_png(4000))
    write_files(tmp_path, "train/a/2.png", "val/a/1.png", data=deep_png(100))
    for split, row in (("train", 1), ("test", 0)):
        source = find.load("folder", split, str(tmp_path))
        assert source.white == 4095 and source.subset(np.array([0])).white == 4095
        assert source.image(row).max() == round(100 / 4095 * 255) == 6
    assert find.load("folder", "train", str(tmp_path)).image(0).max() == round(4000 / 4095 * 255) == 249
    said = capsys.readouterr().out
    words = "2 of 2 images looked at have more than 8 bits a channel: scaled from 0 to 4095, the 12 bits that"
    assert f"{tmp_path}/train: {words}" in said
    write_files(tmp_path, "train/a/3.png", data=deep_png(65535))
    assert find.load("folder", "train", str(tmp_path)).white == 65535


def test_a_fourth_band_is_spoken_of(tmp_path, capsys):
    for name, mode in (("a", "RGBA"), ("b", "CMYK"), ("c", "RGB")):
        Image.new(mode, (4, 3)).save(tmp_path / f"{name}.tif")
    find.load("folder", "train", str(tmp_path))
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"{tmp_path}: 1 of 3 images looked at have CMYK: converted to RGB, the fourth band (black) included"
    ]


# ---- Decoding


@pytest.mark.parametrize("encode", [tf.io.encode_jpeg, tf.io.encode_png])
def test_grey_becomes_rgb(encode):
    image = np.full([6, 5, 1], 77, np.uint8)
    np.testing.assert_array_equal(sources.decode_rgb(encode(image)), np.full([6, 5, 3], 77))


def test_alpha_gif_and_16_bit():
    rgba = RNG.integers(0, 255, [4, 5, 4]).astype(np.uint8)
    np.testing.assert_array_equal(sources.decode_rgb(tf.io.encode_png(rgba)), rgba[..., :3])
    deep = np.full([4, 5, 3], 0x4D4D, np.uint16)
    np.testing.assert_array_equal(sources.decode_rgb(tf.io.encode_png(deep), 0xFFFF), np.full([4, 5, 3], 0x4D))
    gif = b"GIF89a\1\0\1\0\x80\0\0\xff\0\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"  # one red pixel
    assert sources.decode_rgb(tf.constant(gif)).numpy().tolist() == [[[255, 0, 0]]]


def test_huge_images_are_refused_by_their_header():
    jpeg_of_60000 = bytearray(jpeg())
    at = jpeg_of_60000.index(b"\xff\xc0") + 5
    jpeg_of_60000[at : at + 4] = struct.pack(">HH", 60000, 60000)
    for data in [
        bytes(jpeg_of_60000),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 13378, 13378) + b"\x08\x02" + bytes(7),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match="too many pixels"):
            sources.decode_rgb(tf.constant(data))


# ---- TensorFlow Datasets


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tfds_set_of_one_size_is_loaded_into_memory(tmp_path, capsys, channels):
    train, validation = examples(7, (4, 5, channels)), examples(3, (4, 5, channels))
    prepare(tmp_path, "tiny", image_and_label((4, 5, channels)), train=train, validation=validation)
    capsys.readouterr()
    for split, wanted in [("train", train), ("test", validation)]:
        source = find.load("tiny", split, str(tmp_path))
        assert isinstance(source, sources.ArraySource)
        assert source.image_shape == (4, 5) and source.class_names == ("no", "yes")
        assert source.labels.tolist() == [example["label"] for example in wanted]
        for image, example in zip(source.images, wanted, strict=True):
            np.testing.assert_array_equal(image, np.broadcast_to(example["image"][..., :3], (4, 5, 3)))
    dropped = "tiny: the fourth channel of its images is taken for alpha and dropped\n"
    assert capsys.readouterr().out == (dropped if channels == 4 else "")


def test_tfds_set_of_many_sizes_is_read_by_index(tmp_path):
    wanted = examples(9, [(4 + i, 12 - i, 3) for i in range(9)])
    prepare(tmp_path, "sizes", image_and_label((None, None, 3)), train=wanted)
    source = find.load("sizes", "train", str(tmp_path))
    assert isinstance(source, sources.RecordSource)
    assert source.num_examples == 9 and source.labels is None and source.image_shape is None
    for index in (8, 0, 3):
        np.testing.assert_array_equal(source.image(index), wanted[index]["image"])

    class Corner:
        def crop_one(self, image, seed):
            return image[:4, :4]

    for (first, _), labels, indices in TrainBatches(source, 3, seed=0, crops=[Corner()] * 2).batches(0):
        for image, label, index in zip(first, labels, indices, strict=True):
            np.testing.assert_array_equal(image, wanted[index]["image"][:4, :4])
            assert label == wanted[index]["label"]


def test_large_tfds_set_is_read_by_index_and_broken_records_are_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "MAX_ARRAY_BYTES", 100)
    wanted = examples(5, (6, 6, 3))
    prepare(tmp_path, "large", image_and_label((6, 6, 3)), train=wanted)
    source = find.load("large", "train", str(tmp_path))
    assert isinstance(source, sources.RecordSource)
    (path,) = (tmp_path / "large/1.0.0").glob("*train*tfrecord*")
    offset, length = tfds_source.record_places(str(path))[2]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = b"\xff" * length
    path.write_bytes(data)
    listed = tmp_path / "unreadable.txt"
    got = list(eval_batches(source, 9, prepare_one=lambda i: i, bad_images=BadImages(1, str(listed))))
    assert got[0][2].tolist() == [0, 1, 3, 4]
    assert f"record at byte {offset}" in listed.read_text()
    path.write_bytes(data[:-3])
    assert "by its last record" in error_of("large", "train", str(tmp_path))


def test_tfds_images_in_memory_are_decoded_as_those_read_record_by_record(tmp_path, monkeypatch):
    """By the method that Pillow has for JPEG, which is not the one of TFDS."""
    feature = lambda f: {"image": f.Image(shape=(16, 16, 3), encoding_format="jpeg"), "label": f.ClassLabel(names="ab")}  # noqa: E731
    prepare(tmp_path, "photos", feature, train=examples(3, (16, 16, 3)))
    whole = find.load("photos", "train", str(tmp_path))
    monkeypatch.setattr(tfds_source, "MAX_ARRAY_BYTES", 100)
    single = find.load("photos", "train", str(tmp_path))
    for index in range(3):
        data = single.read(*map(tf.convert_to_tensor, single.entries(index)))[0].numpy()
        wanted = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(whole.image(index), wanted)
        np.testing.assert_array_equal(single.image(index), wanted)


def test_tfds_test_split_with_secret_labels_gives_way(tmp_path):
    secret, known = examples(2, (4, 4, 3), [-1, -1]), examples(3, (4, 4, 3))
    prepare(tmp_path, "secret", image_and_label((4, 4, 3)), train=known, test=secret, validation=known)
    assert find.load("secret", "test", str(tmp_path)).labels.tolist() == [0, 1, 0]
    prepare(tmp_path, "public", image_and_label((4, 4, 3)), train=known, test=known[:2], validation=known)
    assert find.load("public", "test", str(tmp_path)).num_examples == 2


def test_tfds_set_without_labels(tmp_path):
    images = [{"image": example["image"]} for example in examples(3, (4, 4, 3))]
    prepare(tmp_path, "bare", lambda f: {"image": f.Image(shape=(4, 4, 3))}, train=images)
    source = find.load("bare", "train", str(tmp_path))
    assert source.labels.tolist() == [-1] * 3 and source.num_classes == 0
    assert "expected test or validation" in error_of("bare", "test", str(tmp_path))


def labelled(feature, *labels, sizes=((4, 4, 3),) * 9):
    """(features, examples) with labels of this kind of feature."""
    images = [RNG.integers(0, 255, size).astype(np.uint8) for size in sizes[: len(labels)]]
    given = [{"image": image, "label": label} for image, label in zip(images, labels)]
    shape = (4, 4, 3) if len(set(sizes)) == 1 else (None, None, 3)
    return lambda f: {"image": f.Image(shape=shape, encoding_format="png"), "label": feature(f)}, given


@pytest.mark.parametrize(
    ("held_out", "sizes"), [("val", ((4, 4, 3),) * 9), ("valid", tuple((4 + i, 5, 3) for i in range(9)))]
)
def test_tfds_labels_that_are_integers_or_text(tmp_path, held_out, sizes):
    """Of a set in memory and of one read record by record; the classes are those of the training images."""
    number = lambda f: f.Scalar(dtype=np.int64)  # noqa: E731
    features, train = labelled(number, *map(np.int64, (70, 5, -1, 12, 5)), sizes=sizes)
    prepare(
        tmp_path,
        "numbers",
        features,
        train=train,
        **{held_out: labelled(number, *map(np.int64, (12, 70)), sizes=sizes)[1]},
    )
    features, words = labelled(lambda f: f.Text(), *("wren", "grün", "wren", "emu"), sizes=sizes)
    prepare(tmp_path, "words", features, train=words, **{held_out: words[1:3]})
    for name, classes, labels, tested in (
        ("numbers", ("5", "12", "70"), [2, 0, -1, 1, 0], [1, 2]),
        ("words", ("emu", "grün", "wren"), [2, 1, 2, 0], [1, 2]),
    ):
        for split, wanted in (("train", labels), ("test", tested)):
            source = find.load(name, split, str(tmp_path))
            assert source.class_names == classes and source.num_classes == 3
            assert source.labels.tolist() == wanted and source.labels.dtype == np.int32
            batch = next(eval_batches(source, 9, prepare_one=lambda image: image[:4, :4]))
            assert batch[1].tolist() == wanted
    np.testing.assert_array_equal(find.load("words", "train", str(tmp_path)).image(2), words[2]["image"])


def test_tfds_labels_that_are_refused(tmp_path):
    number = lambda f: f.Scalar(dtype=np.int64)  # noqa: E731
    features, train = labelled(number, np.int64(1), np.int64(2))
    prepare(tmp_path, "more", features, train=train, test=labelled(number, np.int64(3))[1])
    assert "split test has the label 3 (1 such), expected only those of its training images" in error_of(
        "more", "test", str(tmp_path)
    )
    features, several = labelled(lambda f: f.Sequence(f.ClassLabel(names=["a", "b"])), [0, 1], [1])
    prepare(tmp_path, "several", features, train=several)
    assert "--dataset=several is multi-label" in error_of("several", "train", str(tmp_path))
    features, real = labelled(lambda f: f.Scalar(dtype=np.float32), np.float32(0.5))
    prepare(tmp_path, "real", features, train=real)
    assert find.load("real", "train", str(tmp_path)).labels.tolist() == [-1]


def test_tfds_set_of_something_else(tmp_path):
    prepare(tmp_path, "text", lambda f: {"words": f.Text()}, train=[{"words": "a"}])
    assert "has the features words, expected" in error_of("text", "train", str(tmp_path))
    deep = [{"image": np.zeros([4, 4, 3], np.uint16)}]
    prepare(tmp_path, "deep", lambda f: {"image": f.Image(shape=(4, 4, 3), dtype=np.uint16)}, train=deep)
    assert "uint16" in error_of("deep", "train", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar1", "did you mean cifar10"),
        ("Cifar 10", "expected a TensorFlow Datasets name"),
        ("foldr", "did you mean folder"),
        ("fashion-mnist", "cifar10, fashion_mnist, folder, imagenet100, or a module such as my.dataset"),
        ("huggingface:cifar10", "expected a TensorFlow Datasets name"),
        ("qwertyuiop", "expected a TensorFlow Datasets name"),
        ("cifar10/nothing", "cannot make it"),
        ("cifar10:9.9.9", "cannot make it"),
        ("cifar10", "no host can be reached"),
        ("imagenet2012", "getting it failed"),  # wants files that have to be fetched by hand
    ],
)
def test_tfds_errors(tmp_path, name, expected):
    pytest.importorskip("tensorflow_datasets")
    message = error_of(name, "train", str(tmp_path / "tfds"))
    assert expected in message and f"--dataset={name}" in message


@pytest.mark.parametrize("version", ["3.0.1", "1.0.0"])
def test_fashion_mnist_prepared_by_tfds_comes_first(tmp_path, version):
    wanted = examples(4, (28, 28, 1))
    prepare(tmp_path, "fashion_mnist", image_and_label((28, 28, 1)), version, train=wanted)
    source = find.load("fashion_mnist", "train", str(tmp_path))
    assert source.name == "fashion_mnist" and source.images.shape == (4, 28, 28, 3)
    np.testing.assert_array_equal(source.images[2], np.repeat(wanted[2]["image"], 3, -1))


# ---- The user's own


def test_arrays_that_are_no_images_are_refused():
    """Floats from 0 to 1 would be black."""
    for images in (np.zeros([2, 4, 4, 3], np.float32), np.zeros([2, 4, 4, 4], np.uint8), np.zeros([2, 4, 4], np.uint8)):
        with pytest.raises(UserError, match=r"birds: images of .* came, expected uint8 from 0 to 255 of NxHxWx3"):
            sources.ArraySource("birds", images)


BIRDS = """
import numpy as np

from moco_tf.data.sources import ArraySource

NORMALISATION = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def load(split, data_dir):
    images = np.full([3, 4, 4, 3], {"train": 1, "test": 2}[split], np.uint8)
    return ArraySource(f"birds of {data_dir}", images, np.array([0, 1, 0]), ("robin", "wren"))
"""


def test_a_set_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "my_sets").mkdir()
    (tmp_path / "my_sets" / "birds.py").write_text(BIRDS)
    (tmp_path / "my_sets" / "empty.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = find.load("my_sets.birds", "test", "here")
    assert source.name == "birds of here" and source.class_names == ("robin", "wren") and (source.images == 2).all()
    assert normalisation.known("auto", "my_sets.birds") == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert len(sample_images.images("my_sets.birds", "here", 2)) == 2
    assert not sample_images.is_here("my_sets.birds", "here")  # it does not say
    assert "has no function load, expected" in error_of("my_sets.empty", "train")
    assert "my_sets.bird is no module that Python finds" in error_of("my_sets.bird", "train")
