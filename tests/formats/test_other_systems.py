"""Files of the systems that people come from: any prefix and container, what is chosen, left out and refused."""

import json
import pathlib
import time

import numpy as np
import pytest
from support.foreign_networks import DEPTHS, network

from moco_tf.errors import UserError
from moco_tf.formats import foreign
from moco_tf.formats import pth as torch_file
from moco_tf.formats.load import announced, load
from moco_tf.formats.torchvision import get_weights

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "torch_files" / "resnet10.safetensors"
QUERY, KEY = network(seed=1, head="none"), network(seed=2, head="none")
NUMBERED = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def numbered(state):
    """As nn.Sequential(*resnet.children()) names them."""
    parts = ((name.partition("."), value) for name, value in state.items())
    return {f"{NUMBERED[first]}.{rest}": value for (first, _, rest), value in parts}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


PREFIXES = ["module.", "backbone.", "encoder.", "encoder_q.", "encoder_q.0.", "base_encoder.", "online_network."]
PREFIXES += ["model.", "net.", "f.", "enc.", "student.", "_orig_mod.", "teacher.", "ema.", "a_name_of_nobody."]
PREFIXES += ["module.encoder.backbone.", "_orig_mod.module.encoder_q.", "encoder.module."]


@pytest.mark.parametrize("place", ["", "state_dict", "model", "net", "model_state_dict", "teacher", "ema", "student"])
def test_any_prefix_in_any_container(place):
    """An encoder and nothing else is found behind each prefix, with thop's counts passed over."""
    for prefix in ["", *PREFIXES]:
        counts = {"total_ops": np.zeros(1), "layer1.0.conv1.total_params": np.zeros(1), "bn1.total_ops": np.zeros(1)}
        state = prefixed(prefix, {**QUERY, **counts, "bn1.num_batches_tracked": np.int64(3)})
        data = {"epoch": 7, place: state, "optimizer": {"state": {0: {}}}} if place else state
        found = foreign._from_torch(data)
        same(found.encoder, QUERY)
        assert (found.key_encoder, found.notes, found.epoch) == (None, (), 7 if place else None), prefix
    same(foreign._from_torch({place: {"deeper": numbered(QUERY)}}).encoder, QUERY)
    same(foreign._from_torch({place: prefixed("backbone.", numbered(QUERY))}).encoder, QUERY)


PAIRS = [
    ("module.encoder_q.", "module.encoder_k."),
    ("module.base_encoder.", "module.momentum_encoder."),
    ("online_network.", "target_network."),
    ("backbone.", "momentum_backbone."),
    ("student.", "teacher."),
    ("online_encoder.net.", "target_encoder.net."),
    ("model.", "ema."),
    ("state_dict.", "state_dict_ema."),
]


@pytest.mark.parametrize("query, key", PAIRS)
def test_of_two_encoders_the_one_that_learns_is_taken_and_said(query, key):
    for state in (prefixed(query, QUERY) | prefixed(key, KEY), prefixed(key, KEY) | prefixed(query, QUERY)):
        found = foreign._from_torch({"checkpoint": state})
        same(found.encoder, QUERY)
        same(found.key_encoder, KEY)
        (note,) = found.notes
        assert f"of 2 encoders checkpoint.{query[:-1]} is taken, checkpoint.{key[:-1]} as its key encoder" == note


def test_a_third_encoder_is_left_out_by_name():
    state = prefixed("a.", QUERY) | prefixed("b.", KEY) | prefixed("teacher.", KEY)
    taken, left = foreign._from_torch(state).notes
    assert taken == "of 3 encoders a is taken, teacher as its key encoder" and left.startswith("left out: b;")


QUEUE = np.arange(12, dtype="f4").reshape(3, 4)  # CxK
WITH_FC = network(seed=1, head="linear")
UNFIT = {  # what stands beside the encoder "student.", and what is said to be left out
    "queue, queue_ptr": {"queue": np.zeros((2, 3, 4), "f4"), "queue_ptr": np.zeros(2, "i8")},
    "moco.queue": {"moco.queue": np.zeros((3, 4), "i8")},
    "queue_ptr": {"queue": QUEUE, "queue_ptr": np.array(4)},
    "m.queue_ptr": {"m.queue": QUEUE, "m.queue_ptr": np.zeros(2, "i8")},
    "teacher": prefixed("teacher.", network(width=8, head="linear")),
    "ema": prefixed("ema.", KEY),  # without the fc of the other
    "encoder_k": prefixed("encoder_k.", {**WITH_FC, "conv1.weight": np.zeros((4, 3, 7, 7), "i8")}),
}


