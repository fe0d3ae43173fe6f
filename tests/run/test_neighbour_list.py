"""Lists of neighbours against brute force in NumPy: from every format, from a run, of one image, through FAISS."""

import csv
import pathlib

import numpy as np
import pytest
from support import evaluation_runs
from support.programs import call
from support.report_pages import Page

from moco_tf.errors import UserError
from moco_tf.evaluation import approximate, neighbours
from moco_tf.formats import vectors
from moco_tf.training import device


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """TensorFlow of this process has chosen its threads already."""
    monkeypatch.setattr(device, "configure", lambda *_: None)


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run folder on the photos."""
    place = evaluation_runs.make_run(tmp_path_factory.mktemp("run") / "run")
    (place / "flags.cfg").write_text(f"--dataset=folder\n--data_dir={photos}\n")
    return place


def lines_of(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def brute_force(x, k):
    """Rows of the k nearest others of each row, and their cosines."""
    x = x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x @ x.T
    np.fill_diagonal(cosines, -2)
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(cosines, rows, 1)


def some_rows(count=50, width=7, seed=0):
    """Random vectors as `vectors.write` takes them, in two parts, with a comma and bytes that are no UTF-8 in paths."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)).astype(np.float32) * rng.uniform(0.1, 9, (count, 1)).astype(np.float32)
    names = [f"some, {i}/\udce9.png" for i in range(count)]
    halves = slice(0, 20), slice(20, count)
    parts = [vectors.Part(names[h], ["train"] * len(names[h]), ["a", "b"] * (len(names[h]) // 2), x[h]) for h in halves]
    return vectors.Rows(lambda: iter(parts), count, (width,)), names, x


@pytest.mark.parametrize("suffix", vectors._WRITERS)
def test_from_files(suffix, tmp_path, monkeypatch):
    """Of every format, in blocks that do not divide the rows."""
    monkeypatch.setattr("moco_tf.run.neighbour_list._BLOCK", 13)
    rows, names, x = some_rows()
    vectors.write(tmp_path / f"v{suffix}", rows)
    table = vectors.read(tmp_path / f"v{suffix}")
    np.testing.assert_allclose(table.vectors, x, rtol=1e-6)
    assert isinstance(table.vectors, np.memmap) == (suffix not in (".csv", ".parquet"))
    call("neighbours", vectors=tmp_path / f"v{suffix}", k=5, output=tmp_path / "near.csv")
    lines, (nearest, cosines) = lines_of(tmp_path / "near.csv"), brute_force(x, 5)
    names = [vectors._printable(name) for name in names] if suffix == ".parquet" else names
    assert [line["path"] for line in lines] == [name for name in names for _ in range(5)]
    assert [line["neighbour"] for line in lines] == [names[row] for row in nearest.ravel()]
    assert [int(line["rank"]) for line in lines] == [1, 2, 3, 4, 5] * 50
    np.testing.assert_allclose([float(line["similarity"]) for line in lines], cosines.ravel(), atol=2e-6)
    assert {line["split"] + line["neighbour_split"] for line in lines} == {"traintrain"}
    assert [line["neighbour_label"] for line in lines] == ["ab"[row % 2] for row in nearest.ravel()]


def test_of_a_run(run, photos, tmp_path, capsys):
    """Vectors computed now; the page has the pictures; one image of the set, and one from elsewhere."""
    call("embed", load=run, output=tmp_path / "v.npz")
    table = vectors.read(tmp_path / "v.npz")
    paths, x = [str(path) for path in table.paths], table.vectors / np.linalg.norm(table.vectors, axis=1, keepdims=True)
    capsys.readouterr()
    call("neighbours", load=run, k=3)
    lines, page = lines_of(run / "neighbours.csv"), Page(run / "neighbours.html")
    assert [line["path"] for line in lines] == [path for path in paths for _ in range(3)]
    cosines = [x[paths.index(line["path"])] @ x[paths.index(line["neighbour"])] for line in lines]
    np.testing.assert_allclose(cosines, brute_force(x, 3)[1].ravel(), atol=1e-6)
    assert len(paths) == 114 and not list(run.glob(".*"))
    assert "The 3 nearest of each of 114 images, compared with each" in capsys.readouterr().out
    assert len(page.all("img")) == 60 * 4 and "Here are 60 of them" in page.source
    assert {line["neighbour_label"] for line in lines} == {"bird", "cat", "dog"}

    name = pathlib.Path(paths[7]).relative_to(photos)
    call("neighbours", load=run, k=4, image=name, output=tmp_path / "one.csv")
    of_one = lines_of(tmp_path / "one.csv")
    assert [line["neighbour"] for line in of_one[:3]] == [line["neighbour"] for line in lines[21:24]]
    assert len(Page(tmp_path / "one.html").all("img")) == 5

    call("embed", load=run, output=tmp_path / "train.npz", split="train")
    call("neighbours", load=run, vectors=tmp_path / "train.npz", k=4, image=paths[100], output=tmp_path / "other.csv")
    found = [paths.index(line["neighbour"]) for line in lines_of(tmp_path / "other.csv")]
    assert max(found) < 90
    np.testing.assert_allclose(x[found] @ x[100], -np.sort(-x[:90] @ x[100])[:4], atol=1e-6)


def test_equal_vectors(tmp_path):
    """More copies of an image than neighbours are asked for: it is never its own neighbour."""
    x = np.ones((9, 4), np.float32)
    part = vectors.Part([f"{i}.png" for i in range(9)], [""] * 9, [""] * 9, x)
    vectors.write(tmp_path / "v.npz", vectors.Rows(lambda: iter([part]), 9, (4,)))
    call("neighbours", vectors=tmp_path / "v.npz", k=2)
    lines = lines_of(tmp_path / "neighbours.csv")
    assert len(lines) == 18 and all(line["path"] != line["neighbour"] for line in lines)
    assert {float(line["similarity"]) for line in lines} == {1.0}


def test_through_faiss(tmp_path, monkeypatch, capsys):
    """The recall that it states is that against brute force; --exact does without."""
    pytest.importorskip("faiss", reason="no faiss: pip install faiss-cpu")
    monkeypatch.setattr(approximate, "LARGE", 1000)
    monkeypatch.setattr(approximate, "_SAMPLE", 10**6)
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 16))[rng.integers(0, 40, 2000)] + 0.4 * rng.normal(size=(2000, 16))).astype(np.float32)
    part = vectors.Part([f"{i}.png" for i in range(2000)], [""] * 2000, [""] * 2000, x)
    vectors.write(tmp_path / "v.npy", vectors.Rows(lambda: iter([part]), 2000, (16,)))
    index = approximate.Approximate(neighbours.Normalised(x), 6)
    own = np.arange(2000)[:, None]
    expected = np.concatenate([own, brute_force(x, 5)[0]], axis=1)
    _, found = index.nearest(neighbours.Normalised(x)[:], 6)
    share = np.mean([len(set(a) & set(b)) for a, b in zip(found.tolist(), expected.tolist())]) / 6
    assert index.recall == pytest.approx(share) and share >= 0.99 and index.measured_on == 2000
    for exact, words in ((False, f"of which FAISS finds {share:.1%}"), (True, "compared with each")):
        call("neighbours", vectors=tmp_path / "v.npy", k=5, exact=exact)
        assert words in capsys.readouterr().out
        rows = [int(line["neighbour"].split(".")[0]) for line in lines_of(tmp_path / "neighbours.csv")]
        assert np.mean(np.array(rows) == expected[:, 1:].ravel()) >= (1 if exact else 0.95)


