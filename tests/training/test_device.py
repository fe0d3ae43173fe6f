"""What a run says of its device."""

import os

import pytest
import tensorflow as tf

from moco_tf.training import cuda, device


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A machine with two kinds of GPUs, of which TensorFlow sees the second."""
    cuda.nvidia_smi.cache_clear()
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'NVIDIA T4, 580.65.06, 15360 MiB'\necho 'NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["card"])
    details = {"device_name": "NVIDIA H100 80GB HBM3", "compute_capability": (9, 0)}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda card: details)
    yield
    cuda.nvidia_smi.cache_clear()


def test_gpu(card):
    assert device.description() == "NVIDIA H100 80GB HBM3, 81559 MiB of memory"


def test_gpu_without_its_tool(card, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert device.description() == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("driver", [True, False])
def test_cpu(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "DRIVER", tmp_path if driver else tmp_path / "none")
    words = "no GPU is visible to TensorFlow though this machine has an NVIDIA driver; see BUILD.md" if driver else ""
    assert words in device.description() and device.description().startswith("CPU")
