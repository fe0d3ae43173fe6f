"""Feature vectors in files: what they hold, where the images come from, stopping and going on, several ranks."""

import csv
import io
import pathlib
import shutil

import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import tensorflow as tf
from support import evaluation_runs
from support.programs import call

import moco_tf
from moco_tf.data import records
from moco_tf.data.sets import folder
from moco_tf.data.views.geometry import resize_center_crop
from moco_tf.errors import UserError
from moco_tf.evaluation import features
from moco_tf.formats import savedmodel, vectors
from moco_tf.run import embedding
from moco_tf.training.collectives import SingleProcess


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run folder on the photos."""
    place = evaluation_runs.make_run(tmp_path_factory.mktemp("run") / "run")
    (place / "flags.cfg").write_text(f"--dataset=folder\n--data_dir={photos}\n")
    return place


@pytest.fixture(scope="module")
def expected(run, photos):
    """(paths, splits, labels, vectors) of all photos, prepared one by one."""
    paths = [str(path) for part in ("train", "val") for path in sorted((photos / part).rglob("*.png"))]
    splits = [{"train": "train", "val": "test"}[pathlib.Path(path).parts[-3]] for path in paths]
    images = [resize_center_crop(folder.of_paths([path]).image(0)[None], 18, 16)[0].numpy() for path in paths]
    return paths, splits, [pathlib.Path(path).parts[-2] for path in paths], moco_tf.load(run).embed(images)


def texts_of(path):
    return [list(column) for column in zip(*list(csv.reader(open(path, newline="")))[1:])]


def read(path):
    """What a file and the texts beside it hold, by the libraries that know its format."""
    if path.suffix == ".npz":
        file = np.load(path)
        return *(file[name].tolist() for name in ("paths", "splits", "labels")), file["vectors"]
    if path.suffix == ".csv":
        (*texts,) = texts_of(path)
        return *texts[:3], np.array(texts[3:], np.float64).T
    if path.suffix == ".parquet":
        columns = pyarrow.parquet.read_table(path).to_pydict()
        return *(columns[name] for name in ("path", "split", "label")), np.array(columns["vector"], np.float32)
    if path.suffix == ".npy":
        return *texts_of(path.with_suffix(".csv")), np.load(path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert b'"vectors"' in data[8 : 8 + size] and b'"F32"' in data[8 : 8 + size]
    return *texts_of(path.with_suffix(".csv")), np.frombuffer(data[8 + size :], "<f4").reshape(114, -1)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv", ".parquet", ".safetensors"])
def test_formats(suffix, run, expected, tmp_path, capsys):
    """All images of the run, and what each format holds of them."""
    call("embed", load=run, output=tmp_path / f"v{suffix}", batch_size=50)
    *texts, numbers = read(tmp_path / f"v{suffix}")
    assert texts == list(expected[:3])
    np.testing.assert_allclose(numbers, expected[3], rtol=1e-5, atol=1e-6)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("images: --dataset=folder --data_dir=") and "114x" in out[-1] and len(out) == 2
    assert not list(tmp_path.glob(".*"))


def test_images_from_elsewhere(run, photos, expected, tmp_path, monkeypatch):
    """A folder, class folders alone, one image, a list in a file or on standard input, one split; head and map."""
    paths, _, labels, numbers = expected
    (tmp_path / "LIST.TXT").write_text(f"\ufeff{paths[100]}\n\n{paths[3]}\r\n")  # with a byte-order mark
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{paths[7]}\nodd/".encode() + b"\xff\xfe.png\n")))
    for name, images, rows, split, label in (
        ("a", photos, range(114), None, labels),
        ("b", photos / "val", range(90, 114), "", labels),
        ("c", paths[5], [5], "", [""] * 114),
        ("d", tmp_path / "LIST.TXT", [100, 3], "", [""] * 114),
        ("e", "-", [7], "", [""] * 114),
    ):
        call("embed", load=run, output=tmp_path / f"{name}.npz", images=images)
        got = read(tmp_path / f"{name}.npz")
        assert got[0] == [paths[row] for row in rows] and (split is None or set(got[1]) == {split})
        assert got[2] == [label[row] for row in rows]
        np.testing.assert_allclose(got[3], numbers[rows], rtol=1e-5, atol=1e-6)
    call("embed", load=run, output=tmp_path / "test.npz", split="test", feature="head")
    encoder = moco_tf.load(run).encoder
    head = encoder.project(tf.constant(numbers[90:])).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "test.npz")["vectors"], head, rtol=1e-5, atol=1e-6)
    call("embed", load=run, output=tmp_path / "dense.npy", split="test", feature="dense")
    dense = np.load(tmp_path / "dense.npy")
    assert dense.ndim == 4 and len(dense) == 24
    np.testing.assert_allclose(dense.mean(axis=(1, 2)), numbers[90:], rtol=1e-5, atol=1e-6)


def test_vectors_are_those_of_python_and_of_the_saved_model(run, tmp_path):
    """To 1e-5, of images of the network's size, 16 px, and of others; those of 16 bits are for Python alone."""
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in ((16, 16), (40, 31), (16, 16), (18, 16))]
    for number, image in enumerate(images):
        PIL.Image.fromarray(image).save(tmp_path / f"{number}.png")
    for name, white in (("deep", 1_000), ("deeper", 60_000)):
        PIL.Image.fromarray(draw.integers(0, white, (16, 16)).astype(np.uint16)).save(tmp_path / f"{name}.png")
    call("embed", load=run, images=tmp_path, output=tmp_path / "v.npz")
    found, encoder = np.load(tmp_path / "v.npz")["vectors"], moco_tf.load(run)
    saved = savedmodel.Exported(encoder.encoder, 16, encoder.mean, encoder.std)
    whole = features.embedder(encoder.encoder, "backbone", encoder.mean, encoder.std)(images[2][None] / np.float32(255))
    largest = np.abs(found).max()
    for others in (encoder.embed(tmp_path), np.concatenate([saved.embed(image[None]) for image in images])):
        np.testing.assert_allclose(found[: len(others)], others, rtol=0, atol=1e-5 * largest)
    np.testing.assert_allclose(found[2:3], whole, rtol=0, atol=1e-5 * largest)


