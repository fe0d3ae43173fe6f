"""Every format of an export gives what the encoder gives, in runtimes that know nothing of this package."""

import dataclasses
import json
import os
import pickle
import pickletools
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from support import encoders
from support.encoders import CASES, MEAN, SIZE, STD, assert_same, expected, random_images

from moco_tf import formats
from moco_tf.errors import UserError
from moco_tf.formats import detectron2, export
from moco_tf.formats import onnx as onnx_format
from moco_tf.formats.load import load
from moco_tf.formats.torchvision import get_weights

TORCH_PYTHON = os.environ.get("TORCH_PYTHON", sys.executable)  # another Python may be the one with PyTorch
FILES = [name for name in formats.NAMES if formats.find(name).SUFFIX]
PAIRS = [("keras", case) for case in CASES]  # which builds the network anew
PAIRS += [(name, case) for name in FILES if name != "keras" for case in ("mlp_bn", "none")] + [("pth", "mlp_bn3")]

# Run where moco_tf cannot be imported: argv[1] is the .keras file, argv[2] the expected outputs, argv[3] what to write.
KERAS_ALONE = """
import sys
sys.modules["moco_tf"] = None
import keras, numpy as np
given = np.load(sys.argv[2])
encoder = keras.models.load_model(sys.argv[1])
for name, values in encoder(given["images"]).items():
    np.testing.assert_allclose(values, given[name], rtol=0, atol=1e-5 * abs(given[name]).max())
classifier = keras.Model(encoder.input, keras.layers.Dense(2, name="classes")(encoder.output["features"]))
before, moving = (np.array(encoder.get_layer(name).weights[i]) for name, i in (("layer1.0.conv1", 0), ("bn1", 2)))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
classifier.compile("adam", loss, run_eagerly=True)  # nothing to trace: quicker for a few steps
losses = classifier.fit(given["images"], np.arange(len(given["images"])) % 2, epochs=5, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
assert np.abs(np.array(encoder.get_layer("layer1.0.conv1").weights[0]) - before).max() > 0
assert np.abs(np.array(encoder.get_layer("bn1").weights[2]) - moving).max() > 0
classifier.save(sys.argv[3])
print("tuned", not any(name.startswith("moco_tf.") for name in sys.modules))
"""

# A ResNet as torchvision defines it, in plain functions of PyTorch, from tensors by torchvision's names.
TORCH_ALONE = """
import pickle, sys
import numpy as np, torch
from torch.nn.functional import adaptive_avg_pool2d, batch_norm, conv2d, max_pool2d, relu

def resnet(state, x):
    def norm(x, name):
        mean, variance, weight, bias = (state[f"{name}.{part}"] for part in PARTS)
        return batch_norm(x, mean, variance, weight, bias, training=False, eps=1e-5)
    x = relu(norm(conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for index in range(100):
            block = f"layer{stage}.{index}"
            if f"{block}.conv1.weight" not in state:
                break
            stride, shortcut = 2 if stage > 1 and index == 0 else 1, x
            if f"{block}.downsample.0.weight" in state:
                shortcut = conv2d(x, state[f"{block}.downsample.0.weight"], stride=stride)
                shortcut = norm(shortcut, f"{block}.downsample.1")
            bottleneck = f"{block}.conv3.weight" in state
            for n in (1, 2, 3) if bottleneck else (1, 2):
                kernel = state[f"{block}.conv{n}.weight"]
                step = stride if n == (2 if bottleneck else 1) else 1
                x = norm(conv2d(x, kernel, stride=step, padding=kernel.shape[-1] // 2), f"{block}.bn{n}")
                x = relu(x) if f"{block}.conv{n + 1}.weight" in state else x
            x = relu(x + shortcut)
    return adaptive_avg_pool2d(x, 1).flatten(1)

PARTS = ("running_mean", "running_var", "weight", "bias")
torch.set_num_threads(1)
for arch, file in zip(sys.argv[1::2], sys.argv[2::2]):
    given = np.load(f"{file}.npz")
    images = torch.from_numpy(given["normalised"]).permute(0, 3, 1, 2)
    state = torch.load(file, weights_only=True)
    networks = [lambda x: resnet(state, x)]
    try:
        import torchvision
        network = getattr(torchvision.models, arch)()
        network.fc = torch.nn.Identity()
        network.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})
        networks.append(network.eval())
    except ImportError:
        pass
    for network in networks:
        with torch.no_grad():
            features = network(images).numpy()
        difference = np.abs(features - given["features"]).max() / np.abs(given["features"]).max()
        assert features.shape == given["features"].shape and difference <= 1e-4, difference
    print(arch, len(networks))
"""


def written(name, subject, folder):
    path = folder / f"encoder{formats.find(name).SUFFIX}"
    formats.find(name).write(subject, path)
    return path


