"""Files that the public MoCo v3 wrote: features and projections of both encoders, and what is said of the rest."""

import lzma

import numpy as np
import pytest
import tensorflow as tf
from support import parity_files, parity_weights
from support.encoders import assert_same

from moco_tf.errors import UserError
from moco_tf.formats import foreign, load, pth
from moco_tf.formats.torchvision import get_weights, set_weights
from moco_tf.networks.encoder import Encoder


@pytest.fixture(scope="module", params=["vit_tiny", "resnet18"])
def official(request, tmp_path_factory):
    """(name, file, what its outputs are) of a checkpoint as the main script saves it."""
    name = f"official_v3_{request.param}"
    file = tmp_path_factory.mktemp("official") / f"{name}.pth.tar"
    with lzma.open(parity_files.path(f"{name}.pth.tar.xz")) as packed:
        file.write_bytes(packed.read())
    return request.param, file, np.load(parity_files.path(f"{name}_expected.npz"))


def images_of(expected):
    images = parity_weights.images(int(expected["images_seed"]), int(expected["n"]), int(expected["size"]))
    return tf.constant(images.transpose(0, 2, 3, 1))


def test_official_checkpoint(official):
    name, file, expected = official
    place = load.find(str(file))
    state = load.read_state(place)
    loaded = load.build(place, state)
    encoder, images = loaded.encoder, images_of(expected)
    assert (state.source, state.epoch, state.optimizer) == ("moco-v3 .pth.tar", int(expected["epoch"]), True)
    assert_same(encoder.features(images).numpy(), expected["base_features"])
    assert_same(encoder(images).numpy(), expected["base_projected"])
    set_weights(encoder, state.key_encoder)
    assert_same(encoder.features(images).numpy(), expected["momentum_features"])
    assert_same(encoder(images).numpy(), expected["momentum_projected"])
    said = "\n".join(loaded.notes)
    assert "base_encoder is taken, state_dict.module.momentum_encoder as its key encoder" in said
    assert "left out: state_dict.module.predictor.0" in said
    if name == "vit_tiny":
        wanted = {"arch": "vit_small", "width": 48, "depth": 2, "heads": 12, "patch": 4, "stem": "patch"}
        wanted |= {"head": "mlp_bn3", "feature_dim": 32, "hidden_dim": 64}
        assert wanted.items() <= encoder.config.items() and loaded.image_size == 16
        assert "12 attention heads are assumed" in said


def test_published_file_without_optimizer_or_scaler(official, tmp_path):
    """As the published files are; and a converted one: the trunk alone under "model"."""
    name, file, expected = official
    tensors = pth.read(file)["state_dict"]
    pth.write_tensors(tmp_path / "published.pth", tensors)
    trunk = {n.removeprefix("module.base_encoder."): v for n, v in tensors.items() if ".base_encoder." in n}
    pth.write_tensors(tmp_path / "trunk.pth", {n: v for n, v in trunk.items() if not n.startswith(("head", "fc"))})
    for path in ("published.pth", "trunk.pth"):
        loaded = load.load(str(tmp_path / path))
        assert_same(loaded.encoder.features(images_of(expected)).numpy(), expected["base_features"])
    assert loaded.encoder.config["head"] == "none"


def test_a_linear_probes_file(official, tmp_path):
    name, file, expected = official
    tensors, head = pth.read(file)["state_dict"], "head" if name.startswith("vit") else "fc"
    trunk = {n.replace("base_encoder.", ""): v for n, v in tensors.items() if ".base_encoder." in n}
    probe = {n: v for n, v in trunk.items() if not n.startswith(f"module.{head}.")}
    width = expected["base_features"].shape[1]
    probe |= {
        f"module.{head}.weight": np.eye(10, width, dtype=np.float32),
        f"module.{head}.bias": np.ones(10, np.float32),
    }
    pth.write_tensors(tmp_path / "linear.pth", probe)
    loaded = load.load(str(tmp_path / "linear.pth"))
    assert_same(loaded.encoder(images_of(expected)).numpy(), expected["base_features"][:, :10] + 1)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_our_own_weights_come_back(stem, tmp_path):
    patch = 8 if stem == "patch" else 16
    encoder = Encoder("vit_small", width=96, depth=3, mlp_ratio=2, patch=patch, stem=stem, head="mlp", feature_dim=5)
    pth.write_tensors(tmp_path / "vit.pth", get_weights(encoder))
    again, images = load.load(str(tmp_path / "vit.pth")), tf.random.normal([2, 32, 48, 3])
    assert (
        again.encoder.config.items() >= {"width": 96, "depth": 3, "mlp_ratio": 2, "patch": patch, "stem": stem}.items()
    )
    np.testing.assert_array_equal(again.encoder(images), encoder(images))
    assert again.image_size == 0


def test_learnt_positions_are_refused(tmp_path):
    encoder = Encoder("vit_tiny", width=48, depth=1, patch=4, head="none")
    positions = np.random.default_rng(0).normal(size=(1, 17, 48)).astype(np.float32)
    for wrong in (positions, positions[:, :16]):
        pth.write_tensors(tmp_path / "vit.pth", {**get_weights(encoder), "pos_embed": wrong})
        with pytest.raises(UserError, match="the position embedding is a learnt one, or of a grid that is no square"):
            foreign.read_state(tmp_path / "vit.pth")


def test_another_vit_is_refused(tmp_path):
    weights = get_weights(Encoder("vit_tiny", width=48, depth=1, patch=4, head="none"))
    for change, said in (
        ({"blocks.0.ls1.gamma": np.ones(48, np.float32)}, "1 unexpected: blocks.0.ls1.gamma"),
        ({"patch_embed.proj.weight": np.ones(3, np.float32)}, "are of no ViT that is built here"),
    ):
        pth.write_tensors(tmp_path / "vit.pth", {**weights, **change})
        with pytest.raises(UserError, match=said):
            load.load(str(tmp_path / "vit.pth"))
