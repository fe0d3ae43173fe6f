"""Test set-up: quiet TensorFlow, no GPU surprises, helper modules of this folder importable."""

import os
import pathlib
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture
def in_process(monkeypatch):
    """TensorFlow of this process has chosen its threads already."""
    from moco_tf.training import device

    monkeypatch.setattr(device, "configure", lambda *_: None)
