"""import moco_tf: recipes, training, encoders and evaluations in Python give what the programs give."""

import pkgutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from support.programs import arguments, parse
from support.sources_of_encoders import make

import moco_tf
from moco_tf.api import fitting
from moco_tf.config import define, recipes
from moco_tf.data.sources import ArraySource
from moco_tf.formats import origin
from moco_tf.methods.base import FIRST_VIEW
from moco_tf.run import prepare
from moco_tf.training import device

FILE = "flags/debug/pretrain.cfg"
SHORT = {"steps": 5, "batch_size": 8, "queue_size": 32, "precision": "float32", "jit_compile": False, "log_every": 1}
SCHEDULED = {"schedule": "cosine", "schedule_per": "step", "key_momentum_schedule": "cosine", "epochs": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """train/ and val/ of 24x24 PNGs in two class folders, and the same as arrays: {split: (images, labels)}."""
    folder, arrays, rng = tmp_path_factory.mktemp("photos"), {}, np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        labels = np.arange(count) // (count // 2)
        images = rng.integers(0, 256, (count, 24, 24, 3), np.uint8)
        images[labels == 1] //= 2
        arrays[split] = images, labels
        for i, (image, label) in enumerate(zip(images, labels)):
            path = folder / split / f"class{label}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            tf.io.write_file(str(path), tf.io.encode_png(image))
    return folder, arrays


@pytest.fixture(scope="module")
def data(photos):
    return {"dataset": "folder", "data_dir": photos[0], "image_size": 24}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run folder, and what train returned."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    recipe = moco_tf.recipe(FILE, **SHORT, **data, epochs=3, knn_every=0)
    return workdir, moco_tf.train(recipe, workdir=workdir)


@pytest.fixture
def in_memory(monkeypatch):
    """The data set is 20 images of noise in memory."""
    images = np.random.default_rng(1).integers(0, 256, (20, 28, 28, 3), np.uint8)
    noise = ArraySource("noise", images, np.zeros(20, np.int32), ("one", "other"))
    monkeypatch.setattr(prepare, "load", lambda *_: noise)


# Import


def test_import_is_cheap_and_lazy():
    code = "import sys, moco_tf; print('tensorflow' in sys.modules, 'absl' in sys.modules, hasattr(moco_tf, 'nothing'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False False False\n"


def test_no_module_takes_the_place_of_a_public_name():
    """import moco_tf.x sets the attribute x of the package: a function of that name would be gone."""
    public = set(moco_tf._HOMES)
    assert public <= set(dir(moco_tf)) and not public & {
        module.name for module in pkgutil.iter_modules(moco_tf.__path__)
    }
    assert all(callable(getattr(moco_tf, name)) for name in public)


# Recipes


def test_recipe_is_what_the_program_parses():
    before = set(flags.FLAGS)
    values = {"symmetric": True, "crop_scale": [0.3, 1], "milestones": (3, 4), "learning_rate": 1e-3, "data_dir": None}
    recipe = moco_tf.recipe(FILE, **values)
    assert set(flags.FLAGS) == before
    words = {"symmetric": "true", "crop_scale": "0.3,1", "milestones": "3,4", "learning_rate": "0.001"}
    expected = parse("pretrain", *arguments("debug/pretrain.cfg", **words))
    assert recipe.options == expected and recipe.flagfile == define.flagfile(expected)
    o = recipe.options
    assert (o.method.own["queue_size"], o.views.crop_scale) == (512, (0.3, 1.0))  # of the file, of the keyword


def test_recipe_is_read_back_and_replaced(tmp_path):
    recipe = moco_tf.recipe("demo", epochs=7)
    (tmp_path / "own.cfg").write_text(recipe.flagfile)
    assert moco_tf.recipe(tmp_path / "own.cfg").options == recipe.options
    other, before = recipe.replace(epochs=8, nesterov=True), define.values_of(recipe.options)
    changed = {name for name, value in define.values_of(other.options).items() if before[name] != value}
    assert changed == {"epochs", "nesterov"} and recipe.options.schedule.epochs == 7


def test_recipes_of_other_programs():
    assert moco_tf.recipe(flagfile="demo", program="lincls").options.probe.standardise
    assert moco_tf.recipe(program="knn", k=10).options.knn.feature == "backbone"


def test_names_are_known_wherever_the_recipes_are(monkeypatch, tmp_path):
    path = recipes._FLAGS / "pretrain" / "demo.cfg"
    monkeypatch.chdir(tmp_path)
    assert moco_tf.recipe("demo").options.encoder.own["width"] == 16
    assert moco_tf.recipe("flags/pretrain/demo.cfg").options == moco_tf.recipe("demo").options
    assert moco_tf.recipe("demo", program="bench").options.encoder.own["width"] == 16  # of pretrain
    monkeypatch.setattr(recipes, "_FLAGS", tmp_path / "flags")
    assert moco_tf.recipe(path).options.encoder.own["width"] == 16
    with pytest.raises(moco_tf.UserError, match="'demo' is not there; expected a path$"):
        moco_tf.recipe("demo")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: moco_tf.recipe("nowhere"), ["'nowhere' is not there", "cifar10_moco", "demo"]),
        (lambda: moco_tf.recipe("dmeo"), ["'dmeo' is not there", "did you mean demo?"]),
        (lambda: moco_tf.recipe("demo", epoch=2), ["'epoch' is no flag of moco_tf.pretrain", "did you mean epochs?"]),
        (lambda: moco_tf.recipe("demo", undefok="x"), ["'undefok' is no flag"]),
        (lambda: moco_tf.recipe("demo", epochs="many"), ["--epochs=many"]),
        (lambda: moco_tf.recipe("demo", epochs=True), ["--epochs=true"]),
        (lambda: moco_tf.recipe("demo", epochs=0), ["--epochs=0"]),
        (lambda: moco_tf.recipe("demo", crop_scale=[2, 3]), ["--crop_scale=2,3"]),
        (lambda: moco_tf.recipe("flags/lincls/demo.cfg"), ["is no flag of moco_tf.pretrain", "program="]),
        (lambda: moco_tf.recipe(program="methods"), ["'methods' is no program", "pretrain"]),
        (lambda: moco_tf.recipe(program="../x"), ["'../x' is no program"]),
        (lambda: moco_tf.train(moco_tf.recipe("demo")), ["--workdir is missing"]),
        (lambda: moco_tf.train(moco_tf.recipe(program="knn")), ["moco_tf.knn came, expected one of moco_tf.pretrain"]),
        (lambda: moco_tf.Training(moco_tf.recipe(program="knn")), ["moco_tf.knn came"]),
        (lambda: moco_tf.metrics("nowhere"), ["nowhere/metrics.jsonl cannot be read"]),
        (lambda: moco_tf.load("nowhere"), ["nowhere does not exist"]),
        (lambda: moco_tf.load("nowhere", precision="int8"), ["precision is 'int8'", "float32"]),
        (lambda: moco_tf.load("nowhere", normalise="best"), ["normalise is 'best'", "imagenet"]),
    ],
)
def test_bad_input_is_a_user_error(make, words):
    with pytest.raises(moco_tf.UserError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


# Training


def test_train_is_the_program_and_resumes(run, data):
    workdir, lines = run
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5] and lines == moco_tf.metrics(workdir)
    again = moco_tf.train(moco_tf.recipe(workdir / "flags.cfg"), steps=6)
    assert again[:5] == lines and [line["step"] for line in again] == [1, 2, 3, 4, 5, 6]


