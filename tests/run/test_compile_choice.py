"""What --jit_compile=auto chooses on a GPU, with measurements that are made up; on a CPU nothing is measured."""

import json

import numpy as np
import pytest
import tensorflow as tf
from support.programs import parse

from moco_tf.config import define
from moco_tf.run import compile_choice, prepare, pretraining
from moco_tf.training import device
from moco_tf.training.collectives import SingleProcess

SECONDS = {"true": 0.03, "views": 0.02, "false": 0.04}


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """As on a GPU, with a cache of its own; the list of what is measured."""
    monkeypatch.setattr(compile_choice.device, "has_gpu", lambda: True)
    monkeypatch.setattr(compile_choice.device, "description", lambda: "a card")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return []


def chosen(measured, *flags, seconds=SECONDS, ranks=None):
    def measure(o):
        measured.append(o.device.jit_compile)
        if seconds[o.device.jit_compile] is None:
            raise tf.errors.InternalError(None, None, "there is no kernel")
        return seconds[o.device.jit_compile]

    return compile_choice.chosen(parse("pretrain", *flags), ranks or SingleProcess(), measure).device.jit_compile


def test_the_fastest_is_measured_once_for_each_kind_of_step(on_gpu, tmp_path, capsys):
    assert chosen(on_gpu, f"--workdir={tmp_path}/run") == "views" and on_gpu == ["true", "views", "false"]
    line = (
        "XLA compiles all but the network, the fastest of: the whole step 30 ms, all but the network 20 ms, nothing 40"
    )
    assert f"{line} ms a step" in capsys.readouterr().out
    slower = dict.fromkeys(SECONDS, 1.0)
    assert chosen(on_gpu, "--epochs=3", "--threads=2", seconds=slower) == "views" and len(on_gpu) == 3
    assert line in capsys.readouterr().out
    assert chosen(on_gpu, "--batch_size=64", seconds={**SECONDS, "true": 0.01}) == "true" and len(on_gpu) == 6
    for number, flag in enumerate(("--width=32", "--queue_size=4096", "--precision=float32"), 3):
        assert chosen(on_gpu, flag, seconds={**SECONDS, "false": 0.001}) == "false" and len(on_gpu) == 3 * number, flag


def test_a_run_that_goes_on_computes_as_before(on_gpu, tmp_path):
    """What the run folder holds counts, whatever another run has found since; without the user's cache, too."""
    assert chosen(on_gpu, f"--workdir={tmp_path}/run") == "views"
    kept = compile_choice.cache()
    (key,) = json.loads(kept.read_text())
    kept.write_text(json.dumps({key: {"jit_compile": "false", "milliseconds": {}}}))
    assert chosen(on_gpu, f"--workdir={tmp_path}/run") == "views" and chosen(on_gpu) == "false"
    kept.write_text("{broken")
    assert chosen(on_gpu, f"--workdir={tmp_path}/run") == "views" and len(on_gpu) == 3


def test_what_does_not_work_is_left_out(on_gpu, capsys):
    assert chosen(on_gpu, seconds={**SECONDS, "views": None}) == "true"
    assert "--jit_compile=views does not work here: there is no kernel" in capsys.readouterr().out
    with pytest.raises(tf.errors.InternalError):
        chosen(on_gpu, "--seed=1", "--arch=resnet18", seconds=dict.fromkeys(SECONDS))


def test_nothing_is_measured_where_nothing_is_to_choose(on_gpu, monkeypatch):
    two = SingleProcess()
    two.size = 2
    assert [chosen(on_gpu, f"--jit_compile={given}") for given in SECONDS] == list(SECONDS)
    assert chosen(on_gpu, ranks=two) == "auto"
    monkeypatch.setattr(compile_choice.device, "has_gpu", lambda: False)
    assert chosen(on_gpu) == "auto" and on_gpu == []
    assert device.pieces_to_compile("auto") == "views" == device.pieces_to_compile("views")


def test_a_measurement_leaves_the_run_as_it_would_be(tmp_path, monkeypatch, on_gpu):
    """A step is measured on this CPU; the weights of the run are those of a run without one."""
    flags = ("--arch=support.tiny_net", "--batch_size=8", "--queue_size=16", "--jit_compile=false")
    o = parse("pretrain", "--dataset=support.noise", *flags)
    monkeypatch.setattr(compile_choice, "_ENOUGH", 0.01)

    def weights():
        built = prepare.pretraining(o, SingleProcess()).method
        return [v.numpy() for v in built.query_encoder.variables]

    monkeypatch.setattr(compile_choice.device, "has_gpu", lambda: False)
    ranks = prepare.connect(o.device, o.run.seed)
    want = weights()
    ranks = prepare.connect(o.device, o.run.seed)
    assert 0 < pretraining.seconds_of_a_step(o, ranks) < 60
    monkeypatch.setattr(compile_choice.device, "has_gpu", lambda: True)
    automatic = define.replaced(o, jit_compile="auto")
    compile_choice.chosen(automatic, ranks, lambda each: SECONDS[each.device.jit_compile])
    monkeypatch.setattr(compile_choice.device, "has_gpu", lambda: False)
    assert all(np.array_equal(a, b) for a, b in zip(weights(), want, strict=True))
    assert list(tmp_path.iterdir()) == [tmp_path / "cache"]
