"""What is checked before a GPU computes: every check on both sides of its bound, on machines that are made up."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from moco_tf.errors import UserError
from moco_tf.training import collectives, cuda, device, gpu, launcher
from moco_tf.training.cuda import Tool
from moco_tf.training.gpu import Found

H100 = ("NVIDIA H100 80GB HBM3", (9, 0))
GOOD = Found(
    cards=(H100,),
    driver_cards=(H100[0],),
    driver=(580, 65, 6),
    cuda=(12, 5, 1),
    cudnn=(9, 24, 0),
    ptxas=Tool("/cuda/bin/ptxas", (12, 9, 86)),
)


def of(**values):
    """The good machine with other values; `capability` stands for another card."""
    if "capability" in values:
        values["cards"] = (("NVIDIA T4", values.pop("capability")),)
    return dataclasses.replace(GOOD, **values)


def ptxas(*version):
    return Tool("/old/bin/ptxas", version)


def blind(**values):
    """A machine whose GPU TensorFlow does not see."""
    return of(cards=(), **values)


@pytest.mark.parametrize("version", [(12, 6, 85), (12, 9, 86), (13, 0, 88), (11, 8, 89)])
def test_good_assemblers(version):
    assert gpu.findings(of(ptxas=ptxas(*version))) == []


@pytest.mark.parametrize("version", [(12, 0, 76), (12, 5, 82), (12, 6, 20), (12, 6, 84)])
@pytest.mark.parametrize("capability", [(9, 0), (10, 0)])
def test_assemblers_of_wrong_gathers(version, capability):
    (found,) = gpu.findings(of(ptxas=ptxas(*version), capability=capability))
    shown = ".".join(map(str, version))
    assert found.refuses_xla
    assert found.text.startswith(f"/old/bin/ptxas of version {shown} came, expected 12.6.85 or newer: on compute")
    for remedy in ("nvidia-cuda-nvcc-cu12", "XLA_FLAGS=--xla_gpu_cuda_data_dir=", "PATH", "--jit_compile=false"):
        assert remedy in found.text


def test_assemblers_below_capability_9():
    """NVIDIA's bug is of Hopper and newer."""
    assert gpu.findings(of(ptxas=ptxas(12, 5, 82), capability=(8, 9))) == []


def test_no_assembler():
    (found,) = gpu.findings(of(ptxas=None, passed_over=(ptxas(12, 3, 103),)))
    assert found.refuses_xla and found.text.startswith(
        "XLA finds no ptxas, expected one from 12.6.85 on; XLA does not take /old/bin/ptxas of version 12.3.103; pip"
    )


@pytest.mark.parametrize("version, warns", [((9, 3, 0), True), ((9, 23, 9), True), ((9, 24, 0), False), ((), False)])
def test_cudnn(version, warns):
    found = gpu.findings(of(cudnn=version))
    assert len(found) == warns
    if warns:
        shown = ".".join(map(str, version))
        assert not found[0].refuses_xla
        assert found[0].text.startswith(f"warning: cuDNN {shown} came, expected 9.24 or newer: XLA may fail")
        assert "pip install -U 'nvidia-cudnn-cu12>=9.24'" in found[0].text


@pytest.mark.parametrize("capability, refuses", [((8, 9), False), ((9, 0), False), ((10, 0), False), ((12, 0), True)])
def test_capability(capability, refuses):
    found = gpu.findings(of(capability=capability))
    assert [f.refuses_xla for f in found] == [True] * refuses
    if refuses:
        assert found[0].text.startswith("a GPU of compute capability 12.0 came, expected below 12: XLA of TensorFlow")


@pytest.mark.parametrize("version, warns", [((525, 60, 12), True), ((525, 60, 13), False), ((), False)])
def test_driver(version, warns):
    for machine in (of(driver=version), blind(driver=version)):
        found = [f.text for f in gpu.findings(machine) if "driver" in f.text]
        assert len(found) == warns
        if warns:
            assert found[0].startswith("NVIDIA's driver 525.60.12 came, expected 525.60.13 or newer for CUDA 12.5.1")


