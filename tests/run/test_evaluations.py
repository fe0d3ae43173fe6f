"""lincls and knn as programs: what they write, going on, fine-tuned encoders, many checkpoints and ranks, bad input."""

import csv
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from sklearn.linear_model import LogisticRegression
from support import evaluation_runs, ranks
from support.evaluation_runs import PROBE, SMALL
from support.programs import call, losses, metrics, parse

import moco_tf
from moco_tf.config import define, options
from moco_tf.config.options import OF_THE_RUN, DataOptions, EncoderToEvaluate
from moco_tf.errors import UserError
from moco_tf.evaluation import features, few_labels, robustness, subject
from moco_tf.formats.load import load
from moco_tf.reporting import few_shot
from moco_tf.run import defaults, loop, prepare, probing, results
from moco_tf.training import checkpoint, stop
from moco_tf.training.collectives import SingleProcess


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with the checkpoints of two encoders."""
    return evaluation_runs.make_run(tmp_path_factory.mktemp("runs") / "run", seeds=(0, 1))


@pytest.fixture(scope="module")
def evaluated(run, photos, tmp_path_factory):
    """The folders of all evaluations in one process."""
    out = tmp_path_factory.mktemp("evaluated")
    evaluation_runs.evaluate(run, photos, out)
    return out


def test_probe_finds_its_learning_rate(run, photos, tmp_path, capsys):
    """As bare as users have it: 90 images and a batch of 256; grid and L-BFGS stand beside each other."""
    given = [
        f"--load={run}",
        "--dataset=folder",
        f"--data_dir={photos}",
        f"--workdir={tmp_path}",
        "--precision=float32",
    ]
    o = define.parse(options.Lincls, defaults.words(options.Lincls, ["lincls", *given]))
    found = probing.evaluate(o)
    out, error = capsys.readouterr()
    assert "the batch is 81, not 256: 81 images are left to learn from" in out and found["batch_size"] == 81
    tops = {one["learning_rate"]: one["held_out_top1"] for one in found["learning_rates"]}
    assert list(tops) == [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0] and found["held_out_images"] == 9
    assert tops[found["learning_rate"]] == max(tops.values()) and found["top1"] > 0.6
    assert abs(found["logistic_regression"]["top1"] - found["top1"]) < 0.25 and found["steps"] == 20
    assert "features: " in error and "8 learning rates: " in error and "L-BFGS, --nologistic_regression" in error
    assert found["settings"]["learning_rates"] == "0.001,0.003,0.01,0.03,0.1,0.3,1.0,3.0"


def result_of(folder):
    """result.json, which must hold no NaN and no infinity."""

    def refuse(word):
        raise ValueError(word)

    return json.loads((folder / "result.json").read_text(), parse_constant=refuse)


def confusion_of(folder):
    """(class names, counts)"""
    header, *rows = csv.reader((folder / "confusion.csv").open(newline=""))
    assert [row[0] for row in rows] == header[1:]
    return header[1:], np.array([row[1:] for row in rows], int)


@pytest.mark.parametrize("name", ["knn", "frozen", "cached", "finetune"])
def test_accuracy_of_each_class_and_confusion(name, evaluated):
    result, (names, counts) = result_of(evaluated / name), confusion_of(evaluated / name)
    assert names == ["bird", "cat", "dog"] and counts.sum(axis=1).tolist() == [8, 8, 8]
    assert result["top1"] == pytest.approx(np.trace(counts) / 24)
    assert result["per_class"] == {n: pytest.approx(counts[i, i] / 8) for i, n in enumerate(names)}


def test_knn_lists_every_setting(evaluated):
    result = result_of(evaluated / "knn")
    assert [(one["k"], one["temperature"]) for one in result["all"]] == [(5, 0.1), (5, 0.5), (3, 0.1), (3, 0.5)]
    assert {name: result[name] for name in result["all"][0]} == result["all"][0]


def test_what_knn_measures_besides(evaluated, run, photos):
    """Of all 90 training images, and of the 24 test images by themselves and altered in twelve ways."""
    result, one = result_of(evaluated / "knn"), subject.load(EncoderToEvaluate(load=str(run)), OF_THE_RUN, "float32")
    train = prepare.source(DataOptions(dataset="folder", data_dir=str(photos)), "train", SingleProcess())
    x, _ = features.extract(one.embed, train, one.geometry(train), 16, SingleProcess())
    p = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    p = p[p > 1e-12 * p[0]] / p.sum()
    found = result["label_free"]
    assert found["rankme"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert found["alpha_req"] > 0 and 1 < found["lidar"] <= x.shape[1]
    assert 0 < found["alignment"] < 4 and -4 < found["uniformity"] < 0
    sizes = {"images": 90, "images_viewed": 90, "views_of_each": 10, "width": x.shape[1], "views": "moco_v2"}
    assert {name: found[name] for name in sizes} == sizes
    assert result["retrieval"]["queries"] == 24
    assert list(result["robustness"]) == list(robustness.alterations())
    assert all(round(24 * top1, 6).is_integer() for top1 in result["robustness"].values())


def test_few_labels(evaluated, run, photos, capsys):
    """By hand: scikit-learn on pixels of the images that were drawn; the encoder against itself differs in nothing."""
    result = result_of(evaluated / "fewshot")
    names = ["none", "raw_pixels", str(run)]
    assert [one["baseline"] for one in result["features"]] == names and result["shots"] == [1, 5]  # 99 are too many
    first, pixels, again = result["features"]
    assert again["weights"] == first["weights"] == result["weights"] and again["shots"] == first["shots"]
    assert all((one["difference"], one["low"], one["high"], one["p"]) == (0, 0, 0, 1) for one in again["better_by"])
    call("table", workdir=evaluated)
    printed = capsys.readouterr().out
    assert f"| pre-trained - {run.name} | (0.0, 0.0 to 0.0) | (0.0, 0.0 to 0.0) |" in printed
    assert result["notes"] == []  # 5 of 30
    assert few_shot.markdown({**result, "notes": ["Too narrow."]}) == few_shot.markdown(result) + " Too narrow."
    assert not first["better_by"] and result["test_images"] == 24 and "top1" not in result
    train, test = (
        prepare.source(DataOptions(dataset="folder", data_dir=str(photos)), split, SingleProcess())
        for split in ("train", "test")
    )
    one = subject.load(EncoderToEvaluate(str(run), "raw_pixels"), OF_THE_RUN, "float32")
    x, labels = features.extract(one.embed, train, one.geometry(train), 16, SingleProcess())
    queries, truth = features.extract(one.embed, test, one.geometry(test), 16, SingleProcess())
    drawn = few_labels.draws(train, 5, 3, 0)
    seen = x[np.unique(np.stack(drawn))].astype(np.float64)
    for number, draw in enumerate(drawn):
        rows = draw[:, :1].ravel()
        model = LogisticRegression(C=1 / (3 * 0.1), max_iter=5000, tol=1e-8)
        model.fit((x[rows] - seen.mean(axis=0)) / seen.std(axis=0), labels[rows])
        expected = np.mean(model.predict((queries - seen.mean(axis=0)) / seen.std(axis=0)) == truth)
        assert pixels["shots"][0]["draws"][number] == pytest.approx(expected)
        assert pixels["weight_decays"][number][0] == 0.1
    assert pixels["shots"][0]["top1"] == pytest.approx(np.mean(pixels["shots"][0]["draws"]))


def test_another_encoder_as_baseline(run, photos, tmp_path, capsys):
    """On the run's images at the run's size; its result has a folder and a row of its own, and compare knows it."""
    here = shutil.copytree(run, tmp_path / "run")
    moco_tf.load(run / "checkpoints/step-00000001").export(tmp_path / "public.pth", format="pth")
    data = {**SMALL, "data_dir": photos, "k": 3, "normalise": "none"}
    call("knn", load=here, **data)
    call("knn", load=here, baseline=tmp_path / "public.pth", **data)
    call("knn", load=here / "checkpoints/step-00000001", workdir=tmp_path / "same", **data)
    found, same = result_of(here / "knn_public"), result_of(tmp_path / "same")
    assert (found["top1"], found["per_class"], found["image_size"]) == (same["top1"], same["per_class"], 16)
    assert found["baseline"] == found["subject"] == str(tmp_path / "public.pth")
    with np.load(here / "knn/predictions.npz") as file:
        right = file["predictions"] == file["labels"]
    assert len(right) == 24 and right.mean() == result_of(here / "knn")["top1"]
    capsys.readouterr()
    call("table", workdir=here)
    assert f"| public.pth | {100 * found['top1']:.2f} |" in capsys.readouterr().out
    call("compare", workdir=here)
    assert re.search(r"\| (run - public.pth|public.pth - run) \|", capsys.readouterr().out)


def test_probe_reports_last_and_best(evaluated):
    result = result_of(evaluated / "frozen")
    assert [test["step"] for test in result["tests"]] == [5, 6] and result["steps"] == 6
    assert result["top1"] == result["tests"][-1]["top1"]
    assert result["best_top1"] == max(test["top1"] for test in result["tests"])
    tested = {line["step"]: line["test_top1"] for line in metrics(evaluated / "frozen") if "test_top1" in line}
    assert tested == {test["step"]: test["top1"] for test in result["tests"]}


def test_summary_names_best_and_last():
    tests = [{"epoch": e, "step": e, "top1": t, "top5": t + 0.1} for e, t in ((1, 0.2), (2, 0.5), (3, 0.5), (4, 0.4))]
    lines = [{name if name in ("epoch", "step") else f"test_{name}": v for name, v in test.items()} for test in tests]
    lines.insert(1, {"epoch": 1.5, "step": 1, "loss": 0.7})
    found = probing.summary(lines, probing.Tested(np.zeros(1, int), 0.4, 0.5, calibration_error=0.05))
    best = {"best_top1": 0.5, "best_top5": 0.6, "best_epoch": 2}
    assert found == {"top1": 0.4, "top5": 0.5, "expected_calibration_error": 0.05, **best, "tests": tests}


def test_cached_features_choose_on_held_out_training_images(evaluated, run, photos, tmp_path, capsys):
    pytest.importorskip("sklearn")
    result = result_of(evaluated / "cached")
    assert result["held_out_images"] == 9 and result["learning_rate"] in (0.01, 0.1)
    grid = {"cache_features": True, "learning_rates": "3e38,0.1", "logistic_regression": True}
    call("lincls", load=run, data_dir=photos, workdir=tmp_path, **grid, **PROBE)
    result, out = result_of(tmp_path), capsys.readouterr().out
    assert result["learning_rates"][0] == {"learning_rate": 3e38, "held_out_top1": 0.0, "loss": None}
    assert result["learning_rate"] == 0.1 and result["learning_rates"][1]["loss"] > 0
    assert "learning rate 3e+38: diverged of 9" in out and "logistic regression: top-1" in out
    assert result["logistic_regression"]["converged"]
    with pytest.raises(UserError, match="every one of --learning_rates diverged"):
        values = {**grid, "learning_rates": "3e38,2e38", **PROBE}
        call("lincls", load=run, data_dir=photos, workdir=tmp_path / "none", **values)
    with pytest.raises(UserError, match="the loss or a gradient of step [23] is not finite; .* lower --learning_rate"):
        values = {**PROBE, "learning_rate": 3e38, "cache_features": True}
        call("lincls", load=run, data_dir=photos, workdir=tmp_path / "diverges", **values)


def variables(folder):
    """{name: array} of the newest checkpoint."""
    path = checkpoint.existing(folder / "checkpoints")[-1]
    reader = tf.train.load_checkpoint(str(path / "variables"))
    names = [name for name in reader.get_variable_to_shape_map() if not name.startswith("_CHECKPOINTABLE")]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.parametrize("finetune", [False, True])
def test_goes_on_bit_for_bit(finetune, run, photos, tmp_path, capsys):
    """Eight steps are six, in the middle of an epoch, and two of a second call; a third call has nothing to do."""
    values = {**PROBE, "load": run, "data_dir": photos, "finetune": finetune, "optimizer": "adam"}
    values["learning_rate"] = 0.01
    values["eval_every"] = 1 - finetune  # each test of fine-tuning computes features
    call("lincls", workdir=tmp_path / "straight", steps=8, **values)
    for steps in (6, 8):
        call("lincls", workdir=tmp_path / "broken", steps=steps, **values)
    expected, found = (variables(tmp_path / name) for name in ("straight", "broken"))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    straight, broken = (result_of(tmp_path / name) for name in ("straight", "broken"))
    assert [test["step"] for test in broken["tests"]] == ([6, 8] if finetune else [5, 6, 8])
    assert straight["tests"] == [test for test in broken["tests"] if test["step"] != 6]
    assert capsys.readouterr().out.count("resuming from") == 1
    if not finetune:
        call("lincls", workdir=tmp_path / "broken", steps=8, **values)
        assert "resuming from" in capsys.readouterr().out
        assert result_of(tmp_path / "broken") == broken and len(losses(tmp_path / "broken")) == 8


@pytest.mark.parametrize("cached, said", [(False, "checkpoint written after step 3 of 8"), (True, "begins anew")])
def test_a_probe_that_is_asked_to_stop(cached, said, run, photos, tmp_path, monkeypatch, capsys):
    """With a checkpoint in the middle of an epoch, from which the same command goes on; cached features have none."""
    steps, values = loop.steps, {**PROBE, "load": run, "data_dir": photos, "workdir": tmp_path}
    values |= {"steps": 8, "log_every": 4, "cache_features": cached}

    def interrupted(*args):
        for number, batch in steps(*args):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield number, batch

    with monkeypatch.context() as patch:
        patch.setattr(loop, "steps", interrupted)
        with pytest.raises(stop.Stopped, match=said) as caught:
            call("lincls", **values)
    assert caught.value.status == 75 and not (tmp_path / "result.json").exists()
    call("lincls", **{**values, "learning_rate": 0.25})
    out = capsys.readouterr().out
    assert ("step-00000003\nchanged: --learning_rate=0.25 (was 0.5)\n" in out) != cached
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    keys = {"step", "epoch", "loss", "train_top1", "learning_rate", "images_per_second", "input_wait", "time"}
    keys |= {"model_flop_utilisation"}
    assert [line["step"] for line in lines] == [4, 8] and all(line.keys() == keys for line in lines)
    assert [test["step"] for test in result_of(tmp_path)["tests"]] == [5, 8]


def test_goes_on_with_the_same_probe_only(evaluated, run, photos, tmp_path):
    copy = shutil.copytree(evaluated / "frozen", tmp_path / "copy")
    (copy / "result.json").unlink()  # with one, other settings are refused before
    before = {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()}
    given = {"data_dir": photos, "workdir": copy, "steps": 6}
    cases = [
        ({"load": run, **PROBE, "optimizer": "adam"}, ["has --optimizer=sgd and came with --optimizer=adam, which"]),
        ({"load": run, **PROBE, "train_fraction": 0.5}, ["--train_fraction=1.0", "training images=45, which"]),
        ({"load": run / "checkpoints/step-00000001", **PROBE}, ["encoder=", "another --workdir"]),
    ]
    for values, words in cases:
        with pytest.raises(UserError) as caught:
            call("lincls", **values, **given)
        assert all(word in str(caught.value) for word in ["the run in", *words]), str(caught.value)
    assert {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()} == before


def test_fine_tuned_encoder_can_be_loaded(evaluated, run, photos, tmp_path):
    """As --load for any program; the frozen probe's folder holds no encoder."""
    tuned, first = (load(str(folder)).encoder.named_variables() for folder in (evaluated / "finetune", run))
    moved = {name for name in first if not np.array_equal(tuned[name].numpy(), first[name].numpy())}
    assert moved == {name for name in first if not name.startswith("fc")}
    call("knn", load=evaluated / "finetune", k=5, workdir=tmp_path, data_dir=photos, **SMALL)
    assert 0 <= result_of(tmp_path)["top1"] <= 1
    with pytest.raises(UserError, match="a linear probe's, which holds a classifier and no encoder"):
        load(str(evaluated / "frozen"))


