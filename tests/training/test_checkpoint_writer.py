"""Checkpoints beside training: what is saved is the state of its step, and what fails loses nothing."""

import contextlib
import pathlib
import resource
import threading

import numpy as np
import pytest
import tensorflow as tf
from support.checkpoints import arrays, names, save, state
from support.disks import small_disk

from moco_tf.errors import UserError
from moco_tf.training import checkpoint
from moco_tf.training.checkpoint_writer import Writer


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until the event is set."""
    event, write = threading.Event(), tf.train.Checkpoint.write

    def later(self, path, *rest):
        assert event.wait(30)
        return write(self, path, *rest)

    monkeypatch.setattr(tf.train.Checkpoint, "write", later)
    return event


def test_training_goes_on_and_changes_nothing_of_what_is_written(gate, tmp_path):
    trained = state(7)
    with Writer(tmp_path, 3) as writer:
        writer.save(7, trained, {})
        for variable in tf.nest.flatten(trained):
            variable.assign(variable + 1)  # the next step
        writer.check()
        assert checkpoint.existing(tmp_path) == []
        gate.set()
    found = state(0)
    checkpoint.restore(tmp_path / "step-00000007", found)
    for got, want in zip(arrays(found), arrays(state(7)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_updates_in_place_do_not_reach_what_is_written(gate, tmp_path):
    """Of the optimizer's fused kernel, a scatter into the queue, and what XLA compiles."""
    weight, velocity, queue = (tf.Variable(tf.ones([4, 2])) for _ in range(3))
    compiled = tf.Variable(tf.ones([4, 2]))
    with Writer(tmp_path, 1) as writer:
        writer.save(1, {"w": weight, "v": velocity, "queue": queue, "compiled": compiled}, {})
        tf.raw_ops.ResourceApplyMomentum(
            var=weight.handle, accum=velocity.handle, lr=1.0, grad=tf.ones([4, 2]), momentum=0.9
        )
        queue.scatter_nd_update([[1]], [[5.0, 5.0]])
        tf.function(lambda: compiled.assign(compiled * 3.0), jit_compile=True)()
        assert all(np.any(v.numpy() != 1.0) for v in (weight, velocity, queue, compiled))
        gate.set()
    reader = tf.train.load_checkpoint(str(tmp_path / "step-00000001" / "variables"))
    for name in ("w", "v", "queue", "compiled"):
        np.testing.assert_array_equal(reader.get_tensor(name + "/.ATTRIBUTES/VARIABLE_VALUE"), np.ones([4, 2]))


def test_the_next_save_waits_for_the_last(gate, tmp_path):
    with Writer(tmp_path, 3) as writer:
        writer.save(1, state(1), {})
        second = threading.Thread(target=writer.save, args=(2, state(2), {}))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        gate.set()
        second.join(30)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def failing(monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "write", fail)


def test_failure_is_raised_at_the_next_look_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    kept = save(tmp_path, 1)
    failing(monkeypatch)
    words = f"^cannot write a checkpoint to .*step-00000002 .*No space left.*; the last one is {kept}$"
    for look in ("check", "wait", "save", "end"):
        with pytest.raises(UserError, match=words), Writer(tmp_path, 1) as writer:
            writer.save(2, state(2), {})
            if look == "check":
                while True:
                    writer.check()
            if look != "end":
                getattr(writer, look)(*((3, state(3), {}) if look == "save" else ()))
    assert checkpoint.newest_sound(tmp_path) == (kept, [])


def test_what_stops_the_program_is_the_first_error(tmp_path, monkeypatch, capsys):
    failing(monkeypatch)
    with pytest.raises(KeyError, match="other"), Writer(tmp_path, 1) as writer:
        writer.save(2, state(2), {})
        raise KeyError("other")
    assert capsys.readouterr().err.startswith("cannot write a checkpoint to ")


def test_permanent_ones_are_kept_besides_the_newest(tmp_path):
    with Writer(tmp_path, 2) as writer:
        for step in range(1, 10):
            writer.save(step, state(step), {}, permanent=step % 3 == 0)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (3, 6, 8, 9)]
    save(tmp_path, 7, keep=1)  # a run that went on from an older one: later ones are broken, permanent or not
    assert names(tmp_path) == [f"step-0000000{step}" for step in (3, 6, 7)]


@pytest.mark.parametrize("where", [10, -10])
def test_what_reads_back_differently_is_not_taken_for_a_checkpoint(where, tmp_path, monkeypatch):
    kept, write = save(tmp_path, 1), tf.train.Checkpoint.write

    def wrong(self, path, *rest):
        write(self, path, *rest)
        file = pathlib.Path(f"{path}.data-00000-of-00001")
        data = bytearray(file.read_bytes())
        data[where] ^= 1
        file.write_bytes(data)

    monkeypatch.setattr(tf.train.Checkpoint, "write", wrong)
    with pytest.raises(UserError, match="cannot write a checkpoint to .*step-00000002"):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-00000001"] and checkpoint.newest_sound(tmp_path) == (kept, [])


@contextlib.contextmanager
def small_files(folder):
    """No file above 50 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limits", [small_disk, small_files])
def test_full_disk(limits, tmp_path):
    """The first of 12 kB fits, the second of 240 kB does not, a third one does."""
    with limits(tmp_path / "disk"):
        folder = tmp_path / "disk" / "checkpoints"
        kept = checkpoint.save(folder, 1, state(1, size=600), {}, 1)
        with pytest.raises(UserError, match=f"^cannot write a checkpoint to .*; the last one is {kept}$"):
            checkpoint.save(folder, 2, state(2, size=15_000), {}, 1)
        assert names(folder) == ["step-00000001"] and checkpoint.newest_sound(folder) == (kept, [])
        checkpoint.save(folder, 3, state(3, size=700), {}, 1)
        assert names(folder) == ["step-00000003"]