def test_refusals(run, photos, tmp_path, capsys):
    rows, *_ = some_rows()
    vectors.write(tmp_path / "v.npz", rows)
    (tmp_path / "bad.npz").write_bytes(b"PK")
    np.savez(tmp_path / "other.npz", vectors=np.zeros((3, 2)), paths=["a"], splits=["a"], labels=["a"])
    np.savez(tmp_path / "nan.npz", vectors=np.full((3, 2), np.nan), paths=["a"] * 3, splits=["a"] * 3, labels=["a"] * 3)
    np.savez_compressed(
        tmp_path / "zero.npz", **dict(np.load(tmp_path / "nan.npz"), vectors=np.zeros((3, 2), np.float32))
    )
    own = {"vectors": tmp_path / "v.npz", "output": tmp_path / "n.csv"}
    for flags, words in (
        ({"output": tmp_path / "n.csv"}, ["--load and --vectors are missing"]),
        ({**own, "output": tmp_path / "n.txt"}, ["ends in .csv"]),
        ({**own, "output": tmp_path / "none" / "n.csv"}, ["a folder that is not there"]),
        ({**own, "vectors": tmp_path / "none.npz"}, ["none.npz cannot be read"]),
        ({**own, "vectors": tmp_path / "v.txt"}, ["expected a file of vectors: one of .npz"]),
        ({**own, "vectors": tmp_path / "bad.npz"}, ["is no file of vectors"]),
        ({**own, "vectors": tmp_path / "other.npz"}, ["(3, 2) with 1 and 1 and 1 texts"]),
        ({**own, "vectors": tmp_path / "nan.npz"}, ["3 of 3 vectors are not finite"]),
        ({**own, "feature": "dense"}, ["--feature=dense"]),
        ({**own, "image": "x.png"}, ["is none of the images", "give --load"]),
        ({**own, "image": "\udce9.png"}, ["50 images end in it"]),
        ({**own, "image": "x.png", "load": run}, ["none of the images and no file"]),
        ({**own, "image": next(photos.rglob("*.png")), "load": run}, ["makes vectors of 32, expected 7"]),
    ):
        with pytest.raises(UserError) as refused:
            call("neighbours", **flags)
        assert all(word in str(refused.value) for word in words), refused.value
        assert not (tmp_path / "n.csv").exists()
    capsys.readouterr()
    call("neighbours", vectors=tmp_path / "zero.npz")
    assert "3 of 3 vectors are all zero" in capsys.readouterr().out
    call("neighbours", **own)
    assert "no picture could be read, give --load" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        call("neighbours", **own)