@pytest.mark.parametrize("left", UNFIT)
def test_what_does_not_fit_the_encoder_is_left_out_by_name(left):
    found = foreign._from_torch(prefixed("student.", WITH_FC) | UNFIT[left])
    same(found.encoder, WITH_FC)
    assert found.key_encoder is None and found.queue_pointer is None
    assert (found.queue is not None) == left.endswith("queue_ptr") - left.startswith("queue,")
    assert found.notes[-1].startswith(f"left out: {left}; read are")
    assert found.notes[:-1] == (() if "queue" in left else ("of 2 encoders student is taken",))


def test_a_key_encoder_is_one_that_fits():
    state = (
        WITH_FC | prefixed("ema.", KEY) | prefixed("teacher.", WITH_FC) | {"queue": QUEUE, "queue_ptr": np.array([3])}
    )
    found = foreign._from_torch(state)
    same(found.key_encoder, WITH_FC)
    np.testing.assert_array_equal(found.queue, QUEUE.T)
    assert found.queue_pointer == 3
    assert found.notes[0] == "of 3 encoders the file's own is taken, teacher as its key encoder"
    assert found.notes[1].startswith("left out: ema;")


def test_thousands_of_networks_are_refused_at_once():
    """Each would cost a look at all names."""
    for name in ("layer1.0.conv1.weight", "3.0.conv1.weight"):
        data = {f"{i}th.{name}": np.zeros((1, 1, 1, 1), "f4") for i in range(5_000)}
        start = time.monotonic()
        with pytest.raises(UserError, match="expected"):
            foreign._from_torch(data)
        assert time.monotonic() - start < 10


HEADS = {
    "fc.0, fc.3": {f"encoder.fc.{n}.weight": np.zeros((5, 32), "f4") for n in (0, 3)},  # no bias in the second
    "projection_head.0": {f"projection_head.0.{part}": np.zeros((3, 3), "f4") for part in ("weight", "bias")},
    "classifier": {"encoder.classifier.weight": np.zeros((3, 32), "f4")},
    "predictor.1": {"predictor.1.running_mean": np.zeros(3, "f4")},
    "prototypes": {"prototypes.weight": np.zeros((3, 3), "f4")},
}


@pytest.mark.parametrize("words", HEADS)
def test_an_unknown_head_is_left_out_by_name(words, tmp_path, capsys):
    """The backbone loads; the pooled features are its output."""
    torch_file.write_tensors(tmp_path / "x.pth", prefixed("encoder.", QUERY) | HEADS[words])
    loaded = announced(str(tmp_path / "x.pth"))
    same(get_weights(loaded.encoder), QUERY)
    assert loaded.encoder.config["head"] == "none"
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/x.pth: left out: ") and all(name in said for name in words.split(", "))


def test_names_of_shortcuts():
    same(foreign._from_torch({n.replace("downsample", "shortcut"): v for n, v in QUERY.items()}).encoder, QUERY)


def test_resnet_101(tmp_path):
    state = network("resnet101", 4, 7, "none")
    assert sum(name.endswith("conv3.weight") for name in state) == sum(DEPTHS["resnet101"])
    torch_file.write_tensors(tmp_path / "x.pth", state)
    encoder = load(str(tmp_path / "x.pth")).encoder
    same(get_weights(encoder), state)
    assert (encoder.config["arch"], encoder.backbone.features) == ("resnet101", 128)


