"""Weights of other implementations: names, layouts, queues and architectures."""

import lzma
import shutil

import numpy as np
import pytest
from support import parity_files, parity_weights
from support.foreign_networks import BOTTLENECKS, DEPTHS, network

from moco_tf.errors import UserError
from moco_tf.formats import architecture, foreign, tensorpack
from moco_tf.formats import pth as torch_file


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == np.float32 and left[name].flags.c_contiguous
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def read(tmp_path, state):
    torch_file.write_tensors(tmp_path / "weights.pth", state)
    return foreign.read_state(tmp_path / "weights.pth")


# PyTorch's files.


def test_official_checkpoint(tmp_path):
    """A file that facebookresearch/moco wrote: encoders, queue, and the head's output from the pooled features."""
    archive = parity_files.path("official_resnet18_v2.pth.tar.xz")
    expected = np.load(parity_files.path("official_resnet18_v2_expected.npz"))
    with lzma.open(archive) as source, (tmp_path / "moco.pth.tar").open("wb") as target:
        shutil.copyfileobj(source, target)
    found = foreign.read_state(tmp_path / "moco.pth.tar")
    assert (found.source, found.arch, found.epoch) == ("moco .pth.tar", "resnet18", 200)
    assert architecture.describe(found.encoder) == architecture.Architecture(
        "resnet18", 64, "imagenet", "mlp", 128, 512
    )
    shapes = {name: shape for name, shape, _ in parity_weights.parameter_shapes("resnet18", head="mlp")}
    architecture.check_against(found.encoder, shapes)
    architecture.check_against(found.key_encoder, shapes)
    assert any(not np.array_equal(found.encoder[name], found.key_encoder[name]) for name in shapes)
    np.testing.assert_array_equal(found.queue, expected["queue"].T)
    assert found.queue.shape == (64, 128) and 0 <= found.queue_pointer < 64
    hidden = np.maximum(expected["pooled"] @ found.encoder["fc.0.weight"].T + found.encoder["fc.0.bias"], 0)
    output = hidden @ found.encoder["fc.2.weight"].T + found.encoder["fc.2.bias"]
    np.testing.assert_allclose(output, expected["output"], atol=1e-4 * np.abs(expected["output"]).max())
    with pytest.raises(UserError, match="xz -d"):
        foreign.read_state(archive)


@pytest.mark.parametrize("wrap", ["module.", ""])
def test_moco_state(tmp_path, wrap):
    query, key = network(seed=1), network(seed=2)
    queue = np.random.default_rng(0).normal(size=(6, 16)).astype("f4")  # CxK
    state = prefixed("encoder_q.", query) | prefixed("encoder_k.", key)
    state |= {"encoder_q.bn1.num_batches_tracked": np.int64(3), "queue": queue, "queue_ptr": np.array([8])}
    found = read(tmp_path, prefixed(wrap, state))
    same(found.encoder, query)
    same(found.key_encoder, key)
    np.testing.assert_array_equal(found.queue, queue.T)
    assert (found.queue_pointer, found.epoch, found.arch, found.source) == (8, None, None, "moco .pth.tar")


@pytest.mark.parametrize("wrap", ["module.", ""])
def test_torchvision_state(tmp_path, wrap):
    state = network()
    found = read(tmp_path, prefixed(wrap, {**state, "bn1.num_batches_tracked": np.int64(1)}))
    same(found.encoder, state)
    assert (found.key_encoder, found.queue, found.queue_pointer) == (None, None, None)
    assert found.source == "torchvision .pth"


def test_half_precision_becomes_float32(tmp_path):
    state = {name: value.astype("f2") for name, value in network().items()}
    same(read(tmp_path, state).encoder, {name: value.astype("f4") for name, value in state.items()})


@pytest.mark.parametrize("prefix", ["encoder_q.", ""])
def test_cifar_notebook_names(tmp_path, prefix):
    state = network(kernel=3)
    layers = {"conv1": "0", "bn1": "1", "layer1": "3", "layer2": "4", "layer3": "5", "layer4": "6", "fc": "9"}
    renamed = {f"net.{layers[name.split('.')[0]]}.{name.split('.', 1)[1]}": value for name, value in state.items()}
    found = read(tmp_path, prefixed(prefix, renamed))
    same(found.encoder, state)
    assert architecture.describe(found.encoder).stem == "cifar"


def test_files_without_an_encoder_are_refused(tmp_path):
    cases = {
        "conv1.weight": {"embedding.weight": np.zeros((2, 2), "f4")},
        "floating-point": {**network(), "conv1.weight": np.zeros(2, "i8")},
        "no names": {},
    }
    for word, state in cases.items():
        with pytest.raises(UserError, match=word) as caught:
            read(tmp_path, state)
        assert "weights.pth" in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "list.pth").write_bytes(b"\x80\x02]\x2e")
    with pytest.raises(UserError, match="neither PyTorch's nor"):
        foreign.read_state(tmp_path / "list.pth")
    with pytest.raises(UserError, match="No such file"):
        foreign.read_state(tmp_path / "nothing.pth")