@pytest.mark.parametrize(
    "machine, says",
    [
        (
            blind(missing=("libcusolver.so.11",), folders=("/site/nvidia/cusolver/lib",)),
            "cannot load libcusolver.so.11; p",
        ),
        (
            blind(missing=("libcusolver.so.11",), folders=("/site/nvidia/cusolver/lib",)),
            "put /site/nvidia/cusolver/lib on",
        ),
        (blind(missing=("libcudnn.so.9", "libcufft.so.11")), "cannot load libcudnn.so.9, libcufft.so.11; pip install"),
        (blind(cuda=()), "this TensorFlow was built for CPUs; pip install 'tensorflow[and-cuda]==2.21.*'"),
        (blind(), "all libraries load; start it with TF_CPP_MIN_LOG_LEVEL=0"),
    ],
)
def test_no_gpu(machine, says):
    (found,) = gpu.findings(machine)
    assert says in found.text and not found.refuses_xla
    assert "TensorFlow sees no GPU, and nvidia-smi shows NVIDIA H100 80GB HBM3" in found.text


def test_nothing_is_wrong_without_a_gpu():
    assert gpu.findings(Found()) == []


class Ranks(collectives.SingleProcess):
    """Rank 0 of three, of which ranks 1 and 2 have found `others`."""

    size = 3

    def __init__(self, *others):
        self.others = "".join(json.dumps([f.text, f.refuses_xla, rank]) + "\n" for rank, f in others)

    def allgather(self, rows):
        return tf.concat([rows, np.frombuffer(self.others.encode(), np.uint8)], axis=0)


@pytest.fixture
def machine(monkeypatch):
    """Sets what is found."""
    launcher.note.cache_clear()
    yield lambda found: monkeypatch.setattr(gpu, "found", lambda: found)
    launcher.note.cache_clear()
    gpu._reasons.clear()


def test_auto_goes_on_without_xla_and_says_so_and_true_is_refused(machine, capsys):
    machine(of(ptxas=ptxas(12, 5, 82), cudnn=(9, 3, 0)))
    gpu.check(collectives.SingleProcess())
    assert device.pieces_to_compile("auto") == device.pieces_to_compile("auto") == "none"
    assert device.pieces_to_compile("false") == "none"
    warning, said = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: cuDNN 9.3.0 came")
    assert said.startswith("computing without XLA: /old/bin/ptxas of version 12.5.82 came, expected 12.6.85 or newer")
    with pytest.raises(UserError, match="--jit_compile=true came, expected auto or false on this machine: /old/bin/pt"):
        device.pieces_to_compile("true")


def test_one_ranks_refusal_is_all_ranks(machine, capsys):
    """Rank 2 has another card; rank 1 lacks a library, which it does not say itself."""
    machine(GOOD)
    other = gpu.findings(of(capability=(12, 0)))[0]
    gpu.check(Ranks((1, gpu.findings(blind(missing=("libcufft.so.11",)))[0]), (2, other)))
    assert capsys.readouterr().out.startswith("rank 1: computing on the CPU: TensorFlow sees no GPU")
    assert gpu.why_not_compile() == f"rank 2: {other.text}"
    with pytest.raises(UserError, match="rank 2: a GPU of compute capability 12"):
        device.pieces_to_compile("true")
    gpu.check(Ranks())  # an elastic job without that rank
    assert gpu.why_not_compile() == "" and device.pieces_to_compile("true") == "all"


def test_the_same_on_all_ranks_is_said_once(machine, capsys):
    machine(of(cudnn=(9, 3, 0)))
    warning = gpu.findings(of(cudnn=(9, 3, 0)))[0]
    gpu.check(Ranks((1, warning), (2, warning)))
    assert capsys.readouterr().out == f"{warning.text}\n"


