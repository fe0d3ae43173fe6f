"""--bn and --compression as the programs take them, and the flag that --bn replaces."""

import types

import pytest
from absl import flags
from support.programs import arguments, parse

from moco_tf.errors import UserError
from moco_tf.run import prepare
from moco_tf.training import device

ONE, TWO = (types.SimpleNamespace(size=size, rank=0) for size in (1, 2))


def options(*argv, **values):
    return parse("pretrain", *arguments("debug/pretrain.cfg", workdir="run", **values), *argv)


def test_shuffle_is_the_default():
    assert (options().method.bn, options().method.compression) == ("shuffle", "none")


@pytest.mark.parametrize("old", ["--shuffle_bn", "--noshuffle_bn"])
def test_the_flag_that_bn_replaces_says_so(old, tmp_path):
    (tmp_path / "flags.cfg").write_text(f"{old}\n--epochs=3\n")
    words = f"^{old} is gone: give --bn=shuffle, or --bn=split in place of --noshuffle_bn$"
    with pytest.raises(flags.Error, match=words):
        parse("pretrain", f"--flagfile={tmp_path / 'flags.cfg'}")


def test_sync_is_the_whole_batch():
    with pytest.raises(UserError, match="--bn=sync came with --bn_splits=2, expected 1"):
        prepare.check(options(bn="sync", bn_splits=2), ONE)
    prepare.check(options(bn="split", bn_splits=2), ONE)


def test_sync_leaves_the_encoder_uncompiled(monkeypatch):
    """On several ranks; one rank has no collective."""
    assert prepare.pieces_to_compile(options(bn="sync", jit_compile="true"), ONE) == "all"
    with pytest.raises(UserError, match="--bn=sync came with --jit_compile=true on 2 ranks, expected auto or false"):
        prepare.check(options(bn="sync", jit_compile="true"), TWO)
    assert prepare.pieces_to_compile(options(bn="shuffle", jit_compile="true"), TWO) == "all"
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    assert prepare.pieces_to_compile(options(bn="sync"), TWO) == "views"
    assert prepare.pieces_to_compile(options(bn="shuffle"), TWO) == "all"