def test_other_contents_of_a_pickle_are_refused():
    for data in ([1], None, "text", {"state_dict": [1]}, {1: np.zeros(1)}, {"state_dict": {"conv1.weight": [1]}}):
        with pytest.raises(UserError, match="expected"):
            foreign._from_torch(data)


# Architectures.


@pytest.mark.parametrize("arch", DEPTHS)
@pytest.mark.parametrize("head, kernel", [("linear", 7), ("mlp", 3), ("mlp_bn", 7), ("none", 3)])
def test_describe(arch, head, kernel):
    found = architecture.describe(network(arch, width=4, kernel=kernel, head=head))
    pooled = 4 * 8 * (4 if arch in BOTTLENECKS else 1)
    stem = "imagenet" if kernel == 7 else "cifar"
    expected = {"none": (pooled, 0), "linear": (6, 0)}.get(head, (6, 5))
    assert found == architecture.Architecture(arch, 4, stem, head, *expected)


def test_describe_agrees_with_our_encoder():
    from moco_tf.formats.torchvision import get_weights
    from moco_tf.networks.encoder import Encoder

    settings = {"arch": "resnet10", "width": 8, "stem": "cifar", "head": "mlp_bn", "feature_dim": 6, "hidden_dim": 5}
    encoder = Encoder(**settings)
    assert architecture.describe(get_weights(encoder)) == architecture.Architecture(**settings)
    architecture.check_against(
        network("resnet10", 8, 3, "mlp_bn"), {n: v.shape for n, v in get_weights(encoder).items()}
    )


@pytest.mark.parametrize(
    "change",
    [
        {"layer3.2.conv1.weight": np.zeros((4, 4, 3, 3))},
        {"layer1.0.se.weight": np.zeros(3)},
        {"layer1.0.conv1.weight": np.zeros((8, 4, 3, 3))},
        {"conv1.weight": np.zeros((4, 3, 5, 5))},
        {"conv1.weight": np.zeros((4, 1, 7, 7))},
        {"conv1.weight": np.zeros(4)},
        {"fc.5.weight": np.zeros((4, 4))},
        {"fc.weight": np.zeros(())},
    ],
)
def test_unknown_architectures_are_refused(change):
    with pytest.raises(UserError, match="expected") as caught:
        architecture.describe({**network(), **change})
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        architecture.describe({})


def test_check_against_lists_what_differs():
    state = network()
    shapes = {name: value.shape for name, value in state.items()}
    architecture.check_against(state, shapes)
    state["extra"] = state.pop("bn1.bias")
    state["conv1.weight"] = np.zeros((4, 3, 3, 3))
    with pytest.raises(UserError) as caught:
        architecture.check_against(state, shapes)
    for text in ("a wrong architecture", "1 missing: bn1.bias", "1 unexpected: extra", "conv1.weight (4, 3, 3, 3)"):
        assert text in str(caught.value)


# moco.tensorflow.


def to_tensorpack(state, norm="_bn/"):
    """The inverse of the names and layouts, written down for this test."""
    parts = {"weight": "gamma", "bias": "beta", "running_mean": "mean/EMA", "running_var": "variance/EMA"}
    dense = {"fc": "linear0_6", "fc.0": "linear0_5", "fc.2": "linear1_6"}
    out = {}
    for name, value in state.items():
        layer, part = name.rsplit(".", 1)
        if layer in dense:
            out[f"{dense[layer]}/{'W' if part == 'weight' else 'b'}"] = value.T
            continue
        layer = layer.replace("downsample.0", "convshortcut").replace("downsample.1", "bnshortcut")
        for i in (1, 2, 3, 4):
            layer = layer.replace(f"layer{i}.", f"group{i - 1}/block").replace(".conv", "/conv").replace(".bn", "/bn")
        if layer in ("conv1", "bn1"):
            layer = layer.replace("1", "0")
        if value.ndim == 4:
            value = value[:, ::-1] if name == "conv1.weight" else value  # BGR
            out[f"{layer}/W"] = value.transpose(2, 3, 1, 0)
        else:
            out[f"{layer.replace('bn', 'conv')}{norm}{parts[part]}"] = value
    return out


