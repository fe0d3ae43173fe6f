"""What results are of: the run's own images unless flags say otherwise, and none is written over by another."""

import dataclasses
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from support import evaluation_runs
from support.evaluation_runs import SMALL
from support.programs import call, losses

import moco_tf
from moco_tf.api import recipes
from moco_tf.config import define
from moco_tf.config.options import DataOptions
from moco_tf.data import records
from moco_tf.errors import UserError
from moco_tf.evaluation.subject import weights_of
from moco_tf.formats import card, origin
from moco_tf.formats.load import load
from moco_tf.reporting import accuracies
from moco_tf.run import program, results
from moco_tf.run.folder import RunFolder
from moco_tf.training.files import write_new

OWN = {name: value for name, value in SMALL.items() if name != "dataset"}


@pytest.fixture
def run(photos, tmp_path):
    """A run folder with two checkpoints and the flags of a training on photos, where nothing is resized."""
    folder = evaluation_runs.make_run(tmp_path / "run", seeds=(0, 1), test_resize=16)
    (folder / "flags.cfg").write_text(f"--dataset=folder\n--data_dir={photos}\n--image_size=16\n--queue_size=64\n")
    return folder


def test_what_a_file_of_another_program_does_not_say_is_assumed(run, tmp_path):
    file, given = tmp_path / "x.pth", DataOptions(dataset="folder", holdout=None, test_resize=None)
    file.write_bytes(b"")
    start = "images: --dataset=folder"
    assert results.said(given, given, str(file)) == f"{start} as given; ImageNet's normalisation is assumed"
    assert results.said(given, given, None) == f"{start} as given"
    assert results.said(given, given, str(run)) == f"images: --normalise=auto from {run}; --dataset=folder as given"
    cifar = dataclasses.replace(given, normalise="cifar10")
    assert results.said(cifar, cifar, str(file)) == f"{start} --normalise=cifar10 as given"


