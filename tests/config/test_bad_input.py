"""Bad input gives one line that says what came, what was expected and how to mend it, and leaves nothing behind."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from absl import flags
from support import ranks
from support.programs import TINY, arguments, call, metrics, parse, start, write_photos
from support.refusals import pretrain, refusal

from moco_tf.training import checkpoint


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run folder with two checkpoints."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    values = {**TINY, "knn_every": 0, "checkpoint_steps": 1, "steps": 2, "jit_compile": "false"}
    call("pretrain", "debug/pretrain.cfg", dataset="folder", data_dir=photos, workdir=workdir, **values)
    return workdir


# Flags


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--batchsize=8"], ["Unknown command line flag 'batchsize'", "Did you mean", "batch_size"]),
        (["--no_such_thing"], ["Unknown command line flag 'no_such_thing'"]),
        (["--batch_size=many"], ["--batch_size=many: expected a positive integer"]),
        (["--steps=1e3"], ["--steps=1e3: expected a non-negative integer"]),
        (["--learning_rate=fast"], ["--learning_rate=fast: expected a"]),
        (["--batch_size=0"], ["--batch_size=0", "positive"]),
        (["--key_momentum=1.5"], ["--key_momentum=1.5", "[0.0, 1.0]"]),
        (["--arch=resnet51"], ["--arch=resnet51", "resnet50"]),
        (["--crop_scale=small,large"], ["--crop_scale=small,large", "numbers"]),
        (["--crop_scale=0.2"], ["--crop_scale=0.2", "two"]),
        (["--crop_scale=0.8,0.2"], ["--crop_scale=0.8,0.2", "smallest"]),
        (["--crop_scale=0,1"], ["--crop_scale=0,1", "above 0"]),
        (["--crop_scale=0.2,nan"], ["--crop_scale=0.2,nan", "above 0"]),
        (["--milestones=ten"], ["--milestones=ten", "numbers"]),
        (["--symmetric=perhaps"], ["--symmetric=perhaps"]),
        (["--learning_rate=nan"], ["--learning_rate=nan", "number"]),
        (["--flagfile=nowhere.cfg"], ["nowhere.cfg"]),
        (["--flagfile=dmo.cfg"], ["dmo.cfg", "did you mean demo?"]),
        (["--views=moco_v9"], ["--views=moco_v9", "did you mean moco_v3?", "moco_v1_s3"]),
        (["--views=moco.v9"], ["--views=moco.v9", "no module"]),
        (["--method=mocov2"], ["--method=mocov2", "did you mean moco?"]),
        (["--optimizer=sdg"], ["--optimizer=sdg", "did you mean sgd?"]),
    ],
)
def test_flags(argv, words):
    with pytest.raises(flags.Error) as caught:
        parse("pretrain", *argv)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "program, word, message",
    [
        (
            "knn",
            "--baseline=untraind",
            r"--baseline=\S*/untraind came, expected none, untrained, raw_pixels, or a path",
        ),
        ("fewshot", "--baseline=untrained,gone.pth", r"--baseline=\S*/gone.pth came, expected none, untrained"),
        ("fewshot", "--baseline=none,untrained", "--baseline=none,untrained came, expected none alone"),
        ("fewshot", "--shots=0", "--shots=0 came, expected numbers from 1 on"),
        ("fewshot", "--draws=1", "--draws=1"),
    ],
)
def test_flags_of_evaluations(program, word, message):
    with pytest.raises(flags.Error, match=message):
        parse(program, word)


@pytest.mark.parametrize("program, words", [("pretrain", ["--workdir"]), ("knn", ["--load"]), ("table", ["--workdir"])])
def test_missing_flags(program, words):
    refusal(program, *words)


# Data


@pytest.mark.parametrize(
    "name, meant",
    [
        ("cifra10", "did you mean cifar10"),
        ("cifar-10", "did you mean cifar10"),
        ("CIFAR100", "did you mean cifar100"),
        ("imagenet", "imagenet2012"),
        ("photos", "photos is a folder: give --dataset=folder --data_dir=photos"),
        ("./photos", "photos is a folder: give --dataset=folder --data_dir=./photos"),
    ],
)
def test_unknown_data_set(name, meant, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    pretrain(f"--dataset={name} came", meant, dataset=name, data_dir=tmp_path, workdir=tmp_path / "r")


@pytest.mark.parametrize(
    "files, words",
    [
        (None, ["is not a folder", "expected train/<class>/"]),
        ([], ["has no images", "expected train/<class>/"]),
        (["val/cat/0.png"], ["has val/ but no train/"]),
        (["train/cat/0.png", "train/dog/0.txt"], ["train/dog has no images", "add them or remove the folder"]),
        (["train/cat/0.png", "train/0.png"], ["images beside the class folders", "move them"]),
    ],
)
def test_folders(files, words, tmp_path):
    for file in files or []:
        (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / file).write_bytes(b"")
    if files == []:
        (tmp_path / "data").mkdir()
    pretrain(str(tmp_path / "data"), *words, data_dir=tmp_path / "data", workdir=tmp_path / "run")


@pytest.fixture
def flat(photos, tmp_path):
    """A data set without labels: train/ and val/ with images only."""
    for split in ("train", "val"):
        shutil.copytree(photos / split / "cat", tmp_path / "flat" / split)
    return tmp_path / "flat"


@pytest.mark.parametrize("program", ["knn", "lincls"])
def test_evaluation_without_labels(program, flat, run, tmp_path):
    values = {"dataset": "folder", "data_dir": flat, "workdir": tmp_path / "out", "load": run}
    refusal(program, "0 classes", "expected labels", "train/<class>/", **values)


def test_knn_monitor_without_labels(flat, tmp_path):
    words = "0 classes", "expected labels of two or more for the kNN monitor; give --knn_every=0, or a set with labels"
    pretrain(*words, data_dir=flat, workdir=tmp_path / "run", knn_every=1)
    words = "0 classes", "for the probe that learns along; leave probe out of --monitor, or give a set with labels"
    pretrain(*words, data_dir=flat, workdir=tmp_path / "run", knn_every=1, monitor="probe")
    words = "0 classes", "for knn and probe; leave them out of --monitor, or give a set with labels"
    pretrain(*words, data_dir=flat, workdir=tmp_path / "run", knn_every=1, monitor="knn,rankme")


def test_monitor_of_nothing_and_of_what_is_not_known(flat, tmp_path):
    values = {"data_dir": flat, "workdir": tmp_path / "run"}
    pretrain("--monitor=rankme came with --knn_every=0", "give --knn_every=1, or more", monitor="rankme", **values)
    pretrain("--monitor=rank came, expected one or more of knn, probe, rankme", knn_every=1, monitor="rank", **values)


@pytest.mark.parametrize("method", ["supcon_in", "supervised"])
def test_method_of_labels_without_labels(method, flat, tmp_path):
    words = f"expected labels of two or more for --method={method}, which learns from labels; give --method=moco, or"
    pretrain("0 classes", words, data_dir=flat, workdir=tmp_path / "run", method=method)


@pytest.mark.parametrize("program", ["knn", "lincls"])
def test_evaluation_on_other_classes(program, photos, run, tmp_path):
    shutil.copytree(photos / "train", tmp_path / "data" / "train")
    write_photos(tmp_path / "data" / "val", ("cat", "horse"), 2)
    values = {"dataset": "folder", "data_dir": tmp_path / "data", "workdir": tmp_path / "out", "load": run}
    refusal(program, "the class 'horse'", "expected only classes of", "rename or remove", **values)


@pytest.mark.parametrize("bad, words", [(3, ["3 unreadable images", "--max_bad_images=2"]), (20, ["none of its 20"])])
def test_unreadable_images(bad, words, photos, tmp_path):
    shutil.copytree(photos / "train" / "cat", tmp_path / "data")
    for path in sorted((tmp_path / "data").iterdir())[20:]:
        path.unlink()
    for path in sorted((tmp_path / "data").iterdir())[:bad]:
        path.write_bytes(b"no image")
    limit = 2 if bad < 20 else 100
    values = {"batch_size": 10, "max_bad_images": limit, "left": True}
    values["normalise"] = "imagenet"  # measuring would find out first when none can be read
    pretrain(*words, "unreadable.txt", data_dir=tmp_path / "data", workdir=tmp_path / "run", **values)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert len((tmp_path / "run" / "unreadable.txt").read_text().splitlines()) == bad


# Sizes, views, folders to write


@pytest.mark.parametrize(
    "values, words",
    [
        ({"batch_size": 65}, ["--batch_size=65", "--queue_size=64", "lower the one or raise the other"]),
        ({"batch_size": 64, "symmetric": True}, ["128 keys", "--queue_size=64"]),
        ({"batch_size": 91, "queue_size": 128}, ["--batch_size=91", "at most 90", "give a smaller one"]),
        ({"views": "moco_v9"}, ["--views=moco_v9", "moco_v1, "]),
        ({"bn_splits": 3}, ["--bn_splits=3", "--batch_size=16"]),
        ({"views": "none"}, ["'none' has no crop", "differ in size", "crop_flip"]),
        ({"epochs": 2, "warmup_epochs": 2}, ["learning rate", "warmup"]),
        ({"schedule_per": "step", "first_epoch": 1}, ["learning rate", "first_epoch"]),
        ({"schedule": "milestones", "milestones": ""}, ["learning rate", "milestones"]),
    ],
)
def test_sizes_and_views(values, words, photos, tmp_path):
    pretrain(*words, data_dir=photos, workdir=tmp_path / "run", **values)


@pytest.mark.parametrize("below", ["", "run"])
def test_workdir_that_is_a_file(below, photos, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    words = "--workdir=", "cannot be written", "give another folder"
    pretrain(*words, data_dir=photos, workdir=tmp_path / "file" / below, left=True)
    values = {"dataset": "folder", "data_dir": photos, "workdir": tmp_path / "file" / below, "load": run}
    refusal("knn", *words, left=True, k=5, **values)
    assert (tmp_path / "file").read_text() == "mine"


def test_more_neighbours_than_images(photos, run, tmp_path):
    values = {"dataset": "folder", "data_dir": photos, "workdir": tmp_path / "out", "load": run}
    refusal("knn", "--k=91", "at most 90", "give a smaller one", k=91, **values)


def test_probe_batch_larger_than_the_data(photos, run, tmp_path):
    values = {"dataset": "folder", "data_dir": photos, "workdir": tmp_path / "out", "load": run, "batch_size": 91}
    for cached in (True, False):
        refusal("lincls", "--batch_size=91", "at most 90", cache_features=cached, **values)


def test_unknown_view_of_the_probe(photos, run, tmp_path):
    values = {"dataset": "folder", "data_dir": photos, "workdir": tmp_path / "out", "load": run, "batch_size": 16}
    refusal("lincls", "--train_view=crop", "crop_flip", train_view="crop", **values)


# What is loaded


def damage(path, cut=100):
    """Cuts off the end of a checkpoint's data."""
    file = next(path.glob("variables.data-*"))
    file.write_bytes(file.read_bytes()[:-cut])