@pytest.fixture()
def small_parts(monkeypatch):
    """Parts of 16 images: 6 of the training images, 2 of the test images."""
    monkeypatch.setattr(embedding, "_PART", 16)


def test_goes_on(run, tmp_path, small_parts, monkeypatch, capsys):
    """Stopped after three parts and started again it gives the same bytes; other settings begin anew."""
    flags = {"load": run, "batch_size": 8}
    call("embed", output=tmp_path / "whole.npy", **flags)
    write, count = embedding._write, []

    def stop(path, columns):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(write(path, columns))

    monkeypatch.setattr(embedding, "_write", stop)
    for name in ("a", "b"):
        count.clear()
        with pytest.raises(KeyboardInterrupt):
            call("embed", output=tmp_path / f"{name}.npy", **flags)
        assert not (tmp_path / f"{name}.npy").exists()
    monkeypatch.setattr(embedding, "_write", lambda *part: (count.append(0), write(*part)))
    for name, feature, left, said in (
        ("a", "backbone", 5, "going on after 3 parts"),
        ("b", "head", 8, "beginning anew"),
    ):
        count.clear()
        call("embed", output=tmp_path / f"{name}.npy", feature=feature, **flags)
        assert len(count) == left and said in capsys.readouterr().out
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert len(np.load(tmp_path / "b.npy")) == 114


def test_ranks_share_the_parts(run, tmp_path, small_parts, monkeypatch):
    """Three ranks compute 3, 3 and 2 of eight parts; rank 0 writes the same file as one process."""
    call("embed", load=run, output=tmp_path / "one.npy", batch_size=8)
    written, write = [], embedding._write
    monkeypatch.setattr(embedding, "_write", lambda path, columns: (written.append(path.stem), write(path, columns)))
    monkeypatch.setattr(embedding.shutil, "rmtree", lambda path: None)

    class Rank(SingleProcess):
        size = 3

    for rank in (2, 1, 0):
        Rank.rank = rank
        monkeypatch.setattr(embedding.prepare, "connect", lambda *a, **k: Rank())
        monkeypatch.setattr(embedding, "broadcast_result", lambda ranks, function: function())
        call("embed", load=run, output=tmp_path / "three.npy", batch_size=8)
        assert [int(name) % 3 for name in written] == [rank] * (3, 3, 2)[rank]
        written.clear()
    assert (tmp_path / "three.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()


def test_unreadable_images(run, photos, expected, tmp_path, small_parts, capsys):
    """They are left out, listed and counted, though a whole part is nothing else."""
    paths = [*expected[0][:20], *(str(tmp_path / f"{i}.png") for i in range(20)), *expected[0][20:24]]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    (tmp_path / "3.png").write_bytes(b"no image")
    records.left_out()  # of other tests
    call("embed", load=run, output=tmp_path / "v.npz", images=tmp_path / "list.txt", batch_size=4)
    got = read(tmp_path / "v.npz")
    assert got[0] == expected[0][:24]
    np.testing.assert_allclose(got[3], expected[3][:24], rtol=1e-5, atol=1e-6)
    listed = (tmp_path / "v.npz.unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == paths[20:40]
    assert "20 of 44 images could not be read and are left out" in capsys.readouterr().out
    assert not records.left_out()  # it is said once
    twice = [paths[0], *paths[20:22], *paths[20:22]]
    (tmp_path / "list.txt").write_text("\n".join(twice))
    call("embed", load=run, output=tmp_path / "w.npz", images=tmp_path / "list.txt")
    assert f"4 of 5 images could not be read and are left out; see {tmp_path}/w.npz" in capsys.readouterr().out
    (tmp_path / "list.txt").write_text("\n".join(paths[20:22]))
    with pytest.raises(UserError, match="none of its 2 images can be read"):
        call("embed", load=run, output=tmp_path / "x.npz", images=tmp_path / "list.txt")
    assert not list(tmp_path.glob(".*"))


def test_a_folder_beside_whose_splits_images_lie(run, expected, tmp_path, capsys):
    """All images below it are there, as Python takes them: test/ beside val/, folders of no split, loose ones."""
    for number, name in enumerate(
        ["train/a", "train/a", "val/a", "test/a", "test/b", "unlabeled", "unlabeled/deep", ""]
    ):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(expected[0][number], tmp_path / "set" / name / f"{number}.png")
    call("embed", load=run, output=tmp_path / "v.npz", images=tmp_path / "set")
    paths, splits, labels, _ = read(tmp_path / "v.npz")
    assert sorted(paths) == sorted(folder.images(str(tmp_path / "set"))) and len(paths) == 8
    assert (splits, labels) == (["train"] * 2 + ["test"] + [""] * 5, ["a"] * 3 + [""] * 5)
    out = capsys.readouterr().out
    assert f"5 images of {tmp_path}/set are of neither split" in out and "those of val/, none of test/" in out
    for no_split in ("val", "test"):
        (tmp_path / "set" / no_split).rename(tmp_path / "set" / f"{no_split}_car")
    call("embed", load=run, output=tmp_path / "w.npz", images=tmp_path / "set")
    assert sorted(map(len, read(tmp_path / "w.npz")[:1])) == [8]
    (tmp_path / "set" / "train").rename(tmp_path / "set" / "Train")  # a layout that training refuses
    call("embed", load=run, output=tmp_path / "x.npz", images=tmp_path / "set")
    assert len(read(tmp_path / "x.npz")[0]) == 8 and "without splits and labels" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".npy", ".SAFETENSORS"])
