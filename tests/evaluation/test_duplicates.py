"""Near-duplicates: planted copies are found and nothing else; the threshold stands however many there are."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support import evaluation_runs
from support.programs import call
from support.report_pages import Page

from moco_tf.data.sources import ArraySource
from moco_tf.errors import UserError
from moco_tf.evaluation import duplicates
from moco_tf.training import device
from moco_tf.training.collectives import SingleProcess

WAYS = ("jpeg", "small", "large", "mirror", "all")


def scenes(count, seed=0, side=40):
    """Images of a few random blobs: uint8 NxSxSx3."""
    rng = np.random.default_rng(seed)
    x = tf.image.resize(rng.uniform(0, 255, (count, 5, 5, 3)), (side, side), method="bicubic").numpy()
    return np.clip(x + rng.normal(0, 4, x.shape), 0, 255).astype(np.uint8)


def write_copy(image, way, path):
    """A copy of an image, uint8 HxWx3, made by Pillow alone."""
    picture = Image.fromarray(image)
    if way in ("mirror", "all"):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if way in ("small", "large", "all"):
        picture = picture.resize([side * {"small": 5, "large": 16, "all": 6}[way] // 8 for side in picture.size])
    picture.save(
        path.with_suffix(".jpg" if way in ("jpeg", "all") else ".png"),
        **({"quality": 40} if way in ("jpeg", "all") else {}),
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """300 training images and 100 test images; 10 of each kind of copy of training images among the test images."""
    place, images = tmp_path_factory.mktemp("planted"), scenes(400)
    for split in ("train", "val"):
        (place / split / "all").mkdir(parents=True)
        (place / split / "none").mkdir()
    for number, image in enumerate(images):
        split = "train" if number < 300 else "val"
        Image.fromarray(image).save(place / split / ("all", "none")[number % 2] / f"{number:03}.png")
    for number in range(50):
        write_copy(images[number], WAYS[number // 10], place / "val" / "all" / f"{number:03}_{WAYS[number // 10]}.png")
    return place


def test_planted_copies(planted, tmp_path, monkeypatch, capsys):
    """All fifty, each in a group with its image and no other; those of other labels are counted."""
    monkeypatch.setattr(device, "configure", lambda *_: None)
    monkeypatch.setattr(duplicates, "SAMPLE", 150)
    call("duplicates", dataset="folder", data_dir=planted, output=tmp_path / "d.csv")
    with open(tmp_path / "d.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    groups = {}
    for line in lines:
        groups.setdefault(line["group"], []).append(line)
    names = [[line["path"].rpartition("/")[2][:3] for line in group] for group in groups.values()]
    assert sorted(names) == [[f"{number:03}"] * 2 for number in range(50)]  # recall 1, precision 1
    assert {line["split"] for line in lines} == {"train", "test"}
    turned = {line["path"] for line in lines if line["mirrored"] == "yes"}
    assert len(turned) == 40 and all("mirror" in path or "all" in path for path in turned if "_" in path)
    numbers = json.loads((tmp_path / "d.json").read_text())
    known = {"images": 450, "groups": 50, "pairs": 50, "test_images": 150, "test_images_in_train": 50}
    assert known.items() <= numbers.items() and numbers["pairs_with_other_labels"] == 25
    assert numbers["recall_of_made_copies"] > 0.97 and 0.9 < numbers["threshold"] < 0.999
    out = capsys.readouterr().out
    assert "50 of 150 test images have a near-duplicate among the training images." in out
    page = Page(tmp_path / "d.html")
    assert len(page.all("img")) == 100 and "mirrored" in page.text("images")
    call("duplicates", images=planted / "val", threshold=1.0, output=tmp_path / "none.csv")
    assert "0 of 150 images are near-duplicates" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        call("duplicates", images=planted, output=tmp_path / "d.csv")


def test_knn_and_lincls_count_them(planted, tmp_path, monkeypatch, capsys):
    """The fifty, in one line and in the result; what else the result says is the same without the count."""
    monkeypatch.setattr(device, "configure", lambda *_: None)
    run, given = evaluation_runs.make_run(tmp_path / "run"), {"data_dir": planted, "load": tmp_path / "run"}
    assert (run / "checkpoints").is_dir()
    flags = {"knn": {"k": 3}, "lincls": {"cache_features": True, "steps": 2, "learning_rate": 0.1}}
    found = {}
    for counted in (True, False):
        if not counted:
            monkeypatch.setattr(duplicates, "count_in_train", lambda *_: None)
            monkeypatch.setattr(duplicates, "beside", lambda embed: lambda images: (embed(images), images[:, 0, 0]))
        for name, more in flags.items():
            place = tmp_path / f"{name}{counted}"
            call(name, workdir=place, **given, **evaluation_runs.SMALL, **more)
            found[name, counted] = json.loads((place / "result.json").read_text())
    for name in flags:
        assert found[name, True].pop("test_images_in_train") == 50 and found[name, True] == found[name, False]
    line = (
        "about 50 of 150 test images have a near-duplicate among the training images; moco_tf.duplicates looks closer"
    )
    out = capsys.readouterr().out
    assert out.count(line) == 2
    assert out.count("an unknown number of 150 test images have a near-duplicate among the training images; ") == 2


def test_copies_are_cut_as_their_images():
    """The images have the network's size, so nothing is cut off. A smaller copy would be cut; resized, it is not."""
    rng = np.random.default_rng(5)
    images = np.stack([np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))) for _ in range(20)]).astype(
        np.uint8
    )
    source = ArraySource("blocks", images)
    found = duplicates.of_copies([(source, i) for i in range(20)], (0, 32), same_size=True)
    assert found.min() > 0.98 > np.median(duplicates.of_copies([(source, i) for i in range(20)], (0, 32)))