def results_of(run):
    """{folder: result.json} of a run."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob("*/result.json"))}


def test_evaluations_are_of_the_runs_own_images(run, photos, tmp_path, capsys):
    """Without flags, with the same ones given, and of a checkpoint it is one result; others get their own folders."""
    call("knn", load=run, k=3, **OWN)
    flags = f"--dataset=folder --data_dir={photos} --image_size=16 --test_resize=16 --normalise=auto"
    assert capsys.readouterr().out.splitlines()[0] == f"images: {flags} from {run}"
    first = results_of(run)["knn"]
    named = {"dataset": "folder", "data_dir": str(photos), "split": "test", "test_images": 24, "train_images": 90}
    named |= {"step": 2, "checkpoint": str(run / "checkpoints/step-00000002"), "image_size": 16, "test_resize": 16}
    assert {name: first[name] for name in named} == named
    assert first["settings"]["k"] == "3" and not {"image_size", "test_resize", "normalise"} & first["settings"].keys()
    call("knn", load=run, k=3, data_dir=photos, image_size=16, test_resize=16, **SMALL)
    call("knn", load=run / "checkpoints/step-00000002", k=3, **OWN)
    assert results_of(run) == {"knn": first}
    assert f"--dataset=folder --data_dir={photos} --image_size=16 --test_resize=16 as given" in capsys.readouterr().out
    call("knn", load=run, k=5, **OWN)
    call("knn", load=run / "checkpoints/step-00000001", k=3, **OWN)
    call("knn", load=run, k=3, image_size=20, holdout=30, **OWN)
    found = results_of(run)
    assert found.pop("knn") == first and list(found) == ["knn-2", "knn-3", "knn-4"]
    assert [found[name]["k"] for name in found] == [5, 3, 3] and [found[name]["step"] for name in found] == [2, 1, 2]
    last = found["knn-4"]
    assert last["split"] == "30 held-out training images" and (last["test_images"], last["train_images"]) == (30, 60)
    assert (last["image_size"], last["test_resize"], last["settings"]["image_size"]) == (20, 23, "20")  # 20 * 256 / 224
    again = moco_tf.load(run, image_size=20).knn(k=3, batch_size=16, jit_compile=False, log_every=1)
    assert again == results_of(run)["knn-5"] and again["settings"]["image_size"] == "20"
    assert (again["test_images"], again["train_images"], again["dataset"]) == (24, 90, "folder")
    with pytest.raises(UserError, match=r"knn holds a result with --k=3 \(here 7\); give another folder"):
        call("knn", load=run, k=7, workdir=run / "knn", **OWN)
    with pytest.raises(UserError, match="knn holds a result with other weights, of step-00000002; give another folder"):
        call("knn", load=run / "checkpoints/step-00000001", k=3, workdir=run / "knn", **OWN)
    for _ in range(2):  # the same network again, by its seed
        call("knn", load=run, k=3, baseline="untrained", **OWN)
    assert not (run / "knn_untrained-2").exists()
    probe = {"cache_features": True, "epochs": 1, "learning_rate": 0.5}
    call("lincls", load=run, **probe, **OWN)
    call("lincls", load=run, baseline="raw_pixels", **probe, **OWN)
    pixels = results_of(run)["lincls_raw_pixels"]
    alone, same = tmp_path / "alone", {"dataset": "folder", "data_dir": photos, "image_size": 16, "test_resize": 16}
    call("lincls", baseline="raw_pixels", workdir=alone, **same, **probe, **OWN)
    assert losses(alone) == losses(run / "lincls_raw_pixels") != {}  # --load changes nothing of them
    assert pixels["dataset"] == "folder" and (pixels["image_size"], pixels["train_images"]) == (16, 90)
    assert accuracies.markdown({"r": RunFolder(run)}).count("| raw pixels | - | - | ") == 1


def test_unreadable_images_do_not_count(run, photos, tmp_path, capfd):
    """Three of 90 and one of 24 are cut off: numbers, lists and the last lines say it, libjpeg nothing."""
    data, noise = shutil.copytree(photos, tmp_path / "data"), np.random.default_rng(0)
    for place in ("train/cat/03", "train/dog/07", "train/dog/09", "val/bird/02"):
        content = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (40, 40, 3), np.uint8)).save(content, "JPEG")
        (data / f"{place}.png").write_bytes(content.getvalue()[:500])
    probe, lists = {"epochs": 1, "learning_rate": 0.5, "steps": 2}, {}
    for name, values in {"knn": {"k": 3}, "lincls": {**probe, "train_view": "crop_flip"}}.items():
        with program._without(program._OF_JPEG):
            call(name, load=run, data_dir=data, **values, **OWN)
        found = results_of(run)[name]
        assert (found["test_images"], found["unreadable_test_images"]) == (23, 1)
        lists[name] = run / name / "unreadable.txt"
        words = f"could not be read and are left out; see {lists[name]}"
        lines = [f"3 of 90 images of folder (train) {words}", f"1 of 24 images of folder (test) {words}"]
        assert name != "knn" or records.left_out() == lines
        names = {line.split("\t")[0] for line in lists[name].read_text().splitlines()}
        assert f"{data}/val/bird/02.png" in names and (name != "knn" or len(names) == 4)
        assert found["train_images"] == 90 - len(names) + 1
    assert lines[1] in records.left_out()
    with program._without(program._OF_JPEG):
        call("lincls", load=run, data_dir=data, **probe, train_view="crop_flip", **OWN)  # nothing is left to do
    assert results_of(run)["lincls"]["train_images"] == 90 - len(names) + 1
    error = capfd.readouterr().err.lower()
    assert "jpeg" not in error and "input file" not in error


def test_data_set_that_nothing_names(run):
    (run / "flags.cfg").unlink()
    with pytest.raises(UserError, match=r"--dataset is missing, and --load=\S*run does not say"):
        call("knn", load=run, k=3, **OWN)
    with pytest.raises(UserError, match="--load=.*/nowhere does not exist"):
        call("knn", load=run.parent / "nowhere", k=3, **OWN)
    with pytest.raises(UserError, match="--dataset is missing"):
        call("lincls", baseline="raw_pixels")
    (run.parent / "moco.pth").touch()
    with pytest.raises(UserError, match="--dataset is missing"):  # a folder of files
        call("knn", load=run.parent, k=3, all_checkpoints=True, **OWN)


def test_what_a_run_was_trained_on(run, photos, tmp_path):
    """Its flags.cfg says it, from anywhere; a checkpoint alone has the flags, too."""
    expected = DataOptions(dataset="folder", data_dir=str(photos))
    assert origin.trained_on(str(run)) == origin.trained_on(str(run / "checkpoints/step-00000001")) == expected
    alone = evaluation_runs.make_run(tmp_path / "other", flags={"dataset": "mnist", "data_dir": None, "holdout": 9})
    moved = shutil.copytree(alone / "checkpoints/step-00000001", tmp_path / "checkpoints" / "of" / "mine")
    for place in (alone, moved):
        assert origin.trained_on(str(place)) == DataOptions(dataset="mnist", holdout=9)
    given = DataOptions(dataset="", holdout=None)
    assert origin.completed(given, str(moved)) == DataOptions(dataset="mnist", holdout=9)
    other = DataOptions(dataset="cifar10", holdout=None)  # the place and the held-out images are another set's
    assert origin.completed(other, str(run)) == DataOptions(dataset="cifar10")
    assert origin.completed(DataOptions(dataset="folder", data_dir="/new", holdout=None), str(run)).data_dir == "/new"
    elsewhere = DataOptions(dataset="", data_dir="/new", holdout=None)  # no images of /new were held out
    assert origin.completed(elsewhere, str(alone)) == DataOptions(dataset="mnist", data_dir="/new", holdout=0)
    (run / "flags.cfg").write_text("--dataset=folder\n--holdout=-3\n")
    with pytest.raises(UserError, match=r"flags.cfg has --holdout=-3: .* mend it"):
        origin.trained_on(str(run))


def write(folder, **values):
    folder.mkdir(parents=True)
    base = {"evaluation": "kNN", "dataset": "mnist", "test_images": 10_000, "settings": {"k": "200"}, "subject": "x"}
    (folder / "result.json").write_text(json.dumps({**base, **values}))


def test_tables_show_what_belongs_together(tmp_path):
    """By hand: three results on MNIST with two settings and steps, one on CIFAR-10; baselines of both."""
    for step in (100, 200):
        (tmp_path / f"a/checkpoints/step-{step:08d}").mkdir(parents=True)
        (tmp_path / f"a/checkpoints/step-{step:08d}/checkpoint.json").touch()
    write(tmp_path / "a/knn", top1=0.5, step=200)
    write(tmp_path / "a/knn-2", top1=0.4, step=100)
    write(tmp_path / "a/knn-3", top1=0.6, step=200, settings={"k": "20"})
    write(
        tmp_path / "a/knn-4",
        top1=0.7,
        step=200,
        dataset="cifar10",
        split="500 held-out training images",
        test_images=500,
    )
    write(tmp_path / "a/knn_raw_pixels", top1=0.3, subject="raw pixels")
    write(tmp_path / "a/finetune_0.1", top1=0.8, step=200, evaluation="finetune_0.1", settings={})
    write(
        tmp_path / "b/lincls_untrained", top1=0.1, evaluation="lincls", dataset="cifar10", subject="untrained resnet10"
    )
    runs = {"a": RunFolder(tmp_path / "a")}
    mnist = """on mnist, 10,000 test images:

