"""--bn and --compression as the programs take them, and the flag that --bn replaces."""

import types

import pytest
from absl import flags
from support.programs import arguments, parse

from moco_tf import pretrain
from moco_tf.errors import UserError
from moco_tf.run import build
from moco_tf.training import device

ONE, TWO = (types.SimpleNamespace(size=size, rank=0) for size in (1, 2))


def options(*argv, **values):
    return parse("pretrain", *arguments("debug/pretrain.cfg", workdir="run", **values), *argv)[0]


def test_shuffle_is_the_default():
    assert (options().bn, options().compression) == ("shuffle", "none")


@pytest.mark.parametrize(("old", "new"), [("--shuffle_bn", "shuffle"), ("--noshuffle_bn", "split")])
def test_flags_of_older_run_folders_are_read_and_written_anew(old, new, tmp_path):
    (tmp_path / "flags.cfg").write_text(f"{old}\n--epochs=3\n")
    o, text = parse("pretrain", f"--flagfile={tmp_path / 'flags.cfg'}")
    assert o.bn == new and not hasattr(o, "shuffle_bn")
    assert f"--bn={new}" in text.splitlines() and "shuffle_bn" not in text
    (tmp_path / "flags.cfg").write_text(text)
    assert parse("pretrain", f"--flagfile={tmp_path / 'flags.cfg'}")[1] == text


def test_old_and_new_flag_together_are_refused():
    with pytest.raises(flags.IllegalFlagValueError, match="both came; leave --shuffle_bn out"):
        options("--shuffle_bn", bn="sync")


def test_sync_is_the_whole_batch():
    with pytest.raises(UserError, match="--bn=sync came with --bn_splits=2, expected 1"):
        pretrain.check(options(bn="sync", bn_splits=2), ONE)
    pretrain.check(options(bn="split", bn_splits=2), ONE)


def test_sync_leaves_the_encoder_uncompiled(monkeypatch):
    """On several ranks; one rank has no collective."""
    assert build.pieces_to_compile(options(bn="sync", jit_compile="true"), ONE) == "all"
    with pytest.raises(UserError, match="--bn=sync came with --jit_compile=true on 2 ranks, expected auto or false"):
        pretrain.check(options(bn="sync", jit_compile="true"), TWO)
    assert build.pieces_to_compile(options(bn="shuffle", jit_compile="true"), TWO) == "all"
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    assert build.pieces_to_compile(options(bn="sync"), TWO) == "views"
    assert build.pieces_to_compile(options(bn="shuffle"), TWO) == "all"