def broken(kind, run, folder):
    """(what --load gets, words of the message)"""
    place = folder / kind
    if kind == "nothing":
        return place, ["does not exist", "expected a run folder"]
    if kind == "empty folder":
        place.mkdir()
        return place, ["holds no encoder", "expected a run folder"]
    if kind == "text":
        place.write_text("weights, weights\n")
        return place, [str(place), "not a PyTorch file", "give a file"]
    if kind == "arrays.npz":
        np.savez(place, x=np.zeros(3))
        return place, [str(place), "expected"]
    if kind == "truncated checkpoint":
        shutil.copytree(run / "checkpoints/step-00000002", place)
        damage(place)
        return place, ["is broken", "variables.data-00000-of-00001", "expected"]
    if kind == "checkpoint without description":
        shutil.copytree(run / "checkpoints/step-00000002", place)
        (place / checkpoint.DESCRIPTION).unlink()
        return place, ["holds no encoder", "expected"]
    shutil.copytree(run / "checkpoints/step-00000002", place / "checkpoints/step-00000002")
    damage(place / "checkpoints/step-00000002")
    return place, ["holds no encoder", "is broken", "expected"]


@pytest.mark.parametrize(
    "kind",
    [
        *("nothing", "empty folder", "text", "arrays.npz", "truncated checkpoint", "checkpoint without description"),
        "run folder with one broken checkpoint",
    ],
)
def test_nothing_to_load(kind, photos, run, tmp_path):
    place, words = broken(kind, run, tmp_path)
    values = {"dataset": "folder", "data_dir": photos, "workdir": tmp_path / "out", "load": place}
    refusal("knn", *words, **values)


