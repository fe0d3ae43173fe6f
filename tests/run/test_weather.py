"""Bad weather during a run: one line each, and no finished checkpoint is lost."""

import json
import re
import shutil
import subprocess
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from support.checkpoints import state_at
from support.disks import small_disk
from support.programs import TINY, arguments, call, learnt, metrics, parse

from moco_tf.config.options import Pretrain
from moco_tf.contrast.collapse import has_collapsed
from moco_tf.errors import UserError
from moco_tf.methods.moco import MoCo
from moco_tf.networks.encoder import Encoder
from moco_tf.run import loop, program, resume
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint, optimizers, runlog, update
from moco_tf.training.collectives import SingleProcess
from moco_tf.training.lock import RunLock
from moco_tf.training.meter import Meter

SMALL = {**TINY, "width": 4, "knn_every": 0, "log_every": 1, "checkpoint_steps": 1, "keep": 1, "jit_compile": "false"}


def pretrain(photos, workdir, **values):
    values = {**SMALL, "dataset": "folder", "data_dir": photos, "workdir": workdir, **values}
    call("pretrain", "debug/pretrain.cfg", **values)


def stopped(words, photos, workdir, **values):
    """The line with which a run stops."""
    with pytest.raises(UserError, match=words) as caught:
        pretrain(photos, workdir, **values)
    runlog.close_all()  # as program.run does
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sound(run):
    """The newest checkpoint, which is whole and finite."""
    newest, complaints = checkpoint.newest_sound(run / "checkpoints")
    assert complaints == []
    arrays = state_at(run, int(newest.name[5:])).values()
    assert all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")
    return newest


def before_step(number, action, monkeypatch):
    """Something happens while a step is prepared."""
    steps = loop.steps

    def eventful(*args):
        for step, batch in steps(*args):
            if step == number:
                action()
            yield step, batch

    monkeypatch.setattr(loop, "steps", eventful)


# Disks and folders


def test_disk_full_while_checkpointing(photos, tmp_path, monkeypatch, capsys):
    """Metrics and TensorBoard write to the same full disk; when there is room again, the run goes on."""
    with small_disk(tmp_path / "disk", kilobytes=1200):
        run = tmp_path / "disk" / "run"
        fill = tmp_path / "disk" / "fill"
        with monkeypatch.context() as patch:
            before_step(3, lambda: fill_up(fill), patch)
            stopped("^cannot write .*(step-0000000|metrics.jsonl).*No space left.*; free or mend", photos, run, steps=6)
        assert sound(run).name in ("step-00000001", "step-00000002")  # one may still have been on its way
        fill.unlink()
        pretrain(photos, run, steps=3)
        assert [entry["step"] for entry in metrics(run)] == [1, 2, 3]
        assert "resuming from" in capsys.readouterr().out


