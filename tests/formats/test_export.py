"""Exports give what the encoder gives, work without this package, and appear whole or not at all."""

import io
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support import evaluation_runs
from support.programs import call, start, write_photos

from moco_tf import formats
from moco_tf.data.sets import find
from moco_tf.data.sources import ArraySource, decode_rgb
from moco_tf.errors import UserError
from moco_tf.evaluation import features
from moco_tf.formats import card, comparison, export, savedmodel
from moco_tf.formats import pth as torch_file
from moco_tf.formats.base import Loaded, used_with
from moco_tf.formats.load import load
from moco_tf.formats.torchvision import get_weights, set_weights
from moco_tf.networks.encoder import Encoder
from moco_tf.training import checkpoint, device

SIZE, MEAN, STD = 24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
SHAPES = [(1, 24, 24), (5, 24, 24), (2, 50, 31), (3, 20, 20), (1, 13, 90), (2, 24, 30), (2, 28, 28)]

# Run where moco_tf cannot be imported: argv[1] is the SavedModel, argv[2] the features expected of its images.
FINE_TUNE = """
import sys
sys.modules["moco_tf"] = None
import keras, numpy as np, tensorflow as tf
given = np.load(sys.argv[2])
encoder = tf.saved_model.load(sys.argv[1])
np.testing.assert_allclose(encoder.embed(given["images"]), given["features"], atol=1e-5 * abs(given["features"]).max())
weights = encoder.trainable_variables + encoder.head_variables
before = [w.numpy() for w in weights]
moving = encoder.named_variables["bn1.running_mean"].numpy()
optimizer = keras.optimizers.Adam(0.01)
losses = []
for _ in range(3):
    with tf.GradientTape() as tape:
        pooled = encoder.features(encoder.prepare(given["images"]), training=True)
        loss = tf.reduce_mean(tf.square(encoder.head(pooled, training=True) - 1.0))
    optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
    losses.append(float(loss))
assert losses[2] < losses[0], losses
assert all(np.abs(w.numpy() - b).max() > 0 for w, b in zip(weights, before))
assert np.abs(encoder.named_variables["bn1.running_mean"].numpy() - moving).max() > 0
assert np.abs(encoder.embed(given["images"]) - given["features"]).max() > 1e-3  # serving sees the tuned weights
print("tuned", not any(name.startswith("moco_tf.") for name in sys.modules))
"""


def small_encoder(head="mlp", **values):
    """An encoder that has seen some images: its running statistics are not the initial ones."""
    encoder = Encoder("resnet10", stem="cifar", width=4, head=head, feature_dim=6, **values)
    encoder(np.random.default_rng(1).normal(size=(8, 16, 16, 3)).astype(np.float32), training=True)
    return encoder


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def evaluated(encoder, images, feature="backbone", mean=MEAN, std=STD):
    """Features by the path of knn and lincls."""
    prepared = features.prepare_batch(tf.constant(images), features.test_geometry(ArraySource("", images), SIZE))
    return features.embedder(encoder, feature, mean, std)(prepared).numpy()


def assert_same(found, expected):
    assert found.shape == expected.shape and found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def encoder():
    return small_encoder()


@pytest.fixture(scope="module")
def folder(made):
    """A SavedModel of the encoder."""
    return made["savedmodel"]


@pytest.fixture(scope="module")
def exported(folder):
    return tf.saved_model.load(str(folder))


# The SavedModel


@pytest.mark.parametrize("shape", SHAPES)
def test_embed_and_project_equal_the_encoder(shape, encoder, exported):
    images = random_images(*shape)
    pooled, head = evaluated(encoder, images), evaluated(encoder, images, "head")
    for call_it in (exported.embed, lambda x: exported.signatures["embed"](images=tf.constant(x))["features"]):
        assert_same(call_it(images), pooled)
    for call_it in (exported.project, lambda x: exported.signatures["project"](images=tf.constant(x))["projection"]):
        assert_same(call_it(images), features.normalised(head))
    assert_same(exported.head(exported.features(exported.prepare(images))), head)


def test_serving_default_takes_files_of_many_sizes(encoder, exported):
    encoders = (tf.io.encode_jpeg, tf.io.encode_png)
    files = tf.stack([encode(random_images(*shape[1:])) for shape in SHAPES for encode in encoders])
    served = exported.signatures["serving_default"](image_bytes=files)["features"]
    images = [decode_rgb(file)[None].numpy() for file in files]
    assert_same(served, np.concatenate([exported.embed(image) for image in images]))
    assert_same(served, np.concatenate([evaluated(encoder, image) for image in images]))


