"""What --monitor measures of a run, against the same from its checkpoint and another way."""

import numpy as np
import pytest
import tensorflow as tf
from support.programs import TINY, call, metrics

from moco_tf.config.options import LABEL_FREE, DataOptions
from moco_tf.evaluation import features
from moco_tf.formats.load import load
from moco_tf.run import prepare
from moco_tf.training import checkpoint
from moco_tf.training.collectives import SingleProcess

SMALL = {**TINY, "width": 4, "jit_compile": "false", "precision": "float32", "knn_every": 1, "dataset": "folder"}


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A run with everything that can be measured, stopped after 4 of 6 steps and continued."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    for steps in (4, 6):
        everything = {"monitor": ",".join(["knn", "probe", *LABEL_FREE]), "learning_rate": 0.01}
        call(
            "pretrain", "debug/pretrain.cfg", workdir=folder, data_dir=photos, **{**SMALL, **everything, "steps": steps}
        )
    return folder


def features_of(run, photos, split, head):
    """Features and labels by the checkpoint's encoder."""
    loaded = load(str(run), "float32")
    source = prepare.source(DataOptions(dataset="folder", data_dir=str(photos)), split, SingleProcess())
    geometry = features.test_geometry(source, loaded.image_size)
    embed = features.embedder(loaded.encoder, "head" if head else "backbone", loaded.mean, loaded.std)
    return features.extract(embed, source, geometry, 16, SingleProcess())


def test_probe_is_the_classifier_in_the_checkpoint(run, photos):
    last = metrics(run)[-1]
    probe = checkpoint.read_group(checkpoint.existing(run / "checkpoints")[-1], "probe")
    x, labels = features_of(run, photos, "test", head=False)
    logits = x @ probe["fc.weight"] + probe["fc.bias"]
    assert last["probe_top1"] == pytest.approx((logits.argmax(axis=1) == labels).mean(), abs=1e-6)
    assert probe["fc.weight"].shape == (x.shape[1], 3) and last["probe_top5"] == 1
    steps = [line for line in metrics(run) if "loss" in line]
    assert [line["step"] for line in steps] == [2, 4, 6]
    assert all(0 < line["probe_loss"] < 5 and 0 <= line["probe_train_top1"] <= 1 for line in steps)


def test_label_free_figures_are_those_of_the_head(run, photos):
    last = metrics(run)[-1]
    x, _ = features_of(run, photos, "train", head=True)
    p = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    p = p / p.sum()
    assert last["rankme"] == pytest.approx(np.exp(-np.sum(p[p > 1e-9] * np.log(p[p > 1e-9]))), rel=1e-3)
    assert 1 < last["lidar"] <= x.shape[1] and last["alpha_req"] > 0
    assert 0 < last["alignment"] < 4 and -4 < last["uniformity"] < 0 and "knn_top1" in last


def test_encoder_is_that_of_a_run_without_a_monitor(run, photos, tmp_path):
    """Bit for bit, although that one never stopped and measured nothing."""
    values = {**SMALL, "knn_every": 0, "learning_rate": 0.01}
    call("pretrain", "debug/pretrain.cfg", workdir=tmp_path / "plain", data_dir=photos, **values)
    states = [state_of(folder) for folder in (run, tmp_path / "plain")]
    with_probe = {name for name in states[0] if not name.startswith(("probe", "_CHECKPOINTABLE"))}
    assert with_probe == states[1].keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    for name in with_probe:
        np.testing.assert_array_equal(states[0][name], states[1][name], err_msg=name)


def state_of(folder):
    reader = tf.train.load_checkpoint(str(checkpoint.existing(folder / "checkpoints")[-1] / "variables"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def test_label_free_needs_no_labels_and_no_test_images(photos, tmp_path):
    values = {**SMALL, "monitor": "rankme", "steps": 2, "data_dir": photos / "train" / "cat"}
    call("pretrain", "debug/pretrain.cfg", workdir=tmp_path / "run", **values)
    assert 1 < metrics(tmp_path / "run")[-1]["rankme"] < 32