def test_fit_takes_the_programs_steps(in_memory, tmp_path):
    """Keras' loop in two calls, the first ends within an epoch: losses and weights are the program's bit for bit."""
    recipe = moco_tf.recipe(FILE, **{**SHORT, "steps": 4}, **SCHEDULED, knn_every=0)
    lines = moco_tf.train(recipe, workdir=tmp_path / "run")
    training, losses, rates = moco_tf.Training(recipe), [], []

    def note(batch, logs):
        losses.append(logs["loss"])
        rates.append(float(training.method.optimizer.learning_rate))

    for part in (recipe.replace(steps=1), recipe):
        training.recipe = part
        training.fit(callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=note)], verbose=0)
    assert losses == [line["loss"] for line in lines]
    np.testing.assert_allclose(rates, [line["learning_rate"] for line in lines], rtol=1e-6)
    assert training.fit().history == {}, "the training was over"
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    saved = training.save(tmp_path / "saved")
    np.testing.assert_array_equal(saved.embed(images), moco_tf.load(tmp_path / "run").embed(images))
    assert (saved.step, saved.image_size) == (4, 28)
    assert (tmp_path / "saved" / "flags.cfg").read_text() == recipe.flagfile
    with pytest.raises(moco_tf.UserError, match="saved holds checkpoints already"):
        training.save(tmp_path / "saved")


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_fit_stops_at_a_loss_that_is_no_number(loss):
    watch = fitting._Schedules(types.SimpleNamespace(options=moco_tf.recipe(FILE).options), start=5, total=9)
    with pytest.raises(moco_tf.UserError, match=f"the loss is {loss} at step 5"):
        watch.on_train_batch_end(0, {"loss": loss})
    skips = types.SimpleNamespace(options=moco_tf.recipe(FILE, nan_policy="skip").options)
    fitting._Schedules(skips, start=5, total=9).on_train_batch_end(0, {"loss": loss})  # the guard leaves the step out