def test_stopped_while_it_writes(suffix, run, photos, tmp_path, monkeypatch):
    """Between the texts and the vectors: the same command goes on, without computing anything again."""
    flags = {"load": run, "images": photos / "val", "output": tmp_path / f"v{suffix}"}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setitem(vectors._WRITERS, suffix.lower(), stop)
        call("embed", **flags)
    assert [path.name for path in tmp_path.glob("v.*")] == ["v.csv"]
    with monkeypatch.context() as patched:
        patched.setattr(embedding, "_write", stop)
        call("embed", **flags)
    assert len(vectors.read(flags["output"]).paths) == 24 and not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match="exists already"):
        call("embed", **flags)


def test_vectors_that_are_no_numbers_are_refused(run, photos, tmp_path):
    encoder = moco_tf.load(run)
    scale = encoder.encoder.named_variables()["layer4.0.bn2.weight"]
    scale.assign(scale.value * np.inf)
    encoder.save(tmp_path / "broken")
    with pytest.raises(UserError, match="features are not all finite"):
        call("embed", load=tmp_path / "broken", images=photos / "val", output=tmp_path / "v.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_refusals(run, photos, tmp_path):
    (tmp_path / "taken.npz").touch()
    (tmp_path / "empty.txt").write_text("\n")
    for flags, words in (
        ({}, ["--output is missing"]),
        ({"output": tmp_path / "v.txt"}, [".npz, .npy, .csv, .parquet, .safetensors"]),
        ({"output": tmp_path / "taken.npz"}, ["exists already"]),
        ({"output": tmp_path / "none" / "v.npz"}, ["a folder that is not there"]),
        ({"output": tmp_path / "v.csv", "feature": "dense"}, ["--feature=dense", ".npz"]),
        ({"output": tmp_path / "v.npz", "images": "-", "dataset": "folder"}, ["leave one out"]),
        ({"output": tmp_path / "v.npz", "images": tmp_path / "none"}, ["cannot be read", "expected a folder"]),
        ({"output": tmp_path / "v.npz", "images": tmp_path / "empty.txt"}, ["names no image"]),
    ):
        with pytest.raises(UserError) as refused:
            call("embed", load=run, **flags)
        assert all(word in str(refused.value) for word in words), refused.value
    with pytest.raises(UserError, match="--load is missing"):
        call("embed", output=tmp_path / "v.npz")


def test_beside():
    path = pathlib.Path("a/v.npy")
    assert vectors.files(path) == [path, pathlib.Path("a/v.csv")] and vectors.files(pathlib.Path("v.npz")) == [
        pathlib.Path("v.npz")
    ]


def test_embed_in_python(run, photos, expected):
    """Paths, Pillow's images, a folder and a generator give what arrays give; a file that is none is named."""
    paths, encoder = expected[0][90:], moco_tf.load(run)
    arrays = encoder.embed([np.asarray(PIL.Image.open(path).convert("RGB")) for path in paths])
    assert arrays.shape == (24, 32)
    for images in (paths, photos / "val", (pathlib.Path(path) for path in paths), map(PIL.Image.open, paths)):
        np.testing.assert_array_equal(encoder.embed(images), arrays)
    np.testing.assert_array_equal(encoder.embed(paths[0]), arrays[:1])
    grey = PIL.Image.open(paths[0]).convert("LA")
    np.testing.assert_array_equal(encoder.embed([grey]), encoder.embed([np.asarray(grey.convert("L"))]))
    for image, words in ((run / "flags.cfg", "flags.cfg cannot be read"), (grey.convert("F"), "floating point came")):
        with pytest.raises(UserError, match=words):
            encoder.embed([image])
