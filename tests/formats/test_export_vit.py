"""Exports of ViTs in every format, compared with the encoder, and what is refused."""

import pytest
import tensorflow as tf
from support.encoders import MEAN, STD, assert_same

from moco_tf.formats import export, pth
from moco_tf.formats.base import Loaded
from moco_tf.formats.load import load
from moco_tf.networks.encoder import Encoder


def subject(**own):
    encoder = Encoder("vit_small", width=48, depth=1, head="mlp_bn3", hidden_dim=8, feature_dim=6, **own)
    encoder(tf.random.normal([8, 32, 32, 3]), training=True)  # running statistics that are not the first
    return Loaded(encoder, "encoder", "test", 7, 32, MEAN, STD)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(encoder, folder of all formats, what was printed)."""
    loaded, said = subject(patch=4), []
    folder = tmp_path_factory.mktemp("exports") / "all"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        export.export(loaded, "all", str(folder))
    return loaded.encoder, folder, "\n".join(said)


def test_all_formats_give_what_the_encoder_gives(exported):
    """`export` compares each, and refuses what differs by more than 1e-5; its own words say what is left out."""
    _, folder, said = exported
    assert "left out: --format=detectron2 holds ResNets only, and this encoder is vit_small" in said
    assert said.count("left out") == 1
    assert {path.name for path in folder.iterdir() if path.suffix != ".md"} == {
        *("encoder.keras", "encoder.onnx", "encoder.pth", "encoder.tflite", "savedmodel")
    }


def test_a_convolutional_stem(tmp_path):
    loaded = subject(stem="conv", heads=3)
    for name in ("keras", "pth"):
        export.export(loaded, name, str(tmp_path / f"encoder.{name}"))
    assert pth.read(tmp_path / "encoder.pth")["pos_embed"].shape == (1, 5, 48)
    about = (tmp_path / "encoder.pth.md").read_text()
    assert "attention heads, 3 here; moco_tf takes it for 12" in about and "timm.models" not in about


def test_pth_has_timms_names_and_comes_back(exported):
    encoder, folder, _ = exported
    weights, about = pth.read(folder / "encoder.pth"), (folder / "encoder.pth.md").read_text()
    assert weights["pos_embed"].shape == (1, 65, 48) and weights["cls_token"].shape == (1, 1, 48)
    assert weights.keys() >= {"blocks.0.attn.qkv.bias", "norm.weight", "head.7.running_mean"}
    assert '"patch_size": 4, "embed_dim": 48, "depth": 1, "num_heads": 12' in about
    again, images = load(str(folder / "encoder.pth")), tf.random.normal([2, 32, 32, 3])
    assert again.image_size == 32
    assert_same(again.encoder(images).numpy(), encoder(images).numpy())


def test_saved_model_takes_images_of_other_sizes(exported):
    encoder, folder, _ = exported
    model, images = tf.saved_model.load(str(folder / "savedmodel")), tf.random.normal([2, 64, 96, 3])
    assert_same(model.features(images).numpy(), encoder.features(images).numpy())
    assert len(model.trainable_variables) == len(encoder.backbone.named_parameters())  # the patch projection, too