def test_checkpoints_of_a_training_are_not_overwritten(evaluated, run, photos, tmp_path):
    """Neither the metrics of a run folder, nor the result of hours on augmented images by one of minutes."""

    def files(folder):  # the lock is taken before a checkpoint is read
        found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
        return {path: path.read_bytes() for path in found}

    words = "holds the checkpoints of a training, .* another --workdir"
    for folder, word in ((run, words), (evaluated / "frozen", "holds a result with .* give another folder")):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        before = files(copy)
        given = {"load": run, "data_dir": photos, "workdir": copy}
        with pytest.raises(UserError, match=word):
            call("lincls", cache_features=True, **given, **PROBE)
        with pytest.raises(UserError, match=word):
            call("knn", k=5, **given, **SMALL)
        if folder == run:
            with pytest.raises(UserError, match="the checkpoints in .* are of another program .* another --workdir"):
                call("lincls", **given, **PROBE)
        assert files(copy) == before


def test_raw_pixels_on_augmented_images(tmp_path):
    """Views are as large as the test images, which are not resized."""
    own = {"dataset": "fashion_mnist", "holdout": 100, "image_size": 12}
    call("lincls", baseline="raw_pixels", workdir=tmp_path, steps=2, **{**PROBE, **own})
    assert result_of(tmp_path)["test_images"] == 100 and list(losses(tmp_path)) == [1, 2]


