"""The report page: what it holds, what it leaves out and says, and what it makes of hostile names."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from support.programs import ROOT, TINY, arguments, call, start, write_photos
from support.report_pages import HOSTILE, Page
from tensorboard.plugins import projector

from moco_tf.config import define, extras
from moco_tf.errors import UserError
from moco_tf.reporting import charts, embedding_map, pictures, results, sections, svg
from moco_tf.reporting.results import RunRecord
from moco_tf.run import examine
from moco_tf.run.folder import Metrics, RunFolder
from moco_tf.training.meter import InputWait


def test_page_asks_for_nothing(run):
    """Self-contained: pictures are data, and nothing that could be fetched is named."""
    page = Page(run / "report.html")
    assert len(page.source) < 6e6
    assert page.all("img") and all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(link["href"] == "data:," for link in page.all("link"))
    assert all("src" not in script for script in page.all("script")) and len(page.all("script")) == 2
    assert not re.search(r'(?:src|href|action)="?(?:https?:)?//|@import|url\(["\']?http', page.source)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not page.all("b") or "run<b>" not in page.source  # the run's name is text
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]


def test_page_agrees_with_knn(run):
    """Accuracy and confusions are those of moco_tf.knn, which evaluated the same images with the same k."""
    page, result = Page(run / "report.html"), json.loads((run / "knn" / "result.json").read_text())
    assert f"(k = 5) on the pooled features: {100 * result['top1']:.2f} % of 24 test images" in page.text("classes")
    assert all(name in page.text("classes") for name in HOSTILE)
    row = re.search(r"pooled features ([-\d. ]+)", page.text("spread"))[1].split()
    figures = [result["label_free"][name] for name in ("rankme", "alpha_req", "lidar")]
    assert [float(text) for text in row[:3]] == pytest.approx(figures, rel=2e-3)
    assert f"pre-trained {100 * result['top1']:.2f} -" in page.text("results")
    the_map = page.data()["map"]
    right = np.equal(the_map["labels"], the_map["predicted"])
    assert right.mean() == pytest.approx(result["top1"]) and len(right) == 24
    assert 0.5 < result["top1"] < 1
    assert the_map["files"] == [f"{number:02}.png" for number in range(8)] * 3
    assert sorted(the_map["names"]) == sorted(HOSTILE)


def test_charts_hold_the_metrics(run):
    lines = RunFolder(run).read_metrics().lines
    drawn = Page(run / "report.html").data()["charts"]
    assert drawn.keys() == {"loss", "contrast", "knn", "rate", "std", "speed", "wait"}
    assert drawn["loss"]["series"][0]["value"] == [line["loss"] for line in lines if "loss" in line]
    assert drawn["knn"]["series"][1]["value"] == [line["knn_top5"] for line in lines if "knn_top5" in line]
    assert all(0 <= value <= 1 for value in drawn["wait"]["series"][0]["value"])


def test_tensorboard_has_views_and_projector(run):
    folder = run / "tensorboard" / "report"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), projector.ProjectorConfig())
    (entry,) = config.embeddings
    features = np.fromfile(folder / entry.tensor_path, "<f4").reshape(entry.tensor_shape)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    lines = (folder / entry.metadata_path).read_text().splitlines()
    assert lines[0] == "class\tkNN\timage" and len(lines) == 1 + len(features) == 25
    assert {line.split("\t")[0] for line in lines[1:]} == set(HOSTILE)
    side = entry.sprite.single_image_dim[0]
    assert Image.open(folder / entry.sprite.image_path).size == (5 * side, 5 * side)  # 25 places for 24 images
    (events,) = folder.glob("events.*")
    tags = {v.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for v in event.summary.value}
    assert tags == {"views"}


def test_without_labels_and_test_images(tmp_path):
    """A folder of images alone: some stand for test images, nothing is said about classes."""
    write_photos(tmp_path / "data", ("all",), count=40)
    values = {**TINY, "steps": 2, "knn_every": 0, "jit_compile": "false", "dataset": "folder"}
    call("pretrain", "debug/pretrain.cfg", workdir=tmp_path / "run", data_dir=tmp_path / "data", **values)
    call("report", workdir=tmp_path / "run", output=tmp_path / "page.html", map_images=9)
    page = Page(tmp_path / "page.html")
    assert "no labels" in page.text("classes")
    assert "neither val/ nor test/" in page.text("neighbours") and "of 30 training images" in page.text("neighbours")
    assert "of 9 left-out training images" in page.text("map") and len(page.data()["map"]["x"]) == 9
    assert "left-out training image" in page.text("neighbours") and page.data()["map"]["kind"][:8] == "left-out"
    shown = re.sub("No test images|some training images stand for test images", "", page.source.partition("<script")[0])
    assert "test image" not in shown
    assert "--knn_every=0" in page.text("curves")
    assert not (tmp_path / "run" / "report.html").exists()


def test_several_runs(run, tmp_path):
    """Runs of one name are told apart; what a run lacks is said."""
    other = tmp_path / "other" / run.name
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5, "loss": 2.5}\n')
    (other / "flags.cfg").write_text("--method=moco\n--nesterov\n--queue_size=8\n")
    call("report", workdir=f"{run},{other}", output=tmp_path / "page.html", images=False)
    page = Page(tmp_path / "page.html")
    loss = page.data()["charts"]["loss"]["series"]
    assert [series["label"] for series in loss] == [str(run), str(other)]
    assert loss[1]["value"] == [2.5]
    assert "--queue_size 64 8 " in page.text("recipe") and "--nesterov false true" in page.text("recipe")
    assert all("--noimages" in page.text(name) for name in ("views", "neighbours", "map", "classes", "spread"))


def test_several_runs_name_their_images(tmp_path):
    """A row a run, with its data set; folders by their names; a warning where they are not the same."""
    for name, flags in (("a", "--dataset=folder\n--data_dir=/x/photos\n"), ("b", "--dataset=cifar10\n--method=moco\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "flags.cfg").write_text(flags)
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5, "loss": 2.5}\n')
    for runs, words in (
        (
            ("a", "b"),
            "Not all runs learn from the same images. run method encoder data epochs loss a - - folder (photos)",
        ),
        (("b",), "method moco data cifar10 steps 1"),
    ):
        places = ",".join(str(tmp_path / name) for name in runs)
        call("report", workdir=places, output=tmp_path / "page.html", images=False)
        assert words in Page(tmp_path / "page.html").text("results")


def test_set_flags_are_marked(run, tmp_path):
    """Those that are not the defaults, of which there are as many as were given here."""
    text = Page(run / "report.html").text("recipe")
    marked = re.findall(r"set: --(\w+)", text)
    given = define.texts([*(ROOT / "flags" / "debug" / "pretrain.cfg").read_text().splitlines(), *arguments(**TINY)])
    asked = {name for name in given if name.isidentifier()} | {
        "knn_every",
        "jit_compile",
        "dataset",
        "data_dir",
        "workdir",
    }
    assert set(marked) <= asked | {"method"} and {"queue_size", "dataset", "workdir", "method", "steps"} <= set(marked)
    assert f"{len(marked)} of " in text and not {"momentum", "nesterov", "warmup_epochs"} & set(marked)
    (tmp_path / "flags.cfg").write_text("--method=nothing_like_it\n")
    found = sections.recipe(results.read_all([str(tmp_path)]))
    assert found["runs"][0][1] is None


def test_little_is_not_drawn_as_much(tmp_path):
    """A loss that falls by a hundredth falls by less than a tenth of the plot; an accuracy and the steps begin at 0."""
    lines = [{"step": 30.0, "loss": 5.30, "contrast_top1": 0.2}, {"step": 60.0, "loss": 5.25, "contrast_top1": 0.1}]
    record = [RunRecord("r", RunFolder(tmp_path), Metrics(lines, []), {}, [])]
    loss, contrast = (charts.draw(chart, record) for chart in charts.CHARTS[:2])
    (series,) = loss["data"]["series"]
    plot = 0.76 * 250
    assert series["y"][1] - series["y"][0] == pytest.approx(plot * 0.05 / (1.1 * 0.2 * 5.3), abs=0.2)
    assert "does not begin at 0" in loss["says"] and "does not begin" not in contrast["says"]
    left, width = 0.16 * 400, 0.81 * 400
    np.testing.assert_allclose(series["x"], [left + width * part / 1.02 for part in (0.5, 1)], atol=0.2)
    bottom = 250 * 0.81
    heights = [bottom - y for y in contrast["data"]["series"][0]["y"]]
    assert heights == pytest.approx([plot / 1.06, plot / 2.12], abs=0.2)


def test_images_that_are_gone(run, tmp_path):
    """The page is written all the same and says so; --data_dir finds images that moved."""
    copy, gone = shutil.copytree(run, tmp_path / "run"), tmp_path / "gone"
    shutil.rmtree(copy / "knn")
    text = (copy / "flags.cfg").read_text()
    (copy / "flags.cfg").write_text(re.sub("--data_dir=.*", f"--data_dir={gone}", text))
    with pytest.raises(
        UserError, match=f"report.html has no pictures: --data_dir={gone} is not a folder; .*--noimages"
    ):
        call("report", workdir=copy)
    page = Page(copy / "report.html")
    for name in ("views", "neighbours", "map", "classes", "spread"):
        assert f"--data_dir={gone} is not a folder" in page.text(name)
    assert page.data()["map"] is None and "loss" in page.data()["charts"]


def test_least_run(tmp_path, capsys):
    """One line of metrics, a broken one, one that is not finite; in a process of its own, as a user starts it."""
    lines = ['{"step": 4, "loss": 1.25, "learning_rate": 0.1}', '{"step": 5, "lo', '{"step": 6, "loss": NaN}', "[3]"]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    done = start("report", workdir=tmp_path)
    out, error = done.communicate()
    assert done.returncode == 1 and "has no pictures" in error, error  # its images are not known
    assert "no JSON object with a step in line 2, 4, 5; left out" in out and "loss is not finite at step 6" in out
    page = Page(tmp_path / "report.html")
    assert "in line 2, 4, 5" in page.texts[""]
    assert page.data()["charts"]["loss"]["series"][0] == {**page.data()["charts"]["loss"]["series"][0], "value": [1.25]}
    assert "Nothing was evaluated yet" in page.text("results") and "names no --dataset" in page.text("views")
    assert "has no flags.cfg" in page.text("recipe")


@pytest.mark.parametrize(
    "make, flags, words",
    [
        (lambda folder: None, {"workdir": ""}, ["--workdir is missing"]),
        (lambda folder: None, {"workdir": "{}/nowhere"}, ["is no folder"]),
        (lambda folder: None, {"workdir": "{}"}, ["holds no run", "metrics.jsonl"]),
        (lambda folder: (folder / "flags.cfg").touch(), {"workdir": "{}", "output": "{}"}, ["is a folder"]),
        (lambda folder: (folder / "flags.cfg").touch(), {"workdir": "{}", "output": "{}/a/b.html"}, ["no writable"]),
        (lambda folder: (folder / "metrics.jsonl").mkdir(), {"workdir": "{}"}, ["metrics.jsonl cannot be read"]),
    ],
)
def test_refusals(make, flags, words, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError) as caught:
        call("report", **{name: value.format(tmp_path) for name, value in flags.items()})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not list(tmp_path.glob("**/*.html"))


@pytest.mark.parametrize(
    "file, flag",
    [
        ("flags.cfg", "method=../../evil"),
        ("flags.cfg", "views=<b>"),
        ("flags.cfg", "crop_scale=0.5"),
        ("flags.cfg", "image_size=-3"),
        ("flags.cfg", "seed=many"),
        ("flags.cfg", "precision=int8"),
        ("flags.cfg", "k=0"),
        ("flags.cfg", "knn_temperature=nan"),
        ("flags.cfg", "weighting=heavy"),
    ],
)
def test_edited_flags(file, flag, tmp_path):
    """What the programs refuse is refused here, too, before anything is computed with it."""
    (tmp_path / "flags.cfg").write_text("--dataset=folder\n")
    with open(tmp_path / file, "a") as flags:
        flags.write(f"--{flag}\n")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / file} has --{flag}")):
        examine.recorded(RunFolder(tmp_path), None)


def test_legend_of_several_runs(tmp_path):
    """A line a run and a line a metric; a look of its own for each of a dozen runs."""
    metrics = Metrics([{"step": 1.0, "contrast_top1": 0.1, "contrast_top5": 0.2, "loss": 1.0}], [])
    several = [RunRecord(f"run{n}", RunFolder(tmp_path), metrics, {}, []) for n in range(12)]
    legend = charts.draw(charts.CHARTS[1], several)["legend"]
    assert [entry["label"] for entry in legend] == [*(run.name for run in several), "top-1", "top-5"]
    assert len({(entry["colour"], entry["sign"]) for entry in legend}) == 14
    assert [entry["label"] for entry in charts.draw(charts.CHARTS[1], several[:1])["legend"]] == ["top-1", "top-5"]
    assert len(charts.draw(charts.CHARTS[0], several)["legend"]) == 12


def test_curves_are_drawn_where_they_are_read(tmp_path):
    """The script's places are the corners of the path that matplotlib drew; long curves become means."""
    lines = [{"step": float(s), "loss": 3 + np.sin(s / 40)} for s in range(1, 901)]
    drawn = charts.draw(charts.CHARTS[0], [RunRecord("r", RunFolder(tmp_path), Metrics(lines, []), {}, [])])
    (series,) = drawn["data"]["series"]
    assert len(series["value"]) == 300
    assert series["value"][0] == pytest.approx(np.mean([line["loss"] for line in lines[:3]]))
    path = next(d for d in re.findall(r' d="([^"]*)"', drawn["svg"]) if d.count("L") > 100)
    corners = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), float)
    ends = np.array([series["x"], series["y"]]).T[[0, -1]]
    np.testing.assert_allclose(corners[[0, -1]], ends, atol=0.1)


