"""Checkpoints: written whole or not at all, checked when read, refused where they do not fit."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.checkpoints import arrays, names, save, state

from moco_tf.errors import UserError
from moco_tf.methods.moco import MoCo
from moco_tf.networks.encoder import Encoder
from moco_tf.training import checkpoint, optimizers


def test_round_trip(tmp_path):
    path = save(tmp_path, 7, dataset="cats")
    found = state(0)
    checkpoint.restore(path, found)
    for got, want in zip(arrays(found), arrays(state(7)), strict=True):
        np.testing.assert_array_equal(got, want)
    about = checkpoint.describe(path)
    assert (about["step"], about["dataset"], path.name) == (7, "cats", "step-00000007")
    group = checkpoint.read_group(path, "query_encoder")
    assert {name: value.tolist() for name, value in group.items()} == {
        "layer1.0.conv1.weight": [7.0] * 3,
        "fc.0.bias": [8.0] * 3,
    }
    assert set(checkpoint.read_group(path, "optimizer")) == {f"momentum/{name}" for name in group}


def test_round_trip_of_a_method(tmp_path):
    def method(seed):
        keras.utils.set_random_seed(seed)
        moco = MoCo(*(Encoder("resnet10", stem="cifar", width=4, head="mlp_bn", feature_dim=8) for _ in range(2)), 16)
        moco.compile(optimizers.Adam(0.01))
        return moco

    first, second = method(0), method(1)
    first.train_step(tf.random.stateless_normal([8, 16, 16, 3], [0, 0]))
    path = checkpoint.save(tmp_path, 1, first.state(), {"encoder": first.query_encoder.config}, 1)
    checkpoint.restore(path, second.state())
    for got, want in zip(arrays(second.state()), arrays(first.state()), strict=True):
        np.testing.assert_array_equal(got, want)
    read = checkpoint.read_group(path, "key_encoder")
    assert read.keys() == second.key_encoder.named_variables().keys()


def test_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 100, 9_999_999, 123_456_789):
        save(tmp_path, step, keep=3)
    assert [path.name for path in checkpoint.existing(tmp_path)] == ["step-00000100", "step-09999999", "step-123456789"]
    assert checkpoint.newest_sound(tmp_path) == (tmp_path / "step-123456789", [])


def test_a_step_is_written_again(tmp_path):
    (save(tmp_path, 5) / "variables.index").write_bytes(b"")
    path = save(tmp_path, 5)
    assert checkpoint.newest_sound(tmp_path) == (path, [])


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), tf.errors.ResourceExhaustedError(None, None, "full")]
)
def test_failing_write_leaves_what_was_there(error, tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step, keep=2)
    write = tf.train.Checkpoint.write

    def half(self, path, *rest):
        write(self, path, *rest)
        raise error

    monkeypatch.setattr(tf.train.Checkpoint, "write", half)
    for step in (2, 3):
        with pytest.raises(UserError, match="cannot write a checkpoint to .*; free or mend the disk"):
            save(tmp_path, step, keep=2)
        assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert checkpoint.newest_sound(tmp_path) == (tmp_path / "step-00000002", [])


def test_draft_of_a_killed_process_is_no_checkpoint(tmp_path):
    shutil.copytree(save(tmp_path, 1), tmp_path / ".draft-00000002")
    assert [path.name for path in checkpoint.existing(tmp_path)] == ["step-00000001"]
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["variables.index", "variables.data-00000-of-00001"])
@pytest.mark.parametrize("harm", [cut, flip, lambda path: path.unlink()])
def test_broken_newest_is_reported_and_the_older_used(file, harm, tmp_path):
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    harm(new / file)
    found, complaints = checkpoint.newest_sound(tmp_path)
    assert found == old
    (complaint,) = complaints
    assert str(new) in complaint and "is broken" in complaint and "\n" not in complaint
    assert file in complaint or "hecksum does not match" in complaint  # of a variable, which is named instead


def test_every_flipped_bit_of_the_variables_is_found(tmp_path):
    path = save(tmp_path, 1)
    file = path / "variables.data-00000-of-00001"
    data = file.read_bytes()
    for place in range(0, len(data), 7):
        file.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(UserError, match="step-00000001 is broken: .* cannot be read"):
            checkpoint.check(path)
    file.write_bytes(data)
    checkpoint.check(path)


def test_checkpoints_of_before_with_digests(tmp_path):
    """They had a SHA-256 of each file, which is not looked at."""
    path = save(tmp_path, 1)
    about = checkpoint.describe(path)
    for file in about["files"].values():
        file["sha256"] = "0" * 64
    (path / checkpoint.DESCRIPTION).write_text(json.dumps(about))
    assert checkpoint.newest_sound(tmp_path) == (path, [])


def test_broken_ones_do_not_push_out_sound_ones(tmp_path):
    """A run that went on from an older checkpoint keeps what it writes, not the broken ones of later steps."""
    for step in (10, 20, 30):
        save(tmp_path, step)
    for step in (20, 30):
        cut(tmp_path / f"step-000000{step}" / "variables.index")
    save(tmp_path, 15, keep=1)
    assert names(tmp_path) == ["step-00000015"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"step": 2}', '{"step": 2, "files": []}', '{"step": 2, "files": {"a": 1}}']
)
def test_broken_description(text, tmp_path):
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    (new / checkpoint.DESCRIPTION).write_text(text)
    with pytest.raises(UserError, match=r"step-00000002: checkpoint.json is missing or broken"):
        checkpoint.describe(new)
    found, complaints = checkpoint.newest_sound(tmp_path)
    assert found == old and len(complaints) == 1


def test_nothing_there(tmp_path):
    assert checkpoint.newest_sound(tmp_path / "nowhere") == (None, [])
    with pytest.raises(UserError, match="checkpoint.json is missing"):
        checkpoint.describe(tmp_path)


def smaller(found):
    del found["query_encoder"]["fc.0.bias"]
    return found


@pytest.mark.parametrize(
    "model",
    [
        lambda: state(0, size=4),
        lambda: smaller(state(0)),
        lambda: {**state(0), "queue": tf.Variable([0.0])},
        lambda: {**state(0), "query_encoder": {"layer1.0.conv2.weight": tf.Variable([0.0] * 3)}},
    ],
    ids=["shape", "fewer", "more", "names"],
)
def test_restore_into_another_architecture(model, tmp_path):
    path = save(tmp_path, 2)
    with pytest.raises(UserError) as caught:
        checkpoint.restore(path, model())
    message = str(caught.value)
    assert str(path) in message and "does not fit this model" in message and "\n" not in message
    assert "--arch=resnet10 --width=8" in message and "flags.cfg" in message and "--workdir" in message


def test_description_says_the_files(tmp_path):
    path = save(tmp_path, 3)
    files = json.loads((path / checkpoint.DESCRIPTION).read_text())["files"]
    assert {name: file["size"] for name, file in files.items()} == {
        file.name: file.stat().st_size for file in path.iterdir() if file.name != checkpoint.DESCRIPTION
    }