def fill_up(path):
    with open(path, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


def test_run_folder_that_can_no_longer_be_written(photos, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def no_more():
        shutil.move(run / "checkpoints", tmp_path / "elsewhere")
        (run / "checkpoints").write_text("a file in its place")

    before_step(3, no_more, monkeypatch)
    stopped("^cannot write a checkpoint to .*step-0000000. .*; free or mend the disk$", photos, run)
    newest, complaints = checkpoint.newest_sound(tmp_path / "elsewhere")
    assert newest.name in ("step-00000001", "step-00000002") and complaints == []


def test_data_folder_that_disappears(photos, tmp_path, monkeypatch):
    """There are fewer images than --max_bad_images; some batches had been read ahead."""
    data = shutil.copytree(photos, tmp_path / "data")
    before_step(3, lambda: shutil.rmtree(data), monkeypatch)
    stopped("^folder: none of its 90 images can be read; .*No such file", data, tmp_path / "run", steps=9)
    assert sound(tmp_path / "run").name in ("step-00000003", "step-00000004", "step-00000005")


def test_file_that_the_system_refuses_is_one_line(monkeypatch, capsys):
    def missing(*_):
        open("/nowhere/at/all")  # noqa: SIM115

    assert end_of(missing, monkeypatch) == 1
    assert re.fullmatch(r"moco_tf\.\w+: /nowhere/at/all: No such file or directory; .*\n", capsys.readouterr().err)


def end_of(main, monkeypatch):
    """Exit status of a program with this main function."""
    monkeypatch.setattr("os._exit", lambda status: (_ for _ in ()).throw(SystemExit(status)))
    monkeypatch.setattr("sys.argv", ["pretrain"])
    parsed = parse("pretrain")
    monkeypatch.setattr(program.define, "parse", lambda kind, argv, values: values(["pretrain"]) and parsed)
    with pytest.raises(SystemExit) as caught:
        program.run(main, Pretrain)
    return caught.value.code


# Memory


@pytest.mark.parametrize(
    "error",
    [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]\n x")],
)
def test_out_of_memory_says_which_flags_help(error, monkeypatch, capsys):
    def main(*_):
        raise error

    assert end_of(main, monkeypatch) == 1
    line = capsys.readouterr().err
    assert "the memory is not enough" in line and "--batch_size=256" in line and "--precision=auto" in line
    assert line.count("\n") == 1 and "max_bad_images" not in line


def test_real_allocation_that_is_too_large(monkeypatch, capsys):
    assert end_of(lambda *_: np.ones([1 << 24, 1 << 24]), monkeypatch) == 1
    assert "the memory is not enough" in capsys.readouterr().err


# Numbers that are not finite


WILD = 1e30  # a learning rate that throws the weights far out


def test_weights_that_are_not_finite_are_not_kept(photos, tmp_path):
    """Loss and gradients, which are looked at first, are still finite: the decay of the weights overflows."""
    pretrain(photos, tmp_path / "run", steps=1)
    words = "^after step 2 query_encoder/.* and \\d+ more hold numbers that are not finite; no checkpoint of that"
    line = stopped(words, photos, tmp_path / "run", learning_rate=1e20, weight_decay=1e30, steps=6)
    assert f"is written, the last checkpoint is {sound(tmp_path / 'run')}; lower --learning_rate" in line


def test_loss_that_is_not_finite_stops_the_run(photos, tmp_path):
    """With an older checkpoint, of a run that went well until its learning rate was changed."""
    run = tmp_path / "run"
    pretrain(photos, run, steps=1)
    values = {"learning_rate": WILD, "steps": 8, "checkpoint_steps": 0, "checkpoint_every": 0}
    line = stopped("^the loss or a gradient of step [2-7] is not finite", photos, run, **values)
    names = r"(conv1|bn1|layer\d\.0\.\w+(\.\d)?|fc\.\d)\.(weight|bias)"
    assert re.search(rf"largest norms of parameters: {names} \S+, .*; of gradients: {names} (nan|inf)", line)
    assert f"the last checkpoint is {run}/checkpoints/step-00000001; lower --learning_rate" in line
    assert sound(run).name == "step-00000001" and "--nan_policy=skip" in line
    assert all(np.isfinite(entry["loss"]) for entry in metrics(run))


def small_moco(every_gradient=False):
    encoders = [Encoder("resnet10", stem="cifar", width=2, feature_dim=4) for _ in range(2)]
    method = MoCo(*encoders, queue_size=16)
    method.compile(optimizers.SGD(0.1))
    method.guard.every_gradient = every_gradient
    return method


def values_of(method):
    return {name: v.numpy() for name, v in method.query_encoder.named_variables().items()}


@pytest.mark.parametrize("policy, taken", [("stop", True), ("skip", False)])
def test_gradient_that_is_not_finite(policy, taken):
    """Without reading every gradient it is met one step later, by the loss; with --nan_policy=skip at once."""
    method = small_moco(policy == "skip")
    gradients = [tf.ones_like(v) for v in method.query_encoder.parameters()]
    gradients[3] = gradients[3] * np.nan
    before = values_of(method)
    method.apply(gradients, {"loss": tf.constant(1.0)})
    assert int(method.guard.left_out) == (not taken) and int(method.steps_done) == 1
    assert all(np.array_equal(before[name], value) for name, value in values_of(method).items()) != taken
    if not taken:
        assert int(method.guard.first) == 1 and np.isnan(method.guard.gradient_norms.numpy()).tolist().index(True) == 3
        method.apply([tf.ones_like(v) for v in method.query_encoder.parameters()], {"loss": tf.constant(1.0)})
        assert any(np.any(before[name] != value) for name, value in values_of(method).items())
    else:
        with pytest.raises(UserError, match=r"^after step 1 \S+, \S+ hold numbers that are not finite; no checkpoint"):
            update.check_state(method.state(), 1, lambda: "there is no checkpoint yet")


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_weights_do_not_take_part_in_a_step_of_such_a_loss(loss):
    method, graph = small_moco(), tf.function(lambda m, g, loss: m.apply(g, {"loss": loss}))
    before = values_of(method)
    graph(method, [tf.ones_like(v) for v in method.query_encoder.parameters()], tf.constant(loss, tf.float32))
    assert all(np.array_equal(before[name], value) for name, value in values_of(method).items())
    assert int(method.guard.left_out) == int(method.guard.first) == 1


def test_largest_norms():
    norms, weights = tf.constant([2.0, np.nan, np.inf, 7.0]), [tf.constant([3.0, 4.0]), *(tf.zeros([1]),) * 3]
    said = update.explanation(9, ["a", "b", "c", "d"], weights, norms, "kept")
    assert "of step 9 " in said and "parameters: a 5, b 0, c 0; of gradients: b nan, c inf, d 7; kept;" in said


def test_metrics_leave_out_what_is_not_finite():
    meter = Meter(8, {"loss": [2.0]})
    for loss, top1 in [(np.nan, np.nan), (4.0, np.inf)]:
        meter.add({"loss": tf.constant(loss), "top1": tf.constant(top1)})
    assert meter.pending()["loss"][::2] == [2.0, 4.0]
    values = meter.read()
    assert values["loss"] == 3.0 and "top1" not in values and values["images_per_second"] > 0
    assert not has_collapsed(np.nan, 128)  # a collapse is another illness


def test_clock_that_jumps(monkeypatch):
    """Back by an hour."""
    meter = Meter(8)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    meter.add({"loss": tf.constant(1.0)})
    time.sleep(0.01)
    assert 1 < meter.read()["images_per_second"] < 800


# Two jobs


def test_run_folder_in_use(tmp_path):
    with RunLock(tmp_path, 0.0) as first:
        first.acquire()
        holder = json.loads((tmp_path / ".lock").read_text())
        with pytest.raises(UserError, match=f"is in use by process {holder['pid']} on host {holder['host']}; "):
            RunLock(tmp_path, 0.3).acquire()
    with RunLock(tmp_path, 0.0) as second:
        second.acquire()


def test_lock_of_a_dead_process_is_taken_over(tmp_path):
    script = (
        f"from moco_tf.training.lock import RunLock; import os, pathlib; l = RunLock(pathlib.Path({str(tmp_path)!r}))"
    )
    child = subprocess.Popen(
        ["python", "-c", f"{script}; l.acquire(); print(os.getpid(), flush=True); input()"], **PIPES
    )
    assert child.stdout.readline() == f"{child.pid}\n".encode()
    with pytest.raises(UserError, match=f"is in use by process {child.pid} on host"):
        RunLock(tmp_path, 0.0).acquire()
    child.kill()
    child.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == child.pid
    with RunLock(tmp_path, 0.0) as lock:
        lock.acquire()


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def test_lock_on_a_file_system_without_locks(tmp_path, monkeypatch):
    """What the file says counts there."""

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    file = tmp_path / ".lock"
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    host = __import__("socket").gethostname()
    for holder, free in [
        ({"host": host, "pid": int(gone)}, True),
        ({"host": host, "pid": 1}, False),
        ({"host": "another", "pid": int(gone)}, False),
        ("garbage", True),
        ("", True),
    ]:
        file.write_text(json.dumps(holder) if isinstance(holder, dict) else holder)
        if free:
            with RunLock(tmp_path, 0.0) as lock:
                lock.acquire()
            assert file.read_text() == ""
        else:
            with pytest.raises(UserError, match="is in use by process"):
                RunLock(tmp_path, 0.0).acquire()
            assert json.loads(file.read_text()) == holder


# Going on with other flags


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A run of two steps."""

    workdir = tmp_path_factory.mktemp("runs") / "run"
    pretrain(photos, workdir, steps=2)
    return workdir


@pytest.mark.parametrize(
    "values, there, here",
    [
        ({"width": 8, "head": "linear"}, "--head=mlp --width=4", "--head=linear --width=8"),
        ({"queue_size": 128}, "--queue_size=64", "--queue_size=128"),
        ({"batch_size": 30, "learning_rate": 1.0}, "--batch_size=16", "--batch_size=30"),
        ({"method": "simclr"}, "--method=moco", "--method=simclr"),
        ({"optimizer": "adam", "seed": 3}, "--seed=0 --optimizer=sgd", "--seed=3 --optimizer=adam"),
        (
            {"temperature": 0.5, "key_momentum": 0.9},
            "--key_momentum=0.99 --temperature=0.2",
            "--key_momentum=0.9 --temperature=0.5",
        ),
        ({"symmetric": True}, "--symmetric=False", "--symmetric=True"),
        ({"precision": "float16"}, "--precision=auto", "--precision=float16"),
    ],
)
def test_flags_of_another_model_are_refused(values, there, here, finished, photos):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    line = stopped("^the run in .* has ", photos, finished, **{"steps": 4, **values})
    assert f" has {there} and came with {here}, which its checkpoint does not fit; give the same" in line
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_flags_that_may_change_are_said(finished, photos, capsys):
    pretrain(photos, finished, steps=2, learning_rate=0.5, epochs=7)
    out = capsys.readouterr().out
    assert "\nchanged: --learning_rate=0.5 (was 0.06), --epochs=7 (was 2)\n" in out


def test_flags_of_other_methods_may_differ():
    o = parse("pretrain", *arguments(method="simclr", queue_size=8))
    training = types.SimpleNamespace(options=o, folder=RunFolder.of("run"), facts={})
    resume.check(training, {"flags": {"method": "simclr", "queue_size": 9, "unknown": 1}})
    with pytest.raises(UserError, match="has --method=moco and came with --method=simclr"):
        resume.check(training, {"flags": {"method": "moco", "queue_size": 9}})


def test_another_number_of_ranks_and_images_is_said():
    o = parse("pretrain", *arguments(batch_size=64))
    training = types.SimpleNamespace(options=o, collectives=SingleProcess(), batch_size=64)
    training.about = lambda: {"num_examples": 90}
    lines = resume.changes(training, {"ranks": 4, "num_examples": 100, "flags": resume.flags_of(o)})
    assert [line.split(";")[0] for line in lines] == [
        "changed: 1 ranks (were 4) share the same global batch of 64, 64 images a rank",
        "warning: 90 training images, before 100: their order and the steps of an epoch are others from here on",
    ]
    assert resume.changes(training, {"ranks": 1, "num_examples": 90, "flags": resume.flags_of(o)}) == []


def test_a_run_of_two_ranks_goes_on_in_one_process(finished, photos, tmp_path, capsys):
    """Its checkpoint has statistics of two ranks: their means, which the encoders' groups hold, go on."""
    run = shutil.copytree(finished, tmp_path / "run")
    newest = run / "checkpoints" / "step-00000002"
    about, state = checkpoint.describe(newest), nested(state_at(run, 2))
    state["rank_statistics"] = tf.Variable(tf.repeat(state["rank_statistics"], 2, axis=0) * [[0.5], [1.5]])
    checkpoint.save(run / "checkpoints", 2, state, {**about, "ranks": 2}, 1)
    pretrain(photos, run, steps=3)
    pretrain(photos, shutil.copytree(finished, tmp_path / "one"), steps=3)
    assert "changed: 1 ranks (were 2) share the same global batch of 16" in capsys.readouterr().out
    assert learnt(run) == learnt(tmp_path / "one")


def nested(arrays):
    """A state of variables from a checkpoint's keys."""
    state = {}
    for key, array in arrays.items():
        if not key.endswith("/.ATTRIBUTES/VARIABLE_VALUE"):
            continue
        *groups, name = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").split("/")
        place = state
        for group in groups:
            place = place.setdefault(checkpoint._unescaped(group), {})
        place[checkpoint._unescaped(name)] = tf.Variable(array)
    return state