def test_map_of_clusters():
    """Neighbours in feature space are neighbours on the map; a marker of its own for each of a hundred classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 20)
    features = np.eye(4)[labels] + 0.02 * rng.standard_normal((80, 4))
    points = embedding_map.project(features.astype(np.float32), seed=0)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(80)
    assert (labels[distances.argmin(1)] == labels).all()
    text, (x, y), looks = embedding_map.draw(points, labels)
    assert text.count("<use ") == 80 and [look["label"] for look in looks] == [0, 1, 2, 3]
    assert min(x + y) > 0 and max(x + y) < embedding_map.SIDE
    assert len({(look["colour"], look["marker"]) for look in map(svg.look, range(100))}) == 100
    with pytest.raises(UserError, match="8 or more"):
        embedding_map.project(features[:7], 0)
    assert np.isfinite(embedding_map.project(np.ones((10, 4), np.float32), 0)).all()  # collapsed


def test_pictures():
    noise = np.random.default_rng(0).integers(0, 256, (100, 40, 30, 3), np.uint8)
    sheet = pictures.sprite(noise, 100, 24)
    assert sheet.size == (240, 240)
    crop = Image.fromarray(noise[11]).crop((0, 5, 30, 35)).resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(sheet)[24:48, 24:48], crop)  # the second of the second row
    assert len(pictures.sprite_uri(sheet, 20_000)) <= 20_000 < len(pictures.sprite_uri(sheet, 10**9))
    assert pictures.uri(noise[0], 16).startswith("data:image/png;base64,")


def test_input_wait(monkeypatch):
    """Two seconds for each batch to come, three to use it: two fifths."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def batches():
        for number in range(4):
            now[0] += 2
            yield number

    wait = InputWait()
    for _ in wait.timed(batches()):
        now[0] += 3
    assert wait.share(batches_per_second=1 / 5) == pytest.approx(2 / 5)
    assert wait.share(1 / 5) == 0


@pytest.mark.parametrize("package", extras.REPORT)
def test_missing_packages_are_named(package, tmp_path, monkeypatch):
    (tmp_path / "flags.cfg").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"moco_tf.report needs .* {package} cannot be .*'moco_tf\[report\]'$"):
        call("report", workdir=tmp_path)


def test_other_programs_need_no_extras():
    """What reads the report's packages only is not imported by training, evaluation and the table."""
    missing = "; ".join(f"sys.modules[{name!r}] = None" for name in extras.REPORT)
    wanted = "moco_tf.run.pretraining, moco_tf.run.probing, moco_tf.run.knn_evaluation, moco_tf.api.pretrained"
    code = f"import sys; {missing}; import {wanted}, moco_tf.run.examine, moco_tf.report, moco_tf.table, moco_tf.export"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