def kernels(scale, groups=1):
    """A ResNet-50 whose inner convolutions are wider, in groups."""
    state = network("resnet50", 64, 7, "none")
    inner = 64 * scale
    return state | {
        "layer1.0.conv1.weight": np.zeros((inner, 64, 1, 1), "f4"),
        "layer1.0.conv2.weight": np.zeros((inner, inner // groups, 3, 3), "f4"),
    }


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: kernels(2), "a wide ResNet (wide_resnet50_2)"),
        (lambda: kernels(2, groups=32), "a ResNeXt (resnext50_32x4d: convolutions in groups)"),
        (lambda: {**QUERY, "conv1.weight": np.zeros((4, 1, 7, 7), "f4")}, "images of 1 channel:"),
        (lambda: {**QUERY, "conv1.weight": np.zeros((4, 4, 7, 7), "f4")}, "images of 4 channels"),
        (lambda: {**QUERY, "layer1.0.se.fc.weight": np.zeros((4, 4), "f4")}, "other layers, layer1.0.se.fc.weight"),
        (lambda: {**QUERY, "conv2.weight": np.zeros((4, 4, 3, 3), "f4")}, "other layers, conv2.weight"),
        (lambda: {**QUERY, "conv1.0.weight": np.zeros((4, 3, 3, 3), "f4")}, "a deep stem (conv1.0)"),
        (lambda: network("resnet18") | {"layer2.2.conv1.weight": np.zeros((8, 8, 3, 3), "f4")}, "another depth"),
    ],
)
def test_other_networks_are_refused_by_their_name(make, words, tmp_path):
    torch_file.write_tensors(tmp_path / "x.pth", prefixed("module.", make()))
    with pytest.raises(UserError) as caught:
        load(str(tmp_path / "x.pth"))
    message = str(caught.value)
    assert words in message and "expected torchvision's names of resnet10, resnet18" in message and "\n" not in message


# .safetensors


def test_a_file_of_the_safetensors_package():
    """The fixture was written by safetensors 0.8.0 from network("resnet10", 2), in four types of numbers."""
    state = network("resnet10", 2)
    found = foreign.read_state(FIXTURE)
    assert found.source == "torchvision .safetensors"
    assert found.encoder.keys() == state.keys()
    for name, value in state.items():
        kind = {"bn1.weight": np.float16, "bn1.bias": np.float64}.get(name, np.float32)
        if name == "conv1.weight":  # bfloat16: the upper half of the bits, rounded
            np.testing.assert_allclose(found.encoder[name], value, rtol=2**-8)
            assert not (found.encoder[name].view(np.uint32) & 0xFFFF).any()
        else:
            np.testing.assert_array_equal(found.encoder[name], value.astype(kind).astype(np.float32))
    assert load(str(FIXTURE)).encoder.config["head"] == "linear"


def write_safetensors(path, header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(4,), data_offsets=(0, 16)):
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": data_offsets}}


SAFETENSORS = {
    "beyond the end": entry(data_offsets=(4, 20)),
    "negative": entry(data_offsets=(-16, 0)),
    "backwards": entry(data_offsets=(16, 0)),
    "another size": entry(shape=(5,)),
    "a negative shape": entry(shape=(-2, -2)),
    "huge": entry(shape=(2**62, 2**62), data_offsets=(0, 2**126)),
    "a fraction": entry(data_offsets=(0.0, 16.0)),
    "an unknown type": entry(dtype="F8_E4M3", shape=(16,)),
    "many of the same bytes": {f"x{i}": entry()["x"] for i in range(3)},
    "no entry": {"x": 3},
    "a missing part": {"x": {"dtype": "F32"}},
    "a part too many": {"x": entry()["x"] | {"path": "/etc/passwd"}},
    "no JSON": b"{nothing",
    "deep": b'{"a":' + b"[" * 100_000,
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_damaged_safetensors_are_refused(case, tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", SAFETENSORS[case])
    with pytest.raises(UserError, match="x.safetensors: a .safetensors that is damaged") as caught:
        foreign.read_state(path)
    assert "\n" not in str(caught.value)


def test_cut_safetensors_are_refused(tmp_path):
    content = FIXTURE.read_bytes()
    for size in (0, 7, 9, 100, 5000, len(content) - 1):
        (tmp_path / "x.safetensors").write_bytes(content[:size])
        with pytest.raises(UserError, match=r"x\.safetensors"):
            foreign.read_state(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="a header of 9223372036854775807 bytes"):
        foreign.read_state(write_safetensors(tmp_path / "x.safetensors", entry(), length=2**63 - 1))


# What stands in place of a file.

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 45\n"
HTML = [
    b"<!DOCTYPE html><html><head><title>Sign in</title>",
    b"\n <html lang=en><body>Quota exceeded",
    b"<!doctype HTML>",
]


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pt", ".safetensors", ".npz", ".h5", ".keras", ".pkl", ".bin"])
def test_pointers_and_pages_are_called_so(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    for content, words in [(LFS, "a Git LFS pointer.*git lfs pull"), *((page, "an HTML page") for page in HTML)]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            load(str(path))
