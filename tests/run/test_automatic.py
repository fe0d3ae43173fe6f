"""--auto: which settings are chosen for which images, that a run keeps them, and that the user's flags stand."""

import re
import shutil

import pytest
from support.programs import make_photos, parse

from moco_tf.config import define
from moco_tf.config.options import Pretrain
from moco_tf.errors import UserError
from moco_tf.run import automatic, defaults, prepare, pretraining
from moco_tf.run.automatic import Facts
from moco_tf.run.folder import RunFolder
from moco_tf.training.collectives import SingleProcess


def settings(*facts, **own):
    return {setting.name: setting.value for setting in automatic.settings(Facts(*facts), own)}


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("ranks", [1, 6, 8])
@pytest.mark.parametrize("images", [20, 500, 3000, 50_000, 1_281_167])
@pytest.mark.parametrize("side", [20, 32, 64, 300])
def test_settings_fit(images, side, ranks, gpu):
    """The assembly takes them; the queue holds at most half of the images, where a batch leaves that choice."""
    found = settings(images, side, ranks, gpu)
    words = [define.word(name, value) for name, value in found.items()]
    prepare.check(parse("pretrain", *words), SingleProcess())
    batch, queue = found["batch_size"], found["queue_size"]
    assert batch % ranks == 0 and batch <= images
    assert queue == batch or batch < queue <= images / 2
    assert found["image_size"] <= (224 if gpu else 96) and found["image_size"] <= side
    assert found["stem"] == ("cifar" if side <= 48 else "imagenet")


def test_rules():
    """The measured ones, see docs/automatic.md."""
    small = settings(3000, 32)
    assert {name: small[name] for name in ("arch", "batch_size", "queue_size", "views")} == {
        **{"arch": "resnet10", "batch_size": 64, "queue_size": 1024, "views": "cifar"}
    }
    assert settings(100, 300, 1, True)["image_size"] == 224 and settings(100, 300)["views"] == "moco_v2"
    assert settings(1_281_167, 400, 8, True)["arch"] == "resnet50"


def test_what_is_given_stands():
    found = settings(3000, 32, batch_size=256, arch="vit_tiny", image_size=0)
    assert not found.keys() & {"batch_size", "arch", "width", "stem", "image_size"}
    assert found["queue_size"] == 1024 and "image_size" not in found
    assert settings(300, 32, batch_size=256)["queue_size"] == 256


def options(*words):
    """Of a command line, as moco_tf.pretrain gets them."""
    return defaults.completed(define.parse(Pretrain, defaults.words(Pretrain, ["pretrain", *words])))


def test_folder_without_a_recipe(tmp_path, monkeypatch, capsys):
    """Settings with reasons and a time, kept as plain flags; the same command goes on, and chooses nothing anew."""
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos")
    few = ["--data_dir=photos", "--width=8", "--steps=2", "--jit_compile=false", "--batch_size", "16"]
    pretraining.pretrain(options(*few))
    said = capsys.readouterr().out
    assert "no recipe came: taking --flagfile=auto --dataset=folder\n" in said
    assert re.search(r"^  --image_size=(2\d): the images have about \1 px", said, re.MULTILINE)
    assert re.search(r"^time: about \S+ seconds for 2 steps, \S+ ms each", said, re.MULTILINE)
    assert "--batch_size" not in said and "--width" not in said
    run = RunFolder(tmp_path / "runs" / "photos_moco")
    kept = run.flag_lines()
    assert {"--noauto", "--batch_size=16", "--queue_size=32", "--arch=resnet10", "--width=8"} <= set(kept)
    for number in range(200):  # would lead to other settings
        shutil.copy(tmp_path / "photos/train/cat/00.png", tmp_path / f"photos/train/cat/more{number}.png")
    pretraining.pretrain(options(*few, "--steps=3"))
    said = capsys.readouterr().out
    assert f"the settings are those of {run.flags}\n" in said and "time:" not in said
    assert "changed: --steps=3 (was 2)\n" in said and "done: 3 steps" in said
    assert set(run.flag_lines()) ^ set(kept) == {"--steps=2", "--steps=3"}


@pytest.mark.parametrize(
    "words, taken",
    [
        (["--dataset", "folder"], ["--flagfile=auto"]),
        (["--data_dir=photos"], ["--flagfile=auto", "--dataset=folder"]),
        (["--data_dir=here"], []),  # has Fashion-MNIST
        (["--data_dir=photos", "--dataset=cifar10"], []),
        (["--dataset=folder", "--flagfile", "demo"], []),
        (["--epochs=3"], []),
        ([], ["--flagfile=fashion_mnist_moco"]),
    ],
)
def test_recipe_that_is_taken(words, taken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "fashion_mnist").mkdir(parents=True)
    assert defaults.words(Pretrain, ["pretrain", *words]) == ["pretrain", *taken, *words]


def test_where_nothing_is_chosen():
    """A benchmark, or Keras' fit, says so."""
    with pytest.raises(UserError, match=r"--auto came, expected settings; .*give the flags\.cfg of its run"):
        prepare.check(parse("bench", "--flagfile=auto"), SingleProcess())
