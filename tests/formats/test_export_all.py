"""--format=all, the images that exports are compared on, and what is left when an export fails."""

import json
import pathlib
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from support.programs import call, write_photos
from support.sources_of_encoders import make

from moco_tf import formats
from moco_tf.data import sample_images
from moco_tf.errors import UserError
from moco_tf.formats import card, export
from moco_tf.formats import keras as keras_format
from moco_tf.formats.load import load

FILES = {name: f"encoder{formats.find(name).SUFFIX}" for name in formats.NAMES if name != "savedmodel"}
PTH = ("encoder.pth", "encoder.pth.md")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder whose recipe names the folder of images that it was trained on."""
    folder = tmp_path_factory.mktemp("run")
    run = make("run", folder)
    write_photos(folder / "photos", classes=("all",), count=5)
    (run / "flags.cfg").write_text(f"--method=moco\n--data_dir={folder / 'photos'}\n--workdir=here\n--queue_size=16\n")
    for name, result in {
        "knn": {"top1": 0.5, "top5": 0.75, "k": 5, "evaluation": "kNN"},
        "lincls_cached": {"top1": 0.25, "epochs": 3, "evaluation": "lincls"},
        "lincls": {"top1": 0.1, "evaluation": "lincls", "step": "10"},
        "broken": "{",
    }.items():
        (run / name).mkdir()
        if isinstance(result, dict):
            step = result.pop("step", "20")  # the folder may have moved since
            result |= {"subject": f"/elsewhere/run/checkpoints/step-000000{step}", "dataset": "folder"}
        (run / name / "result.json").write_text(json.dumps(result) if isinstance(result, dict) else result)
    (run / "knn" / "flags.cfg").write_text("--image_size=0\n--test_resize=24\n")
    return run


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """(folder of all formats, what was printed)"""
    folder = tmp_path_factory.mktemp("all") / "new" / "exports"
    call("export", load=run, format="all", output=folder)
    return folder


def below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_format_is_there_with_its_card(exported):
    cards = {f"{name}.md" for name in FILES.values()} | {"savedmodel/README.md"}
    found = below(exported)
    assert {name for name in found if not name.startswith("savedmodel/")} | {"savedmodel/README.md"} == cards | set(
        FILES.values()
    )
    assert [path.name for path in exported.parent.iterdir()] == ["exports"]
    for name in cards:
        text = (exported / name).read_text()
        for row in ("method | moco", "data set | folder", "step 20", f"TensorFlow {tf.__version__}", "--queue_size=16"):
            assert row in text, (name, row)
        assert "| kNN | folder | 50.00 | 75.00 | k 5, test_resize 24 |" in text
        assert "| linear (lincls_cached) | folder | 25.00 | - | epochs 3 |" in text
        assert "10.00" not in text  # another checkpoint's
        assert "--workdir" not in text and "--data_dir" not in text


def test_all_of_them_load(exported, run):
    x = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    wanted = load(str(run)).encoder.features(x)
    np.testing.assert_allclose(load(str(exported / FILES["pth"])).encoder.features(x), wanted, rtol=1e-5, atol=1e-6)


def test_the_checkpoints_own_images_are_compared(exported, run, tmp_path, capsys):
    call("export", load=run, format="pth", output=tmp_path / "encoder.pth")
    photos = run.parent / "photos"
    assert f"on 6 images (4 of --dataset=folder --data_dir={photos}, 2 of noise; largest" in capsys.readouterr().out
    # Without them it is noise, and nothing is downloaded.
    tried = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_images, "is_here", lambda *where: tried.append(where))
        call("export", load=run, format="pth", output=tmp_path / "encoder.pth")
    assert tried == [("folder", str(photos))]
    assert "on 2 images (all of noise; " in capsys.readouterr().out


@pytest.mark.parametrize("dataset", ["folder", "packed", "cifar10", "imagenet100", "fashion_mnist:3.0.1"])
def test_data_sets_that_are_not_here(dataset, tmp_path):
    assert not sample_images.is_here(dataset, str(tmp_path / "nowhere"))
    assert not sample_images.is_here("folder", None)
    (tmp_path / "imagenet2012").mkdir()
    assert sample_images.is_here("imagenet100", str(tmp_path)) and sample_images.is_here("folder", str(tmp_path))


def test_all_again_in_place_of_earlier_ones(run, tmp_path, capsys, monkeypatch):
    """And what cannot be converted is left out, by name."""
    monkeypatch.setattr(export, "formats", types.SimpleNamespace(NAMES=["onnx", "pth"], find=formats.find))
    call("export", load=run, format="all", output=tmp_path / "out")
    assert below(tmp_path) == {f"out/{name}" for name in ("encoder.onnx", "encoder.onnx.md", *PTH)}
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    call("export", load=run, format="all", output=tmp_path / "out")
    out = capsys.readouterr().out
    assert "left out: --format=onnx needs" in out and "with 1 formats" in out
    assert below(tmp_path) == {f"out/{name}" for name in PTH}
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no earlier export"):
        call("export", load=run, format="all", output=tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_format_that_does_not_give_back_the_encoder(run, tmp_path, monkeypatch):
    """Nothing of the others is left either, nor the folders that were made for it."""
    original = keras_format.write

    def wrong(subject, path):
        variable = subject.encoder.named_variables()["conv1.weight"]
        before = variable.numpy()
        variable.assign(before + 0.01)
        original(subject, path)
        variable.assign(before)

    monkeypatch.setattr(keras_format, "write", wrong)
    monkeypatch.setattr(export, "formats", types.SimpleNamespace(NAMES=["detectron2", "keras"], find=formats.find))
    with pytest.raises(UserError, match="does not give back the encoder: features of the model differ by"):
        call("export", load=run, format="all", output=tmp_path / "a" / "b" / "exports")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", formats.NAMES)
def test_outputs_that_cannot_be(name, run, tmp_path):
    suffix = formats.find(name).SUFFIX
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / f"encoder{suffix}").write_text("mine")
    wrong = [("", ["--output is missing", "for example --output="])]
    wrong += [(tmp_path / "taken" / f"encoder{suffix}", ["exists and is no earlier export", "give another"])]
    wrong += [(f"/proc/encoder{suffix}", ["cannot be written", "give another"])]
    wrong += [(tmp_path / "encoder.other", [f"ends in {suffix}"])] if suffix else []
    for output, words in wrong:
        with pytest.raises(UserError) as caught:
            call("export", load=run, format=name, output=output)
        assert all(word in str(caught.value) for word in words), str(caught.value)
    assert below(tmp_path) == {f"taken/encoder{suffix}"}


def test_files_of_two_formats_in_one_folder_have_two_cards(run, tmp_path):
    for name in ("pth", "detectron2"):
        call("export", load=run, format=name, output=tmp_path / FILES[name])
    assert below(tmp_path) == {"encoder.pth", "encoder.pth.md", "encoder.pkl", "encoder.pkl.md"}
    assert "torch.load" in (tmp_path / "encoder.pth.md").read_text()
    assert "PIXEL_MEAN: [25.500, 51.000, 76.500]" in (tmp_path / "encoder.pkl.md").read_text()


def test_disk_that_is_full(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.os, "replace", full)
    with pytest.raises(UserError, match="cannot be written .No space left on device"):
        call("export", load=run, format="pth", output=tmp_path / "new" / "encoder.pth")
    assert list(tmp_path.iterdir()) == []


def test_cards_are_known_by_their_first_line(tmp_path):
    about = tmp_path / "encoder.pth.md"
    for content, known in [(b"", False), (b"# mine", False), (b"\xff\xfe", False)]:
        about.write_bytes(content)
        assert card.is_card(about) is known
    assert not card.is_card(tmp_path) and not card.is_card(tmp_path / "none")
    assert export.part("savedmodel") == "savedmodel" and pathlib.Path(export.part("pth")).suffix == ".pth"


@pytest.mark.parametrize(
    "arch, stem, width, known",
    [
        ("resnet50", "imagenet", 32, True),
        ("resnet101", "imagenet", 64, True),
        ("resnet152", "imagenet", 64, True),
        ("resnet18", "imagenet", 64, True),
        ("resnet18", "imagenet", 32, False),
        ("resnet10", "imagenet", 64, False),
        ("resnet50", "cifar", 64, False),
    ],
)
def test_detectron2_card(arch, stem, width, known):
    """detectron2/modeling/backbone/resnet.py builds 18 and 34 at 64 only; a bottleneck's width is WIDTH_PER_GROUP."""
    encoder = types.SimpleNamespace(config={"arch": arch, "stem": stem, "width": width})
    subject = types.SimpleNamespace(encoder=encoder, mean=(0.5, 0.25, 0.0), std=(0.2, 1.0, 1.0))
    about = formats.find("detectron2").use(subject, "e.pkl")
    assert f"WIDTH_PER_GROUP: {width}\n" in about and "PIXEL_MEAN: [127.500, 63.750, 0.000]" in about
    assert f"RES2_OUT_CHANNELS: {width * (1 if arch in ('resnet10', 'resnet18') else 4)}\n" in about
    assert ("no such network" not in about) == known


@pytest.mark.parametrize(
    "mean, words", [(0.2860, "--image_size=24 --normalise=fashion_mnist\n"), (0.3, "does not hold")]
)
def test_pth_card(mean, words):
    """A .pth does not say its normalisation: the command does, or it is said that there is none."""
    config = {"arch": "resnet18", "stem": "imagenet", "width": 64, "feature_dim": 8}
    encoder = types.SimpleNamespace(config=config, backbone=types.SimpleNamespace(features=512))
    subject = types.SimpleNamespace(encoder=encoder, image_size=24, mean=(mean,) * 3, std=(0.3530,) * 3)
    about = formats.find("pth").use(subject, "e.pth")
    assert words in about and "torchvision.models.resnet18()" in about and "{" not in about.split("load_state_dict")[0]