def test_floating_point_is_refused(exported):
    """TensorFlow would make zeros of pixels from 0 to 1; an array of integers is no uint8 either."""
    images = random_images(2, 24, 24)
    for function in (exported.embed, exported.project, exported.prepare):
        for dtype in (np.float16, np.float32, np.float64):
            for given in (dtype(images / 255), tf.constant(dtype(images)), np.zeros([0, 24, 24, 3], dtype)):
                with pytest.raises(
                    tf.errors.InvalidArgumentError, match="floating point, expected uint8 from 0 to 255"
                ):
                    function(given)
        with pytest.raises(tf.errors.InvalidArgumentError, match="floating point, expected uint8 from 0 to 255"):
            function((images / 255).tolist())
        with pytest.raises(ValueError, match="uint8"):
            function(images.astype(np.int64))
    assert_same(exported.embed(images.tolist()), exported.embed(images).numpy())


def test_no_images_give_no_features(exported, encoder):
    for function, width in ((exported.embed, encoder.backbone.features), (exported.project, 6)):
        assert function(np.zeros([0, 30, 40, 3], np.uint8)).shape == (0, width)
    assert exported.embed_files(tf.constant([], tf.string)).shape == (0, encoder.backbone.features)


def test_files_that_are_not_read_exactly_are_refused(exported):
    """A BMP's colour table, 16 bits."""
    table, file = Image.fromarray(random_images(24, 24)).quantize(64), io.BytesIO()
    table.save(file, "BMP")
    deep = tf.io.encode_png(np.zeros([24, 24, 3], np.uint16)).numpy()
    for data in (file.getvalue(), deep, b"", b"GIF89a"):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"expected JPEG \(grey or RGB\) and PNG of up to 8 bits"
        ):
            exported.signatures["serving_default"](image_bytes=tf.constant([data]))


def test_very_long_image(exported):
    """Memory grows with what is kept, not with the resized length."""
    assert np.isfinite(exported.embed(random_images(1, 1, 20000))).all()


def test_training_uses_and_moves_the_statistics_as_the_encoder_does(encoder, folder):
    exported, copy = tf.saved_model.load(str(folder)), small_encoder()
    set_weights(copy, get_weights(encoder))
    x = np.random.default_rng(2).normal(size=(6, SIZE, SIZE, 3)).astype(np.float32)
    assert_same(exported.features(x, training=True), copy.features(x, training=True).numpy())
    for name, variable in copy.named_variables().items():
        assert_same(exported.named_variables[name], variable.value.numpy())


def test_variables(encoder, exported):
    assert len(exported.variables) == len(encoder.variables)
    learnt = len(exported.trainable_variables) + len(exported.head_variables)
    assert learnt == len(encoder.parameters()) and len(exported.head_variables) == 4
    assert exported.named_variables.keys() == encoder.named_variables().keys()


