"""Pre-training around its step: held-out images, normalisation, crops, schedules, warnings, refusals, what it says."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image
from support.programs import TINY, arguments, call, parse
from support.refusals import pretrain as refused

from moco_tf.config.options import ScheduleOptions
from moco_tf.data import pipeline
from moco_tf.data.sources import ArraySource
from moco_tf.data.views import geometry as augment_geometry
from moco_tf.errors import UserError
from moco_tf.evaluation import subject
from moco_tf.methods import base
from moco_tf.run import advice, loop, prepare, pretraining, resume
from moco_tf.run.folder import RunFolder
from moco_tf.run.learner import TrainingTask
from moco_tf.training import stop, update
from moco_tf.training.checkpoint_writer import Writer
from moco_tf.training.collectives import SingleProcess
from moco_tf.training.hang import HangTimer


def options(program="pretrain", **values):
    return parse(program, *arguments(**values))


def tiny(**values):
    """The tiny debug recipe."""
    return parse("pretrain", *arguments("debug/pretrain.cfg", **{**TINY, "jit_compile": "false", **values}))


# --holdout


@pytest.fixture
def asked(monkeypatch):
    """The splits that are asked of a data set of 40 images, each with its number in its pixels and its label."""
    splits, numbers = [], np.arange(40)
    images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (40, 2, 2, 3))
    classes = tuple(map(str, numbers))

    def load(dataset, split, data_dir):
        splits.append(split)
        return ArraySource("forty", images, numbers, classes)

    monkeypatch.setattr(prepare, "load", load)
    return splits


def test_holdout_is_the_same_partition_of_the_training_images_in_every_run(asked):
    found = set()
    for program, seed in [("pretrain", 0), ("pretrain", 1), ("lincls", 2), ("knn", 3)]:
        o = options(program, holdout=7, seed=seed)
        parts = [prepare.source(o.data, split, SingleProcess()) for split in ("train", "test")]
        for part in parts:
            np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
        found.add(tuple(tuple(part.labels.tolist()) for part in parts))
    ((train, test),) = found
    assert len(test) == 7 and sorted(train + test) == list(range(40))
    assert set(asked) == {"train"}  # never the test images


@pytest.mark.parametrize("count", [40, 41])
def test_holdout_of_all_images_is_refused(count, asked):
    with pytest.raises(UserError, match=f"^--holdout={count} came, expected less than 40, .*; give a smaller one$"):
        prepare.source(options(holdout=count).data, "train", SingleProcess())


# Warnings of a collapse


class Said(list):
    """Takes the place of a RunLog: what was said."""

    say, enabled, pause = list.append, True, 10.0

    def advance(self, steps):
        pass

    def show(self, text, refresh=False):
        pass

    def write(self, step, **values):
        pass

    def to_disk(self):
        pass


def test_collapse_is_said_once_until_the_features_recover():
    watch = pretraining.CollapseWatch(64)
    # The limit is 0.05 / sqrt(64) = 0.00625.
    stds = enumerate([0.125, 0.0063, 0.0062, 0.001, 0.0, 0.0063, 0.0061, 0.12], start=1)
    said = list(filter(None, [watch(step, {"loss": 1.0, "feature_std": std}) for step, std in stds]))
    assert [line.split(":")[1] for line in said] == [f" the features are collapsing at step {step}" for step in (3, 7)]
    words = "warning: ", "is 0.0062", "1/sqrt(64) = 0.12", "--learning_rate", "--warmup_epochs", "--temperature"
    assert all(word in said[0] for word in words) and "\n" not in said[0]


def test_least_loss_scale_is_said_once():
    watch = pretraining.CollapseWatch(64)
    said = [bool(watch(step, {"loss_scale": scale})) for step, scale in enumerate([4.0, 2.0, 1.0, 1.0, 2.0, 1.0])]
    assert said == [False, False, True, False, False, True]


def test_numbers_that_are_cut_or_do_not_go_together():
    """By hand: 65,536 / 3,000 = 21.8; 1,024 is the largest power of two up to 1,500; 20 steps of 2 x 5."""
    (line,) = advice.of_queue({"queue_size": 65536}, 256, 3000)
    assert "65,536 keys holds each of 3,000 images 21.8 times" in line and line.endswith("give --queue_size=1024")
    (line,) = advice.of_queue({"queue_size": 90}, 64, 90)
    assert "1 times" in line and line.endswith("give --queue_size=64, and smaller batches")
    assert advice.of_queue({"queue_size": 89}, 64, 90) == advice.of_queue({"temperature": 0.1}, 64, 9) == []
    (line,) = advice.of_normalisation(((0.5,) * 3, (0.01, 0.2, 0.01)))
    assert line.startswith("warning: red, blue hardly vary") and "0.01" in line
    assert advice.of_normalisation(((0.5,) * 3, (0.02,) * 3)) == []
    cut, enough = (ScheduleOptions(epochs=2, steps=steps) for steps in (20, 10))
    (line,) = advice.of_steps(cut, 5)
    assert line == "warning: --steps=20 is cut to 10, the steps of --epochs=2; raise --epochs for more"
    assert advice.of_steps(enough, 5) == advice.of_steps(ScheduleOptions(epochs=2), 5) == []
    assert [advice.total_steps(one, 5) for one in (cut, enough)] == [10, 10]


def test_no_word_of_a_collapse_without_feature_std():
    assert pretraining.CollapseWatch(64)(1, {"loss": 0.0, "train_top1": 1.0}) == ""


def test_a_run_watches_for_a_collapse(tmp_path):
    """Features of 16 dimensions that collapse at the third step, looked at every second one."""
    done, said = tf.Variable(0), Said()

    def train_step(batch):
        std = tf.where(done.assign_add(1) < 3, 0.25, 0.001)
        return {"loss": tf.constant(1.0), "contrast_top1": tf.constant(0.0), "feature_std": std}

    method = SimpleNamespace(
        train_step=train_step, one_piece=False, guard=update.Guard(1), stop=stop.StopRequest(), learnt=dict, state=dict
    )
    o = tiny(batch_size=4)
    training = TrainingTask(
        options=o,
        folder=RunFolder.of(tmp_path),
        learner=method,
        batches=pipeline.TrainBatches(ArraySource("black", np.zeros([32, 2, 2, 3], np.uint8)), 4, 0),
        batch_size=4,
        total=8,
        collectives=SingleProcess(),
        checkpoints=o.checkpoints,
        log_every=2,
        rates=lambda step: [0.1],
        set_rates=lambda rates: None,
        about=dict,
        watch=pretraining.CollapseWatch(16),
        resumes=False,
    )
    writer, hang = Writer(tmp_path, 1), HangTimer(0, 0, 1, "")
    loop.Loop(training, resume.Start(), said, writer, stop.Signals(), hang).run()
    assert len(said) == 1 and "at step 4: feature_std is 0.001" in said[0]


# A run on a folder of images, and its resumption


def trained(photos, workdir, **values):
    """The method and the first batch of a run on the photos: 90, so 5 steps an epoch and 10 in its two epochs."""
    seen = {}
    make, steps = prepare.method, loop.steps

    def method(*args):
        return seen.setdefault("method", make(*args))

    def noted(*args):
        for step, batch in steps(*args):
            seen.setdefault("batch", tf.nest.map_structure(np.asarray, batch))
            yield step, batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "method", method)
        patch.setattr(loop, "steps", noted)
        values = {**TINY, "key_momentum": 0.9, "knn_every": 0, "jit_compile": "false", **values}
        call("pretrain", "debug/pretrain.cfg", dataset="folder", data_dir=photos, workdir=workdir, **values)
    return SimpleNamespace(workdir=workdir, **seen)


@pytest.fixture(scope="module")
def first(photos, tmp_path_factory):
    return trained(photos, tmp_path_factory.mktemp("runs") / "first", steps=4, key_momentum_schedule="cosine")


CHANGED = {"dataset": "folder", "mean": [0.5, 0.25, 0.125], "std": [0.25, 0.5, 0.125]}


@pytest.fixture(scope="module")
def resumed(first, photos, tmp_path_factory):
    """The first run continued by one step with constant key momentum, after normalisation.json was changed."""
    workdir = shutil.copytree(first.workdir, tmp_path_factory.mktemp("runs") / "resumed")
    (workdir / "normalisation.json").write_text(json.dumps(CHANGED))
    return trained(photos, workdir, steps=5)


def test_cosine_of_the_key_momentum(first):
    """Step 4 is t = 3 of the T = 10 steps of all epochs."""
    assert float(first.method.key_momentum) == pytest.approx(1 - 0.1 * (1 + np.cos(0.3 * np.pi)) / 2, rel=1e-12)


def test_constant_key_momentum(resumed):
    assert int(resumed.method.steps_done) == 5
    assert float(resumed.method.key_momentum) == pytest.approx(0.9, rel=1e-12)


def test_normalisation_of_a_folder_is_measured_and_kept(first, photos):
    flat = [np.asarray(Image.open(path)).reshape(-1, 3) / 255 for path in (photos / "train").rglob("*.png")]
    mean = np.mean([pixels.mean(0) for pixels in flat], axis=0)
    std = np.sqrt(np.mean([((pixels - mean) ** 2).mean(0) for pixels in flat], axis=0))
    about = json.loads((first.workdir / "normalisation.json").read_text())
    np.testing.assert_allclose([about["mean"], about["std"]], [mean, std], rtol=1e-9)
    assert len(flat) == 90 and about["dataset"] == "folder"
    check_normalisation(first, about, step=4)


def test_kept_normalisation_is_used_again(resumed):
    assert json.loads((resumed.workdir / "normalisation.json").read_text()) == CHANGED
    check_normalisation(resumed, CHANGED, step=5)


def check_normalisation(run, about, step):
    """It is in the checkpoint, in the views, and in what knn loads."""
    described = json.loads((run.workdir / f"checkpoints/step-{step:08}/checkpoint.json").read_text())
    assert (described["mean"], described["std"]) == (about["mean"], about["std"])
    # A black image stays black in every view, so what comes out is (0 - mean) / std.
    black = tf.zeros([2, 24, 24, 3], tf.uint8)
    for view in run.method.views:
        pixels = view(black, tf.constant([1, 2]), tf.range(2), 2).numpy().reshape(-1, 3)
        expected = np.broadcast_to(-np.divide(about["mean"], about["std"]), pixels.shape)
        np.testing.assert_allclose(pixels, expected, rtol=1e-5)
    o = options("knn", load=run.workdir, dataset="folder")
    loaded = subject.load(o.encoder, o.data, o.device.precision)
    np.testing.assert_allclose([loaded.mean, loaded.std], [about["mean"], about["std"]], rtol=1e-12)


def test_views_of_a_file_are_two_crops_of_it(first, photos):
    """Each crop is that of its own seed, here cut out and resized by PIL."""
    (one, other), labels, indices = first.batch
    assert one.shape == other.shape == (16, 24, 24, 3)
    assert all(np.any(left != right) for left, right in zip(one, other))
    assert sorted(set(indices)) == sorted(indices)
    np.testing.assert_array_equal(labels, indices // 30)  # 30 images of each class, in the order of their names
    paths = sorted((photos / "train").rglob("*.png"))
    crop = augment_geometry.RandomResizedCrop(24, (0.08, 1.0))
    for place, (index, seeds) in enumerate(zip(indices, pipeline.view_seeds(0, 0, indices, 2))):
        image = Image.open(paths[index])
        for found, seed in zip((one[place], other[place]), seeds):
            top, left, height, width = crop.one_box(image.height, image.width, tf.constant(seed)).numpy().tolist()
            window = image.crop((left, top, left + width, top + height))
            expected = np.asarray(window.resize((24, 24), Image.Resampling.BILINEAR), int)
            np.testing.assert_allclose(found.astype(int), expected, atol=2)


# Refusals


@pytest.mark.parametrize("method", ["simclr", "supcon_in", "npid"])
def test_symmetric_loss_of_another_method_is_refused(method):
    words = f"^--symmetric came with --method={method}, expected moco; leave --symmetric out, or give --nosymmetric "
    with pytest.raises(flags.IllegalFlagValueError, match=words):
        tiny(method=method, symmetric=True)


@pytest.mark.parametrize("method", ["supcon_in", "supcon_out", "supcon_suploss", "supervised"])
def test_images_without_labels_are_refused_where_a_method_needs_them(method, photos, tmp_path):
    words = "folder has 0 classes", "expected labels", "train/<class>/"
    refused(*words, data_dir=photos / "train" / "cat", workdir=tmp_path / "run", method=method)


def test_queue_smaller_than_the_batch_matters_to_methods_with_a_queue():
    for method, has_queue in [("moco", True), ("supcon_in", True), ("simclr", False), ("npid", False)]:
        o = tiny(method=method, batch_size=16, queue_size=15, workdir="run")
        if not has_queue:
            prepare.check(o, SingleProcess())
            continue
        with pytest.raises(UserError, match="^--batch_size=16 brings 16 keys a step, .* --queue_size=15; .*other$"):
            prepare.check(o, SingleProcess())


# What a run says at its start


def introduction(**values):
    """For 62,500 images, without taking a step."""
    o, ranks = tiny(**values), SingleProcess()
    train = ArraySource("toy", np.broadcast_to(np.uint8(0), (62_500, 24, 24, 3)))
    method = prepare.method(o, ranks, (base.as_given, base.as_given), train)
    batches, scales = SimpleNamespace(steps_per_epoch=3906), ((0.5,) * 3, (0.25,) * 3)
    run = SimpleNamespace(
        options=o, collectives=ranks, train=train, size=24, method=method, mean_and_std=scales, batches=batches
    )
    return "\n".join(pretraining.introduction(run, 2, 6))


def test_introduction_of_moco():
    said = introduction()
    assert said.startswith("device: ") and "\nmoco: 62,500 images of toy, 24 px, views cifar\n" in said
    assert "batch 16 = 1 ranks x 16; steps 2 to 6 (2 epochs of 3906 steps)" in said
    convolutions = 3 * 3 * (3 * 8 + 2 * 8 * 8), 3584, 4 * 3584, 16 * 3584  # 3584 = 9 * 8 * 16 + 9 * 16 * 16 + 8 * 16
    head, norms = 64 * 64 + 64 * 32, 3 * (8 + 16 + 32 + 64)
    parameters = sum(convolutions) + 2 * norms + head + 64 + 32
    multiply_adds = np.dot(convolutions, [24**2, 12**2, 6**2, 3**2]) + head
    assert f"mlp head to 32: {parameters / 1e3:.2f} k parameters, {multiply_adds / 1e6:.2f} M multiply-adds" in said
    assert "queue 64; the loss rises to about ln(1 + 64) = 4.17 " in said
    assert "warning" not in said


@pytest.mark.parametrize("symmetric, size, keys", [(False, 60, 16), (True, 80, 32)])
def test_introduction_warns_of_a_queue_that_the_keys_of_a_step_do_not_divide(symmetric, size, keys):
    said = introduction(queue_size=size, symmetric=symmetric)
    assert f"\nwarning: {keys} keys a step do not divide the queue of {size}" in said


def test_introduction_of_npid_names_the_memory_bank():
    said = introduction(method="npid")
    assert "memory bank 62,500 x 32: 8 MB on every rank" in said  # of 4 bytes each
    assert "queue" not in said