def test_all_formats_are_there():
    assert set(formats.NAMES) == {"savedmodel", "keras", "pth", "detectron2", "onnx", "tflite"}


@pytest.mark.parametrize("name, case", PAIRS)
def test_a_format_gives_what_the_encoder_gives(name, case, tmp_path):
    subject, images = encoders.subject(**CASES[case]), random_images(3)
    wanted = expected(subject, images)
    path = written(name, subject, tmp_path)
    for outputs in formats.find(name).outputs(path, subject, images).values():
        assert outputs.keys() >= {"features"} and outputs.keys() <= wanted.keys()
        assert len(outputs) == 2 or not subject.encoder.head
        for output, values in outputs.items():
            assert_same(values, wanted[output])
    resized = dataclasses.replace(subject, test_resize=SIZE + 6)  # the images that are compared, once
    assert export._compare(name, resized, path, [*images, *random_images(1, size=SIZE + 9)]) <= 1e-5
    if name in ("onnx", "tflite"):  # whose runtimes refuse floats
        with pytest.raises(Exception, match="(?i)float.* expected.* .*uint8"):
            formats.find(name).outputs(path, subject, [image / np.float32(255) for image in images])
    assert {file.name for file in tmp_path.iterdir()} == {path.name}
    text = formats.find(name).use(subject, path.name)
    assert path.name in text and "{" not in text.replace('{"', "").replace("{name: value", "")


def test_use_says_how():
    """Numbers of the encoder, filled in."""
    subject = encoders.subject(**CASES["mlp"])
    pooled = subject.encoder.backbone.features
    for name in formats.NAMES:
        text = formats.find(name).use(subject, "encoder")
        assert f"Bx{pooled}" in text or name in ("pth", "detectron2")


# .keras