# Resuming


@pytest.mark.parametrize(
    "values, words",
    [
        ({"arch": "resnet18"}, ["--arch=resnet10", "--arch=resnet18"]),
        ({"width": 16}, ["--width=8", "--width=16"]),
        ({"head": "linear"}, ["--head=mlp", "--head=linear"]),
        ({"optimizer": "adam"}, ["--optimizer=sgd", "--optimizer=adam"]),
        ({"queue_size": 32}, ["--queue_size=64", "--queue_size=32"]),
    ],
)
def test_resuming_another_model(values, words, photos, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")

    def files():
        return {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.name != ".lock"}

    before = files()
    pretrain("which its checkpoint does not fit", *words, data_dir=photos, workdir=copy, left=True, **values)
    assert files() == before


def test_broken_newest_checkpoint_is_reported_and_the_older_used(photos, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    damage(copy / "checkpoints/step-00000002")
    values = {**TINY, "knn_every": 0, "steps": 3, "keep": 1, "jit_compile": "false"}
    call("pretrain", "debug/pretrain.cfg", dataset="folder", data_dir=photos, workdir=copy, **values)
    out = capsys.readouterr().out
    assert "skipped: checkpoint" in out and "step-00000002 is broken" in out
    assert f"resuming from {copy / 'checkpoints/step-00000001'}" in out
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["step-00000003"]
    assert metrics(copy)[-1]["step"] == 3


# Whole programs


def finish(process):
    out, error = process.communicate(timeout=300)
    return process.returncode, out, [line for line in error.splitlines() if line.strip()]


def test_programs_print_one_line_and_exit(photos, tmp_path):
    """Exit status 2 for flags and 1 for the rest; one line of ours, no traceback, nothing written."""
    (tmp_path / "bad").mkdir()
    for number in range(20):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"no image")
    workdir = tmp_path / "run"
    small = {**TINY, "batch_size": 10, "dataset": "folder", "jit_compile": "false", "knn_every": 0}
    cases = [
        (2, "batch_size", ["pretrain", {"batchsize": 8, "workdir": workdir}]),
        (2, "'more' is no flag", ["pretrain", {"argv": ["more"], "workdir": workdir}]),
        (1, "does not exist", ["lincls", {"load": tmp_path / "no", "workdir": workdir}]),
        (1, "none of its 20", ["pretrain", "debug/pretrain.cfg", {**small, "data_dir": tmp_path / "bad"}]),
    ]
    cases[-1][-1][-1]["workdir"] = tmp_path / "begun"

    def outcome(case):
        program, *files, values = case[-1]
        return finish(start(program, *files, **values))

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, cases))
    for (status, words, (program, *_)), (code, _, lines) in zip(cases, outcomes):
        assert code == status, lines
        assert lines[-1].startswith(f"moco_tf.{program}: ") and words in lines[-1], lines
        assert len(lines) == 1  # TensorFlow says nothing either
    assert not workdir.exists()


@pytest.mark.horovod
def test_batch_that_ranks_cannot_share(photos, tmp_path):
    values = {**TINY, "dataset": "folder", "data_dir": photos, "batch_size": 33, "workdir": tmp_path / "run"}
    command = ["-m", "moco_tf.pretrain", *arguments("debug/pretrain.cfg", **values)]
    done = ranks.horovodrun(2, *command, check=False)
    assert done.returncode == 1
    said = [line for line in (done.stdout + done.stderr).splitlines() if "moco_tf.pretrain: " in line]
    assert len(said) == 1 and "--batch_size=33 came, expected a positive multiple of the 2 ranks" in said[0]
    assert ">:Traceback" not in done.stdout + done.stderr  # of a rank: horovodrun itself ends with one
    assert not (tmp_path / "run").exists()