def test_training_has_what_the_program_has(photos, data, tmp_path):
    """Reading order and guard are the recipe's; what its workdir holds is another run's."""
    (tmp_path / "normalisation.json").write_text("{")
    recipe = moco_tf.recipe(FILE, **SHORT, **data, workdir=tmp_path, nan_policy="skip")
    training = moco_tf.Training(recipe)
    assert training.method.guard.every_gradient
    np.testing.assert_allclose(training.mean, (photos[1]["train"][0] / 255).mean((0, 1, 2)), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["normalisation.json"], "nothing is written"
    with pytest.raises(moco_tf.UserError, match="--read_order=blocks came with folder"):
        moco_tf.Training(recipe.replace(read_order="blocks"))


def test_views_are_the_networks(in_memory):
    training = moco_tf.Training(moco_tf.recipe(FILE, **SHORT))
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), np.uint8)
    first, second = training.views(images)
    seen = training.method.view(tf.constant(images), FIRST_VIEW) * training.std + training.mean
    np.testing.assert_allclose(first, seen, atol=1e-6)
    assert first.shape == (4, 28, 28, 3) and np.abs(first - second).mean() > 0.01
    assert training.views([images[0][:9], images[1][..., 0]])[1].shape == (2, 28, 28, 3)


# Encoders


def test_embed_of_images_of_any_size(run):
    encoder = moco_tf.load(run[0])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 24, 24, 3), np.uint8)
    x = (images / np.float32(255) - np.float32(encoder.mean)) / np.float32(encoder.std)
    expected = encoder.encoder.features(tf.constant(x)).numpy()
    np.testing.assert_allclose(encoder.embed(images, batch_size=2), expected, atol=1e-5 * np.abs(expected).max())
    head = encoder.encoder(tf.constant(x)).numpy()
    np.testing.assert_allclose(encoder.embed(list(images), "head"), head, atol=1e-5 * np.abs(head).max())
    gray = rng.integers(0, 256, (24, 24), np.uint8)
    mixed = [images[0], gray, rng.integers(0, 256, (40, 31, 3), np.uint8), images[1]]
    features = encoder.embed(mixed)
    np.testing.assert_allclose(features[[0, 3]], expected[:2], atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(features[1:2], encoder.embed(np.stack([gray] * 3, -1)[None]))
    assert encoder.embed([]).shape == (0, 64) and encoder.embed([], "head").shape == (0, 32)


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros([2, 8, 8, 3]), ["(8, 8, 3) and float64", "uint8"]),
        (np.zeros([8, 8, 3], np.uint8), ["one image", "images[None]"]),
        (np.zeros([8, 8], np.uint8), ["(8,) and uint8"]),
        (np.zeros([1, 8, 8, 4], np.uint8), ["(8, 8, 4)"]),
        ([np.zeros([0, 8, 3], np.uint8)], ["(0, 8, 3)"]),
    ],
)
def test_embed_refuses_what_is_no_image(run, images, words):
    with pytest.raises(moco_tf.UserError, match="batch_size is 0"):
        moco_tf.load(run[0]).embed(images, batch_size=0)
    with pytest.raises(moco_tf.UserError) as caught:
        moco_tf.load(run[0]).embed(images)
    assert all(word in str(caught.value) for word in words)


def weighted_vote(bank, labels, queries, k, temperature):
    """Labels of the queries by the formula of Wu et al., 2018, section 3.4, one query at a time."""
    chosen = []
    for query in queries:
        similarity = [row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in bank]
        votes = np.zeros(max(labels) + 1)
        for row in np.argsort(similarity)[-k:]:
            votes[labels[row]] += np.exp(similarity[row] / temperature)
        chosen.append(votes.argmax())
    return np.array(chosen)


def test_knn_is_that_of_the_embeddings(run, data, photos):
    encoder, ((bank, labels), (queries, truth)) = moco_tf.load(run[0]), photos[1].values()
    result = encoder.knn(**data, test_resize=24, k=3, knn_temperature=0.2, precision="float32")
    found = weighted_vote(encoder.embed(bank), labels, encoder.embed(queries), 3, 0.2)
    assert result["top1"] == (found == truth).mean() and result["k"] == 3
    assert (run[0] / "knn" / "result.json").is_file()