def write_npz(path, arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


OTHERS = {
    "global_step": np.int64(5),
    "learning_rate": np.float32(0.03),
    "conv0/W/Momentum": np.zeros((7, 7, 3, 4), "f4"),
}
OTHERS |= {"EMA/cost": np.float32(1), "linear0_6/b/Adam_1": np.zeros(6, "f4")}


@pytest.mark.parametrize("arch, head", [("resnet50", "linear"), ("resnet50", "mlp"), ("resnet18", "linear")])
@pytest.mark.parametrize("query_prefix", ["", "query_encoder/"])
@pytest.mark.parametrize("norm", ["_bn/", "/bn/"])
def test_moco_tensorflow(tmp_path, arch, head, query_prefix, norm):
    query, key = network(arch, head=head, seed=1), network(arch, head=head, seed=2)
    queue = np.random.default_rng(0).normal(size=(16, 6)).astype("f4")  # KxC
    arrays = prefixed(query_prefix, to_tensorpack(query, norm))
    arrays |= prefixed("momentum_encoder/", to_tensorpack(key, norm))
    arrays |= OTHERS | {"queue": queue, "queue_ptr": np.int64(4)}
    found = foreign.read_state(write_npz(tmp_path / "moco.npz", arrays))
    same(found.encoder, query)
    same(found.key_encoder, key)
    np.testing.assert_array_equal(found.queue, queue)
    assert (found.queue_pointer, found.source) == (4, "moco.tensorflow .npz")
    assert architecture.describe(found.encoder).arch == arch


def test_moco_tensorflow_neighbours_that_do_not_fit(tmp_path):
    query, other = network(seed=1), network(width=8)
    arrays = to_tensorpack(query) | prefixed("momentum_encoder/", to_tensorpack(other)) | {"queue": np.zeros(3, "f4")}
    found = foreign.read_state(write_npz(tmp_path / "moco.npz", arrays))
    same(found.encoder, query)
    assert (found.key_encoder, found.queue) == (None, None)
    assert found.notes[0].startswith("left out: momentum_encoder, queue; read are a ResNet")


def test_moco_tensorflow_names():
    """Some of the names that its resnet.py gives, by hand; the released model has neither queue nor head."""
    arrays = {
        "conv0/W": np.arange(7 * 7 * 3 * 2.0).reshape(7, 7, 3, 2),
        "conv0_bn/mean/EMA": np.zeros(2),
        "group0/block0/convshortcut_bn/gamma": np.ones(8),
        "group3/block2/conv3/W": np.zeros((1, 1, 2, 8)),
        "linear0_2048/W": np.zeros((8, 5)),
        "linear1_128/b": np.zeros(6),
    }
    out = tensorpack.to_torchvision(arrays)
    assert {name: value.shape for name, value in out.items()} == {
        "conv1.weight": (2, 3, 7, 7),
        "bn1.running_mean": (2,),
        "layer1.0.downsample.1.weight": (8,),
        "layer4.2.conv3.weight": (8, 2, 1, 1),
        "fc.0.weight": (5, 8),
        "fc.2.bias": (6,),
    }
    rgb = np.random.default_rng(0).normal(size=(7, 7, 3))
    left = np.einsum("hwi,hwio->o", rgb[..., ::-1], arrays["conv0/W"])
    np.testing.assert_allclose(np.einsum("hwi,oihw->o", rgb, out["conv1.weight"]), left, rtol=1e-4)


def test_single_dense_layers_become_fc():
    for name in ("linear", "fc", "linear0_128", "linear_cls"):
        out = tensorpack.to_torchvision({"conv0/W": np.zeros((7, 7, 3, 2)), f"{name}/W": np.zeros((4, 3))})
        assert out["fc.weight"].shape == (3, 4)


@pytest.mark.parametrize(
    "name",
    [
        "group0/block0/preact/bn/gamma",
        "conv0/b",
        "group0/block0/conv0_bn/gamma",
        "conv1/W",
        "linear0_6/c",
        "bnlast/gamma",
    ],
)
def test_unknown_encoder_variables_are_refused(name):
    with pytest.raises(UserError, match=name):
        tensorpack.to_torchvision({**to_tensorpack(network()), name: np.zeros(3)})


def test_bad_npz_files_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    cases = {
        "query encoder": {"x": np.zeros(3)},
        "pickle": {"conv0/W": np.array([{}])},
        "conv0/W": to_tensorpack(network()) | {"conv0/W": np.zeros(3)},
    }
    for word, arrays in cases.items():
        with pytest.raises(UserError, match=word) as caught:
            foreign.read_state(write_npz(path, arrays))
        assert "weights.npz" in str(caught.value) and "\n" not in str(caught.value)
    content = write_npz(path, to_tensorpack(network())).read_bytes()
    for size in range(0, len(content), len(content) // 20):
        path.write_bytes(content[:size])
        with pytest.raises(UserError):
            foreign.read_state(path)
        with pytest.raises(UserError):
            tensorpack.read(path)