def test_fine_tuning_without_the_package(encoder, folder, tmp_path):
    images = random_images(4, 30, 26)
    np.savez(tmp_path / "given.npz", images=images, features=evaluated(encoder, images))
    command = [sys.executable, "-I", "-c", FINE_TUNE, str(folder), str(tmp_path / "given.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["tuned", "True"]


def test_bfloat16_and_frozen_encoder():
    """It is exported in float32 and learns again."""
    encoder = small_encoder("mlp_bn", bn_splits=2, dtype="mixed_bfloat16")
    encoder.trainable = False
    exported, images = savedmodel.Exported(encoder, SIZE, MEAN, STD), random_images(2, 40, 30)
    whole = Encoder(**encoder.config)
    set_weights(whole, get_weights(encoder))
    assert_same(exported.embed(images), evaluated(whole, images))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(exported.features(exported.prepare(images), training=True) ** 2)
    assert all(g is not None for g in tape.gradient(loss, exported.trainable_variables))


def test_without_a_head_there_is_no_projection():
    exported = savedmodel.Exported(small_encoder("none"), SIZE, MEAN, STD)
    assert set(exported.signatures()) == {"serving_default", "embed"}
    assert not hasattr(exported, "head") and exported.head_variables == []


def test_save_refuses_a_folder_with_something_in_it(encoder, folder, tmp_path):
    for place, words in [(folder, "not empty"), (folder / "README.md", "not empty"), ("/proc/no/encoder", "written")]:
        with pytest.raises(UserError, match=words) as caught:
            savedmodel.save(encoder, place, SIZE, MEAN, STD)
        assert "\n" not in str(caught.value)


# The program


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """TensorFlow of this process has chosen its threads already."""
    monkeypatch.setattr(device, "configure", lambda *_: None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A few images of many sizes without labels, one of them unreadable."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, classes=("all",), count=5)
    (folder / "all" / "00.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def run(encoder, tmp_path_factory):
    """A run folder with one checkpoint and one evaluation of it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    state = {"query_encoder": {name: v.value for name, v in encoder.named_variables().items()}}
    about = {"encoder": dict(encoder.config), "image_size": SIZE, "mean": MEAN, "std": STD, "method": "moco"}
    path = checkpoint.save(run / "checkpoints", 7, state, about, keep=1)
    (run / "knn").mkdir()
    (run / "knn" / "result.json").write_text(
        f'{{"subject": "{path}", "evaluation": "kNN", "top1": 0.25, "dataset": "cats"}}'
    )
    return run


@pytest.fixture
def values(run, photos, tmp_path):
    """Flags of an export of the run folder."""
    return {"load": run, "dataset": "folder", "data_dir": photos, "output": tmp_path / "out" / "encoder"}


@pytest.fixture(scope="module")
def made(run, photos, tmp_path_factory):
    """{format: what the program wrote}"""
    folder = tmp_path_factory.mktemp("made")
    made = {"savedmodel": folder / "out" / "encoder", "pth": folder / "encoder.pth"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "configure", lambda *_: None)
        for kind, output in made.items():
            call("export", load=run, dataset="folder", data_dir=photos, format=kind, output=output)
    return made


def below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_written(made):
    saved = {"saved_model.pb", "fingerprint.pb", "variables/variables.index", "README.md"}
    assert below(made["savedmodel"]) == saved | {"variables/variables.data-00000-of-00001"}
    for place, names in [
        (made["savedmodel"].parent, {"encoder"}),
        (made["pth"].parent, {"encoder.pth", "encoder.pth.md"}),
    ]:
        assert {path.name for path in place.iterdir()} - {"out"} == names


def test_savedmodel(exported, encoder):
    images = random_images(2, 40, 30)
    assert_same(exported.embed(images), evaluated(encoder, images))
    served = exported.signatures["serving_default"](tf.stack([tf.io.encode_png(image) for image in images]))
    assert_same(served["features"], evaluated(encoder, images))


def test_pth(made, encoder):
    state, weights = torch_file.read(made["pth"]), get_weights(encoder)
    assert state.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(state[name], value)
    again, images = load(str(made["pth"])).encoder, random_images(2, 40, 30)
    assert_same(evaluated(again, images, "head"), evaluated(encoder, images, "head"))


@pytest.mark.parametrize("format", ["savedmodel", "pth"])
def test_card(format, made, run):
    about = card.place(made[format], formats.find(format).SUFFIX).read_text()
    for row in (
        f"source | {run.name}/checkpoints/step-00000007 (moco_tf checkpoint, step 7)",
        *("method | moco", "kNN | cats | 25.00 | - |  |", "resnet10, cifar stem, width 4", "D = 32"),
        *("head | mlp, hidden width 32, C = 6", "mean 0.1, 0.2, 0.3, deviation 0.4, 0.5, 0.6", "RGB, 24 x 24"),
        f"TensorFlow {tf.__version__}",
        f'load("{made[format].name}"',
    ):
        assert row in about, row
    for unknown in ("\n| data set |", "linear |", "ranks |", "torchvision.models"):  # which has no such network
        assert unknown not in about, unknown


def test_the_example_in_the_card_runs(made, encoder, monkeypatch):
    about = (made["savedmodel"] / "README.md").read_text()
    lines = [line.strip() for line in about.splitlines() if line.startswith("    ")]
    names = {"tf": tf, "images": random_images(2, 40, 30)}
    monkeypatch.chdir(made["savedmodel"].parent)
    exec("\n".join(lines), names)
    assert len(lines) == 3
    assert_same(names["features"], evaluated(encoder, names["images"]))
    assert names["tuned"].shape == (2, 32)


def earlier(made, folder):
    """A copy of an export, to be replaced."""
    if made.is_dir():
        return shutil.copytree(made, folder / made.name)
    shutil.copy(card.place(made, made.suffix), folder)
    return pathlib.Path(shutil.copy(made, folder))


@pytest.mark.parametrize("format", ["savedmodel", "pth"])
def test_an_earlier_export_is_replaced(format, values, made, encoder, tmp_path, capsys):
    """By one of another size and normalisation: given when it is exported, they replace the run's."""
    output = earlier(made[format], tmp_path)
    names = below(tmp_path)
    time = output.stat().st_mtime_ns
    (tmp_path / f".{output.name}.draft").mkdir()  # what a killed export left
    call("export", **{**values, "format": format, "output": output}, image_size=16, normalise="cifar10")
    assert below(tmp_path) == names and not list(tmp_path.glob(".*"))
    assert output.stat().st_mtime_ns != time
    assert "on 6 images" in capsys.readouterr().out  # four readable ones and two of noise
    about = card.place(output, formats.find(format).SUFFIX).read_text()
    assert "RGB, 16 x 16" in about and "mean 0.4914, 0.4822, 0.4465, deviation 0.2023, 0.1994, 0.201 " in about
    if format == "savedmodel":
        assert_other_size_and_normalisation(tf.saved_model.load(str(output)), encoder)


def assert_other_size_and_normalisation(exported, encoder):
    assert exported.prepare(random_images(1, 40, 30)).shape == (1, 16, 16, 3)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    images = random_images(1, 16, 16)
    expected = features.embedder(encoder, "backbone", mean, std)(tf.constant(images / 255.0, tf.float32))
    assert_same(exported.embed(images), expected.numpy())


def test_what_a_file_does_not_say_is_called_assumed(made, capsys):
    both, size = {"image_size": 0, "normalise": "auto"}, {"image_size": 24, "normalise": "auto"}
    neither = {"image_size": 24, "normalise": "cifar10"}
    for given, assumed in [(both, "image size and normalisation"), (size, "normalisation"), (neither, "")]:
        subject = export.prepared(load(str(made["pth"])), **given)
        for text in (card.text(subject, "encoder.pth", ""), capsys.readouterr().out):
            assert ("assumed" in text) == bool(assumed) and (f"not say {assumed}: assumed" in text) == bool(assumed)


def test_images_to_compare_on_are_the_runs_own(photos, tmp_path, capsys):
    """Where they are not found it is said, and no other set stands in for them; a place that is asked for must be."""
    gone = tmp_path / "gone"
    for place, said in ((photos, f"4 of --dataset=folder --data_dir={photos}, 2 of noise"), (gone, "all of noise")):
        flags = {"dataset": "folder", "data_dir": str(place), "image_size": 16}
        subject = load(str(evaluation_runs.make_run(tmp_path / f"run of {place.name}", flags=flags)))
        images, where = comparison.images(None, None, subject)
        assert (len(images), where) == (6 if place == photos else 2, said)
    said = f"comparing on random images alone: --dataset=folder --data_dir={gone}, which it was trained on, is not here"
    assert said in capsys.readouterr().out
    assert comparison.images(None, str(photos), subject)[1] == f"4 of --dataset=folder --data_dir={photos}, 2 of noise"
    with pytest.raises(UserError, match="nowhere is not a folder"):
        comparison.images(None, str(tmp_path / "nowhere"), subject)


@pytest.mark.parametrize("test_resize", [24, 30])
@pytest.mark.parametrize("shape", [(2, 24, 24), (2, 50, 31), (1, 20, 40)])
def test_resizes_as_the_run_does(test_resize, shape):
    """Against Pillow: the short side becomes test_resize, also of images of the network's size; then the centre."""
    images = random_images(*shape)
    found = features.prepare_batch(tf.constant(images), (test_resize, SIZE)).numpy()
    for image, one in zip(images, found):
        height, width = (test_resize * side // min(image.shape[:2]) for side in image.shape[:2])
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.float32)
        top, left = round((height - SIZE) / 2), round((width - SIZE) / 2)
        np.testing.assert_allclose(one * 255, resized[top : top + SIZE, left : left + SIZE], atol=1.01)
    subject = Loaded(None, "", "", 1, SIZE, MEAN, STD, test_resize=test_resize)
    assert subject.resize == test_resize and used_with(subject, 48).resize == 55  # 48 * 256 / 224


def test_without_the_data_set_noise_is_compared(values, tmp_path, monkeypatch, capsys):
    def missing(*_):
        raise UserError("not here")

    monkeypatch.setattr(find, "load", missing)
    call("export", load=values["load"], format="pth", output=tmp_path / "encoder.pth")
    out = capsys.readouterr().out
    assert "comparing on random images alone: " in out and "does not say which images it was trained on" in out
    assert "on 2 images" in out
    with pytest.raises(UserError, match="not here"):  # one that was asked for is not replaced
        call("export", **values)


@pytest.mark.parametrize("format", ["savedmodel", "pth"])
def test_what_does_not_give_back_the_encoder_is_removed(format, values, made, tmp_path, monkeypatch):
    output = earlier(made[format], tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in below(tmp_path)}

    def changed(subject_encoder, *rest):
        other = Encoder(**subject_encoder.config)
        set_weights(other, get_weights(subject_encoder))
        other.named_variables()["layer1.0.conv1.weight"].assign_add([[[[1e-3]]]])
        return original(other, *rest)

    where, name = (savedmodel, "save") if format == "savedmodel" else (torch_file, "get_weights")
    original = getattr(where, name)
    monkeypatch.setattr(where, name, changed)
    with pytest.raises(UserError, match="does not give back the encoder: features of .* differ by"):
        call("export", **{**values, "format": format, "output": output})
    assert {name: (tmp_path / name).read_bytes() for name in below(tmp_path)} == before  # the earlier one stands
    assert not list(tmp_path.glob(".*"))


def test_broken_weights_are_refused(values, tmp_path):
    broken = small_encoder()
    broken.named_variables()["conv1.weight"].assign_add([[[[np.nan]]]])
    torch_file.write_tensors(tmp_path / "broken.pth", get_weights(broken))
    with pytest.raises(UserError, match="not finite"):
        call("export", **{**values, "load": tmp_path / "broken.pth"}, image_size=SIZE)
    assert below(tmp_path) == {"broken.pth"}


def refusals(folder):
    """(flags, words of the message)"""
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    (folder / "model.pth").write_text("mine")
    (folder / "other.pth.md").write_text("mine")
    for name in ("saved_model.pb", "README.md"):  # a SavedModel of another program
        (folder / "full" / name).write_text("mine")
    yield {"load": ""}, ["--load is missing", "give a run folder"]
    yield {"load": folder / "none"}, ["does not exist", "expected a run folder"]
    yield {"load": folder / "full"}, ["is a SavedModel", "expected"]
    yield {"load": folder}, ["holds no encoder", "expected"]
    yield {"output": ""}, ["--output is missing", "--output=encoder/"]
    yield {"output": "", "format": "pth"}, ["--output is missing", "--output=encoder.pth"]
    yield {"output": folder / "encoder", "format": "pth"}, ["ends in .pth"]
    for output, kind in [("full", "savedmodel"), ("file", "savedmodel"), ("model.pth", "pth"), ("other.pth", "pth")]:
        yield {"output": folder / output, "format": kind}, ["exists and is no earlier export", "give another"]
    yield {"output": folder / "file" / "encoder"}, ["--output=", "cannot be written", "give another"]
    yield {"output": "/proc/encoder"}, ["--output=/proc/encoder", "cannot be written"]
    yield {"output": folder / "file" / "a.pth", "format": "pth"}, ["cannot be written", "give another"]
    yield {"output": folder / "new", "data_dir": folder / "none"}, ["is not a folder", "expected"]


def test_bad_input_is_one_line_and_leaves_nothing(values, tmp_path):
    cases = list(refusals(tmp_path))
    before = below(tmp_path)
    for flags, words in cases:
        with pytest.raises(UserError) as caught:
            call("export", **{**values, "output": tmp_path / "new", **flags})
        message = str(caught.value)
        assert "\n" not in message and all(word in message for word in words), (flags, message)
        assert below(tmp_path) == before and not list(tmp_path.glob(".*")), flags


def test_an_export_with_something_of_the_users_is_not_replaced(values, made, tmp_path):
    output = earlier(made["savedmodel"], tmp_path)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no earlier export"):
        call("export", **{**values, "output": output})
    assert (output / "notes.txt").read_text() == "mine"


def test_other_ranks_write_nothing(values, monkeypatch):
    monkeypatch.setenv("HOROVOD_RANK", "1")
    call("export", **values)
    assert not pathlib.Path(values["output"]).exists()


def test_program_exits_with_one_line(values, tmp_path):
    process = start("export", **{**values, "load": tmp_path / "none"})
    _, error = process.communicate(timeout=300)
    lines = [line for line in error.splitlines() if line.startswith("moco_tf.")]
    assert process.returncode == 1 and "Traceback" not in error
    assert len(lines) == 1 and lines[0].startswith("moco_tf.export: --load=")