def test_linear_probe_and_its_flagfile(run, data, tmp_path):
    more = {**data, "steps": 3, "batch_size": 8, "precision": "float32", "workdir": tmp_path / "probe"}
    result = moco_tf.load(run[0]).linear_probe("flags/lincls/demo.cfg", **more)
    assert 0 <= result["top1"] <= 1 and result["steps"] == 3 and (tmp_path / "probe" / "result.json").is_file()


def test_changed_encoder_is_evaluated_as_it_is(run, data, photos):
    """Weights in memory, not those of the file; and the probe leaves them alone, as does a fine-tuning."""
    encoder, ((bank, labels), (queries, truth)) = moco_tf.load(run[0]), photos[1].values()
    rng = np.random.default_rng(3)
    for variable in encoder.encoder.parameters():
        variable.assign(rng.standard_normal(variable.shape) / 4)
    found = weighted_vote(encoder.embed(bank), labels, encoder.embed(queries), 3, 0.2)
    values = {**data, "workdir": run[0].parent / "changed"}
    result = encoder.knn(**values, test_resize=24, k=3, knn_temperature=0.2, batch_size=8)
    assert result["top1"] == (found == truth).mean() and result["subject"] == encoder.path
    before = encoder.embed(queries)
    values["workdir"] = run[0].parent / "tuned"
    encoder.linear_probe(**values, finetune=True, steps=2, batch_size=8, learning_rate=0.1)
    np.testing.assert_array_equal(encoder.embed(queries), before)
    assert np.abs(moco_tf.load(values["workdir"]).embed(queries) - before).max() > 0
    with pytest.raises(moco_tf.UserError, match="precision=bfloat16 came, and the encoder computes in float32"):
        encoder.knn(**values, precision="bfloat16")


def test_changed_encoder_is_exported_and_saved(run, data, tmp_path):
    encoder = moco_tf.load(run[0], image_size=20, normalise="imagenet")
    variable = encoder.encoder.parameters()[0]
    variable.assign(variable.value * 1.5)
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 24, 3), np.uint8)
    expected = encoder.embed(images)
    exported = tf.saved_model.load(str(encoder.export(tmp_path / "encoder", **{**data, "image_size": 20})))
    np.testing.assert_allclose(exported.embed(images), expected, atol=1e-5 * np.abs(expected).max())
    saved = encoder.save(tmp_path / "tuned")
    np.testing.assert_array_equal(saved.embed(images), expected)
    assert (saved.image_size, saved.mean) == (20, (0.485, 0.456, 0.406))
    with pytest.raises(moco_tf.UserError, match="tuned holds checkpoints already"):
        encoder.save(tmp_path / "tuned")
    result = saved.knn(k=3)
    assert (result["dataset"], result["data_dir"]) == ("folder", str(data["data_dir"])), "those of the run"


def test_saved_encoder_knows_its_images(tmp_path):
    folder = make("run", tmp_path)
    (folder / "flags.cfg").write_text("--dataset=folder\n--data_dir=/photos\n--holdout=4\n")
    moco_tf.load(folder).save(tmp_path / "saved").save(tmp_path / "again")
    own = origin.trained_on(str(tmp_path / "again"))
    assert (own.dataset, own.data_dir, own.holdout) == ("folder", "/photos", 4)


def test_export_gives_the_embeddings(run, data, tmp_path):
    encoder = moco_tf.load(run[0])
    output = encoder.export(tmp_path / "encoder", **data)
    assert output == tmp_path / "encoder" and "written by moco_tf.export" in (output / "README.md").read_text()
    exported = tf.saved_model.load(str(output))
    for size in (24, 37):
        images = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), np.uint8)
        expected = encoder.embed(images)
        np.testing.assert_allclose(exported.embed(images), expected, atol=1e-5 * np.abs(expected).max())


def test_export_that_fails_is_a_user_error(run, data, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(moco_tf.UserError, match=r"--output=\S*mine: \S*mine exists"):
        moco_tf.load(run[0]).export(tmp_path / "mine", **data)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_threads_that_cannot_be_set_any_more():
    """The first call settles the threads; another number later is refused, none is not."""
    tf.zeros([1]) + 1
    device.configure(0, 1)
    with pytest.raises(moco_tf.UserError, match="--threads=61 came when TensorFlow ran with other threads"):
        device.configure(61, 1)
