"""Programs that refuse their flags in one line and write nothing."""

import pathlib
import time

import pytest
from absl import flags

from moco_tf.errors import UserError
from support.programs import TINY, call

LIMIT = 3  # seconds of the processor for a refusal, TensorFlow loaded


def refusal(program, *words, left=False, **values):
    """The message of a program that refuses these flags, which holds the words; nothing was written."""
    file = {"pretrain": ["debug/pretrain.cfg"], "lincls": ["debug/lincls.cfg"]}.get(program, [])
    began = time.process_time()
    with pytest.raises((UserError, flags.Error)) as caught:
        call(program, *file, **values)
    assert left or time.process_time() - began < LIMIT  # `left`: steps were taken before
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    if not left and values.get("workdir"):
        assert not pathlib.Path(values["workdir"]).exists()
    return message


def pretrain(*words, data_dir, workdir, left=False, **values):
    values = {**TINY, "dataset": "folder", "knn_every": 0, "jit_compile": "false", **values}
    return refusal("pretrain", *words, left=left, data_dir=data_dir, workdir=workdir, **values)