def test_keras_without_the_package(tmp_path):
    """Loaded, fine-tuned with a classifier on top and saved by Keras alone."""
    subject, images = encoders.subject(**CASES["mlp"]), random_images(4)
    path = written("keras", subject, tmp_path)
    np.savez(tmp_path / "given.npz", images=np.stack(images), **expected(subject, images))
    command = [sys.executable, "-I", "-c", KERAS_ALONE, *map(str, (path, tmp_path / "given.npz", tmp_path / "t.keras"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["tuned", "True"]


def test_keras_file_names_keras_layers_only(tmp_path):
    path = written("keras", encoders.subject(**CASES["mlp_bn"]), tmp_path)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    assert "moco_tf" not in config and '"Lambda"' not in config
    layers = {layer["name"] for layer in json.loads(config)["config"]["layers"]}
    assert {"conv1", "bn1", "layer4.0.bn2", "layer2.0.downsample.0", "fc.0", "fc.1", "fc.3", "features"} <= layers


def test_keras_takes_other_sizes_and_floats(tmp_path):
    import keras

    subject = encoders.subject(**CASES["mlp"])
    model = keras.models.load_model(written("keras", subject, tmp_path))
    images = random_images(2, size=40)
    for given in (np.stack(images), np.stack(images).astype(np.float32)):
        assert_same(model(given)["features"].numpy(), expected(subject, images)["features"])


def test_floats_from_0_to_1_are_no_dark_images(tmp_path):
    """A Keras file, which takes floats, gives NaN for each such image."""
    import keras

    subject = encoders.subject(**CASES["mlp"])
    model = keras.models.load_model(written("keras", subject, tmp_path))
    images = np.stack([*random_images(2), np.zeros((encoders.SIZE, encoders.SIZE, 3), np.uint8)])
    small = np.concatenate([images[:1] / 255, images[1:]]).astype(np.float32)
    for found, wanted in zip(model(small).values(), model(images).values(), strict=True):
        assert np.isnan(found[0]).all() and np.isfinite(wanted).all()
        np.testing.assert_array_equal(found[1:], wanted[1:])


def test_load_gives_back_what_was_written(tmp_path):
    subject = encoders.subject(**CASES["mlp_bn"])
    again = load(str(written("pth", subject, tmp_path)))
    weights = get_weights(again.encoder)
    assert weights.keys() == get_weights(subject.encoder).keys()
    for key, values in get_weights(subject.encoder).items():
        np.testing.assert_array_equal(weights[key], values)


@pytest.mark.parametrize("name", ["keras", "detectron2"])
def test_what_is_only_written_is_refused_with_what_to_load(name, tmp_path):
    path = written(name, encoders.subject(**CASES["mlp"]), tmp_path)
    with pytest.raises(UserError, match="written here.* not read.*; give the run folder or the .pth") as caught:
        load(str(path))
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


# PyTorch and Detectron2


def test_torch_gives_the_same_features(tmp_path):
    """torch.load, into torchvision's layout: ResNet-18 and ResNet-50 as torchvision defines them."""
    if subprocess.run([TORCH_PYTHON, "-c", "import torch"], capture_output=True).returncode:
        pytest.skip(f"{TORCH_PYTHON} has no PyTorch; name one that has in TORCH_PYTHON")
    command = [TORCH_PYTHON, "-I", "-c", TORCH_ALONE]
    for arch in ("resnet18", "resnet50"):
        subject = encoders.subject(width=64 if arch == "resnet18" else 16, arch=arch, head="mlp")
        path = tmp_path / f"{arch}.pth"
        formats.find("pth").write(subject, path)
        images = random_images(2, size=65)
        normalised = ((np.stack(images) / 255.0 - MEAN) / STD).astype(np.float32)
        np.savez(f"{path}.npz", normalised=normalised, **expected(subject, images))
        command += [arch, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["resnet18", "resnet50"]


NAMES = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_var": "stem.conv1.norm.running_var",
    "layer1.0.conv1.weight": "res2.0.conv1.weight",
    "layer2.3.bn3.bias": "res3.3.conv3.norm.bias",
    "layer4.0.bn1.running_mean": "res5.0.conv1.norm.running_mean",
    "layer3.0.downsample.0.weight": "res4.0.shortcut.weight",
    "layer3.0.downsample.1.weight": "res4.0.shortcut.norm.weight",
    "fc.0.weight": "stem.fc.0.weight",
    "fc.weight": "stem.fc.weight",
}


@pytest.mark.parametrize("name", NAMES)
def test_detectron2_names(name):
    assert detectron2.to_detectron2(name) == NAMES[name]


@pytest.mark.filterwarnings("error")
def test_detectron2_file_is_a_pickle_of_arrays(tmp_path):
    """What pickle.load, which Detectron2 calls, makes of it."""
    subject = encoders.subject(**CASES["mlp_bn"])
    with open(written("detectron2", subject, tmp_path), "rb") as file:
        data = pickle.load(file, encoding="latin1")
    assert data.keys() == {"model", "__author__", "matching_heuristics"} and data["matching_heuristics"] is True
    weights = {detectron2.to_detectron2(name): value for name, value in get_weights(subject.encoder).items()}
    assert data["model"].keys() == weights.keys()
    for name, value in weights.items():
        assert type(data["model"][name]) is np.ndarray and data["model"][name].dtype == np.float32
        np.testing.assert_array_equal(data["model"][name], value)


def test_detectron2_file_names_what_numpy_1_knows(tmp_path):
    content = written("detectron2", encoders.subject(**CASES["none"]), tmp_path).read_bytes()
    names = {arg for opcode, arg, _ in pickletools.genops(content) if opcode.name in ("GLOBAL", "STACK_GLOBAL")}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


# Converters that are missing or fail


@pytest.mark.parametrize("package", ["tf2onnx", "onnx", "onnxruntime"])
def test_missing_packages_are_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=f"{package} cannot be imported .*pip install 'moco_tf.onnx.'; or give --format"
    ):
        formats.find("onnx").check()


def test_a_converter_that_fails_is_named(tmp_path, monkeypatch):
    import tensorflow as tf
    import tf2onnx

    def fails(*_, **__):
        raise ValueError("unsupported\nop")

    monkeypatch.setattr(tf2onnx.convert, "from_function", fails)
    monkeypatch.setattr(tf.lite, "TFLiteConverter", type("Fails", (), {"from_saved_model": fails}))
    for name, converter in (("onnx", "tf2onnx"), ("tflite", "TFLiteConverter")):
        with pytest.raises(UserError, match=f"--format={name}.*{converter}.*TensorFlow.*unsupported op.*savedmodel"):
            written(name, encoders.subject(**CASES["mlp"]), tmp_path)
    monkeypatch.delattr(tf.lite, "TFLiteConverter")
    with pytest.raises(UserError, match="has no tf.lite.TFLiteConverter; give --format=savedmodel"):
        formats.find("tflite").check()
    assert not list(tmp_path.iterdir())


def test_onnx_file(tmp_path):
    """One input with a free batch, and an opset that runtimes of 2022 know."""
    import onnx

    proto = onnx.load(written("onnx", encoders.subject(**CASES["mlp"]), tmp_path))
    assert [value.name for value in proto.graph.input] == ["images"]
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*proto.graph.input, *proto.graph.output)}
    assert {name: [d.dim_param or d.dim_value for d in dims] for name, dims in shapes.items()} == {
        "images": ["batch", SIZE, SIZE, 3],
        "features": ["batch", 32],
        "projection": ["batch", 6],
    }
    assert {entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")} == {onnx_format.OPSET}