def rows_of(images):
    return duplicates.thumbnails(tf.constant(images, tf.float32) / 255).numpy()


def test_thumbnails():
    """Pillow's correlation, as it is and mirrored; flat images are alike to each other, and to nothing else."""
    images = scenes(30)
    rows = rows_of(images)
    small = np.array(
        [np.asarray(Image.fromarray(x).convert("L").resize((12, 12), Image.Resampling.BILINEAR)) for x in images]
    )
    expected = np.corrcoef(small.reshape(30, -1).astype(float))
    np.testing.assert_allclose(rows @ rows.T, expected, atol=0.01)
    np.testing.assert_allclose(duplicates.mirrored(rows), rows_of(images[:, :, ::-1]), atol=1e-5)
    flat = rows_of(np.stack([np.full((9, 9, 3), value, np.uint8) for value in (0, 7, 255)]))
    np.testing.assert_allclose(flat @ flat.T, 1, atol=1e-6)
    assert (rows @ flat.T).max() < 0.1


@pytest.mark.parametrize("share", [0, 0.1, 0.4, 0.7, 0.95])
def test_threshold(share):
    """Four deviations below the middle of what strangers have, whatever the share of images that have a copy."""
    rng = np.random.default_rng(0)
    strangers = 1 - np.exp(rng.normal(-1.6, 0.5, 20000))
    copies = 1 - np.exp(rng.normal(-5, 0.5, 20000))
    nearest = np.where(rng.random(20000) < share, copies, strangers)[:5000]
    found = duplicates.propose(nearest, copies)
    expected = 1 - np.exp(-1.6 - 4 * 0.5) if share < 0.8 else np.quantile(copies, 0.01)
    assert found.threshold == pytest.approx(expected, abs=0.003)
    assert found.recall == np.mean(copies >= found.threshold) >= 0.99
    near = duplicates.propose(strangers, 1 - 0.1 * (1 - copies)).threshold  # the copies are ten times nearer
    assert near == pytest.approx(1 - 0.3 * (1 - np.quantile(copies, 0.01)))


def test_pairs_and_groups(monkeypatch):
    """Those of NumPy's whole matrix, in blocks that do not divide it; a chain of pairs is one group."""
    monkeypatch.setattr(duplicates, "_BLOCK", 17)
    monkeypatch.setattr(duplicates, "_CHUNK", 23)
    rows = rows_of(scenes(100))
    plain, mirror = rows @ rows.T, duplicates.mirrored(rows) @ rows.T
    found = duplicates.pairs(rows, 0.55)
    first, second = np.nonzero(np.triu(np.maximum(plain, mirror) >= 0.55, 1))
    assert set(zip(found.first, found.second)) == set(zip(first, second)) and len(first) > 20
    np.testing.assert_allclose(found.similarity, np.maximum(plain, mirror)[found.first, found.second], atol=1e-6)
    np.testing.assert_array_equal(found.mirrored, (mirror > plain)[found.first, found.second])
    chain = duplicates.Pairs(np.array([5, 1, 3, 0]), np.array([7, 5, 4, 9]), np.ones(4), np.ones(4, bool))
    assert duplicates.groups(10, chain).tolist() == [0, 1, 2, 3, 3, 1, 6, 1, 8, 0]
    monkeypatch.setattr(duplicates, "_MOST", 10)
    with pytest.raises(UserError, match="more than 10 pairs reach --threshold=0.5500"):
        duplicates.pairs(rows, 0.55)


def test_count_in_train():
    """As many as were planted, also where two ranks hold the bank."""
    images = scenes(300)
    test = np.concatenate([scenes(80, seed=1), images[:20, :, ::-1]])
    source, bank, rows = ArraySource("test", test), rows_of(images), rows_of(test)
    assert duplicates.count_in_train(bank, rows, source, (40, 40), SingleProcess()) == 20

    class Rank(SingleProcess):
        def allgather(self, tensor):  # of the other rank's half of the bank
            return tf.concat([tensor, duplicates._largest(rows, bank[150:])[None]], 0)

    assert duplicates.count_in_train(bank[:150], rows, source, (40, 40), Rank()) == 20


@pytest.mark.parametrize("copies", [85, 100])
def test_test_images_that_are_nearly_all_in_train(copies):
    """No strangers are left to compare with: equal pictures count. If none is equal, the count is not known."""
    images = scenes(200)
    test = np.concatenate([images[:copies], scenes(100 - copies, seed=1)])
    source, rows = ArraySource("test", test), rows_of(test)
    assert duplicates.count_in_train(rows_of(images), rows, source, (0, 40), SingleProcess()) == copies
    noise = np.random.default_rng(2).normal(0, 4, images.shape)
    changed = rows_of(np.clip(images + noise, 0, 255))
    assert duplicates.count_in_train(changed, rows, source, (0, 40), SingleProcess()) is None