| features | kNN top-1, k 200 | kNN top-1, k 20 | linear top-1 | finetune_0.1 top-1 |
|---|---|---|---|---|
| pre-trained | 50.00 | 60.00 | - | 80.00 |
| pre-trained, step 100 | 40.00 | - | - | - |
| raw pixels | 30.00 | - | - | - |"""
    cifar10 = """on cifar10, 500 held-out training images:

| features | kNN top-1 | linear top-1 |
|---|---|---|
| pre-trained | 70.00 | - |"""
    assert accuracies.markdown(runs) == f"{mnist}\n\n{cifar10}"
    both = {table.images: table.rows for table in accuracies.tables(runs | {"b": RunFolder(tmp_path / "b")})}
    assert both["cifar10, 10,000 test images"] == [("b", ["-", "-"]), ("untrained encoder", ["-", "10.00"])]
    assert accuracies.markdown({"none": RunFolder(tmp_path)}).startswith("Nothing was evaluated yet")


def test_workdir_of_another_probe_is_refused(tmp_path):
    """A finished probe with checkpoints keeps its numbers; of more steps, or without result.json, it goes on."""
    folder, values = RunFolder(tmp_path), {"workdir": tmp_path, "learning_rate": 1.0, "image_size": 16}
    own = recipes.recipe(program="lincls", **values).options
    others = recipes.recipe(program="lincls", **values | {"learning_rate": 0.001, "image_size": 32}).options
    longer = recipes.recipe(program="lincls", **values, steps=8).options
    (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000001/checkpoint.json").touch()
    folder.flags.write_text(define.flagfile(own))
    assert results.folder_of("lincls", others, "w", results.settings(others)).path == tmp_path
    folder.result.write_text("{}")
    for o in (own, longer):
        assert results.folder_of("lincls", o, "w", results.settings(o)).path == tmp_path
    with pytest.raises(UserError, match=r"holds a result with .*--learning_rate=1.0 \(here 0.001\).*; give another"):
        results.folder_of("lincls", others, "w", results.settings(others))
    others = recipes.recipe(program="lincls", **values | {"image_size": 32}).options
    with pytest.raises(UserError, match=r"holds a result with --image_size=16 \(here 32\); give another"):
        results.folder_of("lincls", others, "w", results.settings(others))


def test_results_of_other_weights_stand_apart(run, tmp_path):
    """A run trained again, or changed in memory, to the same step; two files of one name."""
    own = weights_of(load(str(run)).encoder)
    base = {"step": 2, "checkpoint": "r/step-00000002", "subject": "r/step-00000002", "top5": 0.9}
    for number, (weights, top1) in enumerate(((own, 0.5), ("changed", 0.4), ("changed", 0.3))):
        settings = {"k": "200"} if number < 2 else {"k": "20"}
        write(run / f"knn-{number + 2}", **base, weights=weights, top1=top1, settings=settings)
        os.utime(run / f"knn-{number + 2}/result.json", (number, number))
    write(run / "lincls", **base, top1=0.6, evaluation="lincls")  # of an earlier version, which named no weights
    rows = accuracies.tables({"r": RunFolder(run)})[0].rows
    assert rows == [
        ("pre-trained", ["50.00", "-", "60.00"]),
        ("pre-trained, other weights (changed)", ["40.00", "30.00", "-"]),
    ]
    text = card.text(load(str(run)), "export", "")
    assert "50.00" in text and "60.00" in text and "40.00" not in text and "30.00" not in text
    for number, place in enumerate("ab"):
        path = f"{place}/checkpoint.pth"
        write(tmp_path / f"f/knn-{number}", checkpoint=path, subject=path, weights=place, top1=number / 4)
        os.utime(tmp_path / f"f/knn-{number}/result.json", (number, number))
    rows = accuracies.tables({"f": RunFolder(tmp_path / "f")})[0].rows
    assert rows == [("pre-trained", ["25.00", "-"]), ("pre-trained, a/checkpoint.pth (a)", ["0.00", "-"])]


def test_jobs_at_once_get_folders_of_their_own(run):
    """Before either has a result: other settings go to knn-2, the same ones do not; a failed job leaves nothing."""
    values = {"program": "knn", "load": run, "dataset": "folder"}
    jobs = [recipes.recipe(**values, k=k).options for k in (3, 5, 3)]
    found = [results.folder_of("kNN", o, "w", results.settings(o)).path.name for o in jobs]
    assert found == ["knn", "knn-2", "knn"]
    assert (run / "knn/flags.cfg").read_text() == define.flagfile(jobs[0])
    write_new(run / "knn/flags.cfg", "of another job")
    assert (run / "knn/flags.cfg").read_text() == define.flagfile(jobs[0])
    with pytest.raises(UserError, match="--k=1000 came, expected at most 90"):
        call("knn", load=run, k=1000, **OWN)
    folders = {path.name: len(list(path.iterdir())) for path in run.glob("knn*")}
    assert folders == {"knn": 1, "knn-2": 1}  # flags.cfg alone, no drafts