def test_clustering_by_the_users_flags_is_refused(machine, monkeypatch):
    machine(of(capability=(12, 0)))
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_auto_jit=2")
    with pytest.raises(UserError, match="TF_XLA_FLAGS came with tf_xla_auto_jit, expected without: a GPU of compute"):
        gpu.check(collectives.SingleProcess())


def test_self_test_where_xla_may_compile(machine):
    """Not without a GPU, and not where it would end the process."""
    calls = []

    def failing():
        calls.append(1)
        return "wrong rows"

    for found, called, why in ((GOOD, 1, "wrong rows"), (Found(), 0, ""), (of(capability=(12, 0)), 0, "a GPU of")):
        calls.clear()
        machine(found)
        gpu.check(collectives.SingleProcess(), failing)
        assert len(calls) == called and gpu.why_not_compile().startswith(why) and bool(why) == bool(gpu._reasons)


def tool(folder, version):
    """A program `ptxas` of this version in folder/bin."""
    path = folder / "bin" / "ptxas"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release 12.5, V{version}'\n")
    path.chmod(0o755)
    return str(path)


def test_which_assembler_xla_takes(tmp_path, monkeypatch):
    """--xla_gpu_cuda_data_dir, then PATH; not 12.3.103, and none before 11.8."""
    given, first, second = (
        tool(tmp_path / name, version) for name, version in (("g", "12.9.86"), ("a", "12.3.103"), ("b", "12.5.82"))
    )
    old = tool(tmp_path / "old", "11.7.99")
    path = os.pathsep.join(os.path.dirname(name) for name in (old, first, second))
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("XLA_FLAGS", "")
    passed_over = (Tool(old, (11, 7, 99)), Tool(first, (12, 3, 103)))
    assert cuda.assemblers() == (Tool(second, (12, 5, 82)), passed_over)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_foo=1 --xla_gpu_cuda_data_dir={tmp_path / 'g'}")
    assert cuda.assemblers() == (Tool(given, (12, 9, 86)), ())


def test_what_a_blind_machine_has(tmp_path, monkeypatch):
    """A driver, pip's cuSOLVER, which TensorFlow does not look for in its folder, and no other library of CUDA."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA L4, 470.10.1, 23034 MiB'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "cusolver" / "lib").mkdir(parents=True)
    (tmp_path / "cusolver" / "lib" / "libcusolver.so.11").touch()
    monkeypatch.setattr(cuda, "pip", lambda: tmp_path)
    monkeypatch.setattr(cuda, "load", lambda name: None if name in ("libcusolver.so.11", "libcudnn.so.9") else name)
    cuda.nvidia_smi.cache_clear()
    found = gpu.found.__wrapped__()
    assert found.driver_cards == ("NVIDIA L4",) and found.driver == (470, 10, 1) and found.cards == ()
    assert found.missing == ("libcusolver.so.11", "libcudnn.so.9") and found.folders == ()
    monkeypatch.setattr(cuda, "cudnn_version", lambda: (9, 24, 0))
    monkeypatch.setattr(cuda, "load", lambda name: None if name == "libcusolver.so.11" else 1)
    assert gpu.found.__wrapped__().folders == (str(tmp_path / "cusolver" / "lib"),)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # the user wants none
    assert gpu.found.__wrapped__() == Found()
    cuda.nvidia_smi.cache_clear()


def test_models_that_the_driver_shows(tmp_path, monkeypatch):
    (tmp_path / "gpus" / "0").mkdir(parents=True)
    (tmp_path / "gpus" / "0" / "information").write_text("Model: \t\t NVIDIA A10G\nIRQ:   \t\t 10\n")
    monkeypatch.setattr(cuda, "DRIVER", tmp_path)
    assert cuda.models() == ["NVIDIA A10G"]


def test_report_is_json(machine):
    machine(of(ptxas=None))
    found = json.loads(json.dumps(gpu.report()))
    assert found["found"]["driver"] == [580, 65, 6]
    assert [f["refuses_xla"] for f in found["findings"]] == [True]
