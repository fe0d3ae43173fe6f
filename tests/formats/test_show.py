"""moco_tf.show says what each kind of source holds, by arrays alone."""

import json
import lzma

import numpy as np
import pytest
from support import encoders, parity_files
from support.programs import call
from support.sources_of_encoders import KINDS, POINTER, QUEUE, make

from moco_tf.errors import UserError
from moco_tf.formats.contents import contents
from moco_tf.formats.load import load

SAME = {"arch": "resnet10", "stem": "cifar", "width": 4, "pooled_dim": 32, "head": "mlp", "hidden_dim": 32}
SAME |= {"feature_dim": 6}
IN_A_RUN = {"key_encoder": True, "optimizer": True, "step": 20, "epoch": 2.0, "image_size": 24, "method": "moco"}
IN_A_RUN |= {"source": "moco_tf checkpoint", "dataset": "folder", "batch_size": 32, "ranks": 2, "bn_splits": 1}
IN_A_RUN |= {"flags": ["--method=moco", "--queue_size=16", "--data_dir=/nowhere"]}
QUEUED = {"queue": {"size": 16, "dim": 6, "pointer": 8}}
ALONE = {"key_encoder": False, "optimizer": False, "queue": None, "step": None, "image_size": None}
HOLDS = {
    "run": {**IN_A_RUN, **QUEUED, "checkpoints": ["step-00000010", "step-00000020"], "broken": []},
    "checkpoint": {**IN_A_RUN, **QUEUED},
    "official.pth.tar": {**ALONE, **QUEUED, "source": "moco .pth.tar", "key_encoder": True},
    "encoder.pth": {**ALONE, "source": "torchvision .pth"},
    "legacy.pth": {**ALONE, "source": "torchvision .pth"},
    "moco.npz": {**ALONE, **QUEUED, "source": "moco.tensorflow .npz"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_source_holds(kind, tmp_path, capsys):
    """show's facts, and --load's encoder, which gives what the original gives."""
    path = make(kind, tmp_path)
    found = contents(str(path))
    assert found | SAME | HOLDS[kind] == found
    subject, loaded, images = (
        encoders.subject(**{key: SAME[key] for key in ("arch", "stem", "head")}),
        load(str(path)),
        3,
    )
    assert found["parameters"] == sum(int(np.prod(variable.shape)) for variable in subject.encoder.parameters())
    x = np.random.default_rng(0).normal(size=(images, 24, 24, 3)).astype(np.float32)
    for got, wanted in (
        (loaded.encoder.features(x), subject.encoder.features(x)),
        (loaded.encoder(x), subject.encoder(x)),
    ):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    if kind in ("run", "checkpoint"):
        np.testing.assert_allclose(
            [found["normalisation"][key] for key in ("mean", "std")], [encoders.MEAN, encoders.STD]
        )
    call("show", load=path, json="true")
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(found))
    call("show", load=path)
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["arch"].strip() == "resnet10" and lines["feature dim"].strip() == "6"
    assert ("queue" in lines) == bool(found["queue"])


def test_queues_are_those_of_the_source():
    assert QUEUED["queue"] == {"size": len(QUEUE), "dim": QUEUE.shape[1], "pointer": POINTER}


def test_an_official_checkpoint(tmp_path):
    packed = parity_files.path("official_resnet18_v2.pth.tar.xz")
    (tmp_path / "moco.pth.tar").write_bytes(lzma.decompress(packed.read_bytes()))
    found = contents(str(tmp_path / "moco.pth.tar"))
    expected = {"arch": "resnet18", "stem": "imagenet", "width": 64, "head": "mlp", "feature_dim": 128, "epoch": 200}
    expected |= {"pooled_dim": 512, "hidden_dim": 512, "key_encoder": True}
    assert found | expected == found
    assert found["queue"]["size"] == 64 and found["queue"]["dim"] == 128
    assert found["parameters"] == 11_176_512 + 512 * 512 + 512 + 512 * 128 + 128  # torchvision's, and the head's


def test_a_broken_newest_checkpoint_is_passed_over(tmp_path):
    run = make("run", tmp_path)
    (run / "checkpoints/step-00000020/variables.index").write_bytes(b"")
    found = contents(str(run))
    assert (found["step"], found["broken"]) == (10, ["step-00000020"])


def test_bank_of_npid(tmp_path):
    import tensorflow as tf

    from moco_tf.training import checkpoint

    subject = encoders.subject(arch="resnet10", stem="cifar", head="linear")
    state = {"query_encoder": {name: v.value for name, v in subject.encoder.named_variables().items()}}
    state["bank"] = tf.Variable(np.zeros((50, 6), np.float32))
    about = {"encoder": dict(subject.encoder.config), "image_size": 24, "mean": [0.5] * 3, "std": [0.5] * 3}
    found = contents(str(checkpoint.save(tmp_path / "checkpoints", 3, state, about, keep=1)))
    assert found["bank"] == {"size": 50, "dim": 6, "pointer": None} and found["queue"] is None
    assert not found["optimizer"] and found["flags"] is None and found["epoch"] is None


def test_what_is_missing(tmp_path):
    for values, words in [
        ({}, "--load is missing"),
        ({"load": tmp_path / "no"}, "does not exist; expected a run folder"),
    ]:
        with pytest.raises(UserError, match=words):
            call("show", **values)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(UserError, match="is a SavedModel, which tf.saved_model.load opens; expected"):
        call("show", load=tmp_path)
