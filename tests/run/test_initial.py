"""--init: a pre-training starts from whatever --load takes, to the bit, and says what it took."""

import json

import numpy as np
import pytest
from support import method_cases
from support.foreign_networks import network
from support.programs import TINY, call
from support.sources_of_encoders import POINTER, QUEUE, make

from moco_tf.errors import UserError
from moco_tf.formats import pth
from moco_tf.formats.load import load
from moco_tf.formats.torchvision import get_weights
from moco_tf.methods.moco import MoCo
from moco_tf.networks.encoder import Encoder
from moco_tf.run import initial, loop, prepare
from moco_tf.training import checkpoint

BACKBONE = network("resnet10", 4, 3, "none")


def backbone(encoder):
    return {name: value for name, value in get_weights(encoder).items() if not name.startswith("fc.")}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("name", method_cases.METHODS)
def test_every_method_starts_from_a_backbone(name, tmp_path):
    """Of torchvision's kind, with a classifier: both encoders have it; what else there is stays as it was."""
    classifier = {"fc.weight": np.ones((1000, 32), "f4"), "fc.bias": np.ones(1000, "f4")}
    pth.write_tensors(tmp_path / "x.pth", {**BACKBONE, **classifier})
    method, before = method_cases.build(name), method_cases.arrays(method_cases.build(name))
    said = initial.initialise(method, str(tmp_path / "x.pth"))
    after = method_cases.arrays(method)
    for encoder in method.encoders():
        same(backbone(encoder), BACKBONE)
        same(get_weights(encoder), get_weights(method.query_encoder))
    rest = [key for key in before if key.split()[0] not in ("query_encoder", "key_encoder") or " fc." in key]
    same({key: after[key] for key in rest}, {key: before[key] for key in rest})
    assert len(rest) < len(before) and said["taken"] == ["backbone"]
    assert said["fresh"]["head"] == "another one there"
    assert ("key encoder" in said["fresh"]) == (len(method.encoders()) > 1)


def of_the_same_head(feature_dim=6, queue_size=16):
    """A MoCo like that of support.sources_of_encoders."""
    encoders = [Encoder("resnet10", stem="cifar", width=4, head="mlp", feature_dim=feature_dim) for _ in range(2)]
    return MoCo(*encoders, queue_size=queue_size)


@pytest.mark.parametrize("kind", ["run", "official.pth.tar", "moco.npz"])
def test_head_key_encoder_and_queue_are_taken(kind, tmp_path):
    """Of a run of ours, of MoCo's file, of moco.tensorflow's, which has no key encoder here."""
    path = make(kind, tmp_path)
    if kind == "run":  # a key encoder of its own
        keys = network("resnet10", 4, 3, "mlp", dim=6, hidden=32, seed=9)
        place = path / "checkpoints" / "step-00000020"
        about, state = checkpoint.describe(place), {}
        other = Encoder("resnet10", stem="cifar", width=4, head="mlp", feature_dim=6)
        for name, encoder in (("query_encoder", load(str(path)).encoder), ("key_encoder", other)):
            if name == "key_encoder":
                initial.set_weights(encoder, keys)
            state[name] = {each: variable.value for each, variable in encoder.named_variables().items()}
        queue = of_the_same_head().queue
        queue.keys.assign(QUEUE), queue.pointer.assign(POINTER)
        checkpoint.save(path / "checkpoints", 30, {**state, **queue.state()}, about, keep=1)
    method = of_the_same_head()
    said = initial.initialise(method, str(path))
    query = get_weights(load(str(path)).encoder)
    same(get_weights(method.query_encoder), query)
    same(get_weights(method.key_encoder), keys if kind == "run" else query)
    np.testing.assert_array_equal(method.queue.keys, QUEUE)
    assert int(method.queue.pointer) == POINTER
    own = [] if kind == "moco.npz" else ["key encoder"]
    assert said["taken"] == ["backbone", "head", *own, "queue"] and not method.key_encoder.trainable


def test_a_queue_of_another_size_or_head_starts_fresh(tmp_path):
    path = make("official.pth.tar", tmp_path)
    for changed, why in [({"queue_size": 32}, "16 x 6 there, 32 x 6 here"), ({"feature_dim": 5}, "another head")]:
        method = of_the_same_head(**changed)
        before = method.queue.keys.numpy()
        said = initial.initialise(method, str(path))
        assert why in said["fresh"]["queue"] and why in initial.line(said)
        np.testing.assert_array_equal(method.queue.keys, before)
        same(get_weights(method.key_encoder), get_weights(method.query_encoder))


def test_another_backbone_is_refused_with_its_flags(tmp_path):
    method = of_the_same_head()
    before = get_weights(method.query_encoder)
    for name, state, words in [
        ("deep.pth", network("resnet18", 4, 7), "holds --arch=resnet18 --stem=imagenet --width=4"),
        ("wide.pth", network("resnet10", 5, 3), "holds --arch=resnet10 --stem=cifar --width=5"),
        ("no.pth", None, "--init=.* does not exist"),
    ]:
        if state:
            pth.write_tensors(tmp_path / name, state)
        with pytest.raises(UserError, match=words) as caught:
            initial.initialise(method, str(tmp_path / name))
        assert "\n" not in str(caught.value)
    same(get_weights(method.query_encoder), before)


def test_a_run_says_and_keeps_it_and_does_not_read_it_again(tmp_path, capsys, monkeypatch):
    """The whole program up to its first step, then, from that step's checkpoint and without the file, again."""
    init, run, steps, seen = tmp_path / "x.pth", tmp_path / "run", loop.Loop.run, []
    pth.write_tensors(init, network("resnet10", 8, 3, "none"))
    values = {
        **TINY,
        "queue_size": 512,
        "steps": 1,
        "knn_every": 0,
        "jit_compile": "false",
        "init": init,
        "workdir": run,
    }
    make_method = prepare.method

    def noted(training):
        method = training.learner
        same(backbone(method.query_encoder), network("resnet10", 8, 3, "none"))
        same(get_weights(method.key_encoder), get_weights(method.query_encoder))
        steps(training)

    monkeypatch.setattr(prepare, "method", lambda *args: seen.append(make_method(*args)) or seen[-1])
    monkeypatch.setattr(loop.Loop, "run", noted)
    call("pretrain", "debug/pretrain.cfg", **values)
    text = f"starts from {init} (torchvision .pth): backbone taken; fresh: head (none there), key encoder (none there"
    assert text in capsys.readouterr().out
    kept = json.loads((run / "init.json").read_text())
    assert (kept["from"], kept["taken"]) == (str(init), ["backbone"])
    assert f"--init={init}\n" in (run / "flags.cfg").read_text()
    init.unlink()
    trained = get_weights(seen[-1].query_encoder)
    monkeypatch.setattr(loop.Loop, "run", lambda training: same(get_weights(training.learner.query_encoder), trained))
    call("pretrain", "debug/pretrain.cfg", **{**values, "steps": 2})
    assert f"--init={init} is not read again" in capsys.readouterr().out
    assert json.loads((run / "init.json").read_text()) == kept