def test_folders_of_different_probes_differ(run, photos, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    part = {"train_fraction": 0.2, "steps": 2, **PROBE, "batch_size": 6, "cache_features": True}
    call("lincls", load=copy, data_dir=photos, **part)
    result = result_of(copy / "lincls_0.2")
    assert result["train_images"] == 18 and not result["finetuned"]


# Many checkpoints


def test_every_checkpoint_of_a_run(evaluated, run, photos, tmp_path, capsys):
    """One line each; a broken one is reported and passed over."""
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.copytree(copy / "checkpoints/step-00000002", copy / "checkpoints/step-00000003")
    (copy / "checkpoints/step-00000003/variables.index").write_bytes(b"")
    call("knn", load=copy, all_checkpoints=True, k=5, data_dir=photos, workdir=tmp_path / "out", **SMALL)
    out, result = capsys.readouterr().out, result_of(tmp_path / "out")
    names = [str(copy / f"checkpoints/step-0000000{step}") for step in (1, 2)]
    assert [one["checkpoint"] for one in result["checkpoints"]] == names
    assert all(out.count(f"{name}: top-1 ") == 1 for name in names)
    assert "skipped: checkpoint" in out and result["subject"] == names[-1]
    assert result["checkpoints"][-1]["top1"] == result_of(evaluated / "knn")["top1"]


def test_what_a_folder_holds(run, tmp_path):
    steps = [str(run / f"checkpoints/step-0000000{step}") for step in (1, 2)]
    assert subject.checkpoints(str(run)) == subject.checkpoints(str(run / "checkpoints")) == steps
    for name in ("b.pth.tar", "a.pth", "notes.txt"):
        (tmp_path / name).touch()
    assert subject.checkpoints(str(tmp_path)) == [str(tmp_path / "a.pth"), str(tmp_path / "b.pth.tar")]
    for nothing in (None, str(tmp_path / "nowhere"), str(tmp_path / "notes.txt")):
        with pytest.raises(UserError, match="expected a run folder with checkpoints/"):
            subject.checkpoints(nothing)


def test_where_results_go(run, tmp_path):
    """Into the run folder, whatever of it is loaded; beside the working folder's runs for a file."""

    def place(load):
        return next(results.place_of(str(load)).results("kNN")).path

    assert {place(run / part) for part in ("", "checkpoints", "checkpoints/step-00000001")} == {run / "knn"}
    (tmp_path / "moco.pth.tar").touch()
    assert str(place(tmp_path / "moco.pth.tar")) == "runs/moco/knn"


# Several ranks


@pytest.fixture(scope="module")
def on_two_ranks(run, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    done = ranks.horovodrun(2, ranks.TESTS / "workers" / "evaluations.py", run, photos, out)
    assert done.stdout.count("finished") == 2 and done.stdout.count("written to ") == 5
    return out


@pytest.mark.horovod
def test_two_ranks_are_one_process(on_two_ranks, evaluated):
    """The same neighbours; the same losses, held-out accuracies and tests of a probe."""
    one, two = (result_of(out / "knn") for out in (evaluated, on_two_ranks))
    assert all(one[name] == two[name] for name in ("all", "per_class", "retrieval", "robustness"))
    assert one["label_free"].pop("views") == two["label_free"].pop("views") == "moco_v2"
    assert one["label_free"] == pytest.approx(two["label_free"], rel=1e-4)
    one, two = (result_of(out / "fewshot")["features"] for out in (evaluated, on_two_ranks))
    assert [(f["shots"], f["weight_decays"]) for f in one] == [(f["shots"], f["weight_decays"]) for f in two]
    for name in ("frozen", "cached"):
        assert losses(on_two_ranks / name) == pytest.approx(losses(evaluated / name), rel=1e-4)
        one, two = (result_of(out / name) for out in (evaluated, on_two_ranks))
        assert [t["top1"] for t in one["tests"]] == pytest.approx([t["top1"] for t in two["tests"]], abs=1.01 / 24)
    assert one["learning_rate"] == two["learning_rate"]
    assert list(losses(on_two_ranks / "finetune")) == [1, 2]
    assert np.isfinite(list(losses(on_two_ranks / "finetune").values())).all()


# Flags


def test_a_probe_without_a_recipe_is_mocos():
    o = parse("lincls")
    schedule = o.schedule.epochs, o.schedule.schedule, o.schedule.milestones
    assert (o.optimizer.learning_rate, *schedule) == (30, 100, "milestones", (60, 80))
    assert parse("pretrain").schedule.milestones == (120, 160)


def test_flags_of_older_runs_still_parse():
    o = parse("pretrain", "--k=20", "--knn_temperature=0.07")
    assert (o.knn.k, o.knn.knn_temperature) == ((20,), (0.07,)) and "--k=20\n" in define.flagfile(o)
    o = parse("knn", "--k=20,200", "--knn_temperature=0.07,0.1")
    assert (o.knn.k, o.knn.knn_temperature) == ((20, 200), (0.07, 0.1))
    assert parse("knn", *define.flagfile(o).splitlines()) == o


@pytest.mark.parametrize(
    "program, arguments, words",
    [
        ("knn", "--k=0", ["--k=0", "from 1 on"]),
        ("knn", "--k=", ["--k=", "expected numbers"]),
        ("knn", "--k=5,many", ["--k=5,many", "numbers"]),
        ("knn", "--k=2.5", ["--k=2.5", "numbers"]),
        ("knn", "--knn_temperature=0.1,0", ["--knn_temperature=0.1,0", "from 1e-06"]),
        ("knn", "--knn_temperature=nan", ["--knn_temperature=nan"]),
        ("lincls", "--learning_rates=0.1,-1", ["--learning_rates=0.1,-1"]),
        ("lincls", "--learning_rates=inf", ["--learning_rates=inf"]),
        ("lincls", "--train_fraction=0", ["--train_fraction=0"]),
        ("lincls", "--train_fraction=1.5", ["--train_fraction=1.5"]),
    ],
)
def test_flags_out_of_range(program, arguments, words):
    with pytest.raises(flags.Error) as caught:
        parse(program, arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"standardise": True}, ["--standardise", "--cache_features"]),
        ({"learning_rates": "1,2"}, ["--learning_rates", "--cache_features"]),
        ({"logistic_regression": True}, ["--logistic_regression", "--cache_features"]),
        ({"finetune": True, "cache_features": True}, ["--finetune", "--cache_features", "one of them"]),
        ({"finetune": True, "baseline": "raw_pixels"}, ["--finetune", "raw_pixels"]),
        ({"finetune": True, "precision": "float16"}, ["--finetune", "float16"]),
        ({"backbone_learning_rate": 0.1}, ["--backbone_learning_rate", "--finetune"]),
        ({"train_fraction": 0.5, "train_list": "list.txt"}, ["--train_fraction", "--train_list"]),
        ({"train_list": "nowhere.txt"}, ["nowhere.txt cannot be read"]),
        ({"train_fraction": 0.1}, ["--batch_size=16", "at most 9"]),
    ],
)
def test_what_does_not_fit_together(values, words, run, photos, tmp_path):
    given = {"load": run, "data_dir": photos, "workdir": tmp_path / "out", **PROBE}
    with pytest.raises(UserError) as caught:
        call("lincls", **{**given, **values})
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_all_checkpoints_of_a_baseline(run, photos):
    with pytest.raises(UserError, match="--all_checkpoints came with --baseline=untrained"):
        call("knn", load=run, data_dir=photos, all_checkpoints=True, baseline="untrained", **SMALL)
