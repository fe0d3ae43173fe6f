"""Linear classifiers, fine-tuning and what they are measured by, against formulas, other code and separate runs."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from moco_tf.data.sources import ArraySource, RecordSource
from moco_tf.errors import UserError
from moco_tf.evaluation import logistic, probe, scores, subsets
from moco_tf.evaluation.finetune import FineTuning
from moco_tf.methods.supervised import Supervised
from moco_tf.networks.encoder import Encoder
from moco_tf.training import optimizers
from moco_tf.training.collectives import SingleProcess


def blobs(seed=0, count=300, dim=6, classes=4, spread=1.5):
    """Features NxD that overlap a little, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    centres = np.random.default_rng(99).normal(size=(classes, dim)) * spread
    return (centres[labels] + rng.normal(size=(count, dim))).astype(np.float32), labels


def softmax_regression(x, labels, kernel, rate, steps, momentum=0.9):
    """Kernel and bias after full-batch steps from the formulas: p - y is the gradient in the logits."""
    kernel, bias = kernel.astype(np.float64), np.zeros(kernel.shape[1])
    velocity = [0.0, 0.0]
    for _ in range(steps):
        logits = x @ kernel + bias
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(x)), labels] -= 1
        velocity = [momentum * v + g for v, g in zip(velocity, (x.T @ p / len(x), p.mean(axis=0)))]
        kernel, bias = kernel - rate * velocity[0], bias - rate * velocity[1]
    return kernel, bias


def test_a_grid_is_as_many_separate_regressions():
    """Three learning rates in one product; one of them diverges and leaves the others alone."""
    x, labels = blobs()
    rates = (0.05, 0.5, 3e38)
    classifiers = probe.Classifiers(6, 4, [optimizers.SGD(0.1) for _ in rates])
    first = classifiers.variables()[0].numpy()
    assert 0.002 < first.std() < 0.02 and not classifiers.variables()[1].numpy().any()
    learner = probe.LinearProbe(classifiers, tf.identity, SingleProcess())
    learner.set_learning_rates(rates)
    for _ in range(20):
        losses = learner.train_step_of_all((tf.constant(x), tf.constant(labels)))
    assert losses.shape == (3,) and int(learner.steps_done) == 20
    for i, rate in enumerate(rates[:2]):
        kernel, bias = softmax_regression(x, labels, first, rate, 20)
        found = [v.numpy() for v in classifiers.variables()[2 * i : 2 * i + 2]]
        np.testing.assert_allclose(found[0], kernel, atol=2e-5)
        np.testing.assert_allclose(found[1], bias, atol=2e-5)
    shares, predictions, confidences = classifiers.test(x, labels)
    for i in range(2):
        assert shares[i] == ((predictions[:, i] == labels).mean(), 1.0)
        likelihoods = scipy.special.softmax(classifiers.logits(tf.constant(x))[:, i], axis=1).max(axis=1)
        np.testing.assert_allclose(confidences[:, i], likelihoods, rtol=1e-5)
    assert shares[2] == (0.0, 0.0), "what has diverged is right nowhere"


def test_places_in_the_ranking():
    rng = np.random.default_rng(3)
    logits = rng.integers(0, 4, (200, 7)).astype(np.float32)  # full of ties
    labels = rng.integers(0, 7, 200)
    expected = [sum(x >= row[label] for x in row) - 1 for row, label in zip(logits, labels)]  # behind its equals
    np.testing.assert_array_equal(scores.label_places(logits, labels), expected)
    assert (scores.label_places(np.ones_like(logits), labels) == 6).all()
    for bad in (np.nan, np.inf, -np.inf):
        logits[5, 2] = bad
        assert scores.label_places(logits, labels)[5] == scores.MISS


def test_confusion_and_accuracy_of_each_class(tmp_path):
    counts = scores.confusion(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert scores.per_class(counts, ("a", "b,c", "d")) == {"a": 0.5, "b,c": 0.5, "d": None}
    scores.write_confusion(tmp_path / "confusion.csv", counts, ("a", "b,c", "d"))
    lines = (tmp_path / "confusion.csv").read_text().splitlines()
    assert lines == ['label \\ prediction,a,"b,c",d', "a,1,1,0", '"b,c",0,1,1', "d,0,0,0"]


def test_standardised_features():
    (train, _), (test, _) = blobs(0), blobs(1)
    train[:, 0] = 5.0
    mean, std = train.mean(axis=0), train.std(axis=0)
    std[0] = 1.0
    expected = (train - mean) / std, (test - mean) / std
    probe.standardise(train, test)
    np.testing.assert_allclose(train, expected[0], atol=1e-5)
    np.testing.assert_allclose(test, expected[1], atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_regression_is_at_the_minimum_that_it_states(classes):
    """The gradient of the stated loss vanishes there, and its choice is the best held-out one."""
    pytest.importorskip("sklearn")
    (x, labels), (test, test_labels) = blobs(0, classes=classes), blobs(1, classes=classes)
    held_out = probe.held_out(len(x), 0)
    result = logistic.fit_and_test(x, labels, held_out, test, test_labels)
    assert result["converged"] and result["top5"] == 1
    best = max(result["held_out_top1"], key=lambda one: one["top1"])
    assert result["weight_decay"] == best["weight_decay"]
    model = logistic._fit(x, labels, 1e-2, 1000)
    p = model.predict_proba(x)
    p[np.arange(len(x)), labels] -= 1
    gradient = x.T @ p / len(x)
    if classes == 2:  # one column: the regression of the second class against the first
        np.testing.assert_allclose(gradient[:, 1] + 1e-2 * model.coef_[0], 0, atol=2e-4)
    else:
        np.testing.assert_allclose(gradient + 1e-2 * model.coef_.T, 0, atol=2e-4)


def test_logistic_regression_without_a_class():
    """A class that no training image has is never right, and nothing breaks."""
    pytest.importorskip("sklearn")
    (x, labels), (test, test_labels) = blobs(0, classes=3), blobs(1, classes=4)
    result = logistic.fit_and_test(x, labels, probe.held_out(len(x), 0), test, test_labels)
    assert 0.2 < result["top1"] <= (test_labels < 3).mean() == result["top5"]


def test_held_out_rows():
    rows = probe.held_out(250, 0)
    assert len(set(rows)) == 25 and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < 250
    np.testing.assert_array_equal(rows, probe.held_out(250, 0))
    assert (rows != probe.held_out(250, 1)).any()


# Fine-tuning


def test_fine_tuning_is_supervised_training():
    """The same network, images and rates through the method `supervised`, which has a step of its own."""
    images = np.random.default_rng(0).normal(size=(3, 8, 16, 16, 3)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 5, (3, 8)).astype(np.int32)

    def as_given(images, seed, positions, count):
        return images

    keras.utils.set_random_seed(0)
    supervised = Supervised(Encoder("resnet10", stem="cifar", width=4, feature_dim=5))
    supervised.compile(optimizers.SGD(0.1, weight_decay=1e-2, nesterov=True))
    encoder = Encoder("resnet10", stem="cifar", width=4, head="mlp", feature_dim=7)
    theirs, ours = supervised.query_encoder.named_variables(), encoder.named_variables()
    for name in theirs.keys() - {"fc.weight", "fc.bias"}:
        ours[name].assign(theirs[name])
    sgd = [optimizers.SGD(0.1, weight_decay=1e-2, nesterov=True) for _ in range(2)]
    classifiers = probe.Classifiers(32, 5, sgd[:1])
    for variable, name in zip(classifiers.variables(), ("fc.weight", "fc.bias")):
        variable.assign(theirs[name].value)
    head = {name: v.numpy() for name, v in ours.items() if name.startswith("fc")}
    tuning = FineTuning(classifiers, encoder, sgd[1], 1.0, as_given, SingleProcess())
    for batch, wanted in zip(images, labels):
        tuning.set_learning_rates([0.1])
        loss = tuning.train_step((tf.constant(batch), tf.constant(wanted)))["loss"]
        expected = supervised.train_step((tf.constant(batch), tf.constant(wanted)))["loss"]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    tuned = dict(zip(("fc.weight", "fc.bias"), classifiers.variables()))
    for name, want in theirs.items():
        found = tuned[name] if name in tuned else ours[name]
        np.testing.assert_allclose(found.numpy(), want.numpy(), atol=1e-5, err_msg=name)
    assert all(np.array_equal(ours[name].numpy(), value) for name, value in head.items()), "the head stays"


def test_backbone_learning_rate():
    """With a ratio of 0 only the classifier and the running statistics move."""
    encoder = Encoder("resnet10", stem="cifar", width=4, head="none")
    classifiers = probe.Classifiers(32, 3, [optimizers.SGD(0.1)])
    tuning = FineTuning(classifiers, encoder, optimizers.SGD(0.1), 0.0, lambda x, *_: x, SingleProcess())
    before = {name: v.numpy() for name, v in encoder.named_variables().items()}
    tuning.set_learning_rates([0.5])
    images = tf.random.stateless_normal([4, 16, 16, 3], [0, 1])
    tuning.train_step((images, tf.constant([0, 1, 2, 0])))
    moved = {name for name, v in encoder.named_variables().items() if not np.array_equal(v.numpy(), before[name])}
    assert moved == {name for name in before if ".running_" in name}
    assert classifiers.variables()[1].numpy().any()


# Parts of the training images


def numbered(counts):
    """An ArraySource with so many images of each class, labels in a mixed order."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(0).permutation(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ArraySource("numbers", images, labels, tuple("abcdef"[: len(counts)]))


def test_a_balanced_part():
    source = numbered([40, 100, 4])
    tenth, fifth, other = (subsets.balanced(source, *how) for how in ((0.1, 0), (0.2, 0), (0.1, 1)))
    assert np.bincount(tenth.labels).tolist() == [4, 10, 1], "4 x 0.1 is rounded up to one"
    assert np.bincount(fifth.labels).tolist() == [8, 20, 1]
    mine, more, others = (set(part.images[:, 0, 0, 0]) for part in (tenth, fifth, other))
    assert mine < more and mine != others
    assert tenth.class_names == source.class_names


def files(*names):
    """A data set of files, of one class."""
    labels = np.zeros(len(names), np.int32)
    return RecordSource("folder", (np.array(names, object), labels), None, names.__getitem__, labels, ("a", "b"))


def test_listed_images(tmp_path):
    source = files("/data/train/n1/n1_7.JPEG", "/data/train/n1/x.png", "/data/train/n2/x.png", "/data/train/n2/y.png")
    (tmp_path / "list.txt").write_text("\ufeffn2/x.png\n\nn1_7.JPEG \r\n")
    part = subsets.listed(source, str(tmp_path / "list.txt"))
    assert [part.describe(i) for i in range(part.num_examples)] == ["/data/train/n1/n1_7.JPEG", "/data/train/n2/x.png"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("x.png\n", ["'x.png' fits 2 of the 3", "folders above"]),
        ("z.png\n", ["'z.png' is not among the 3"]),
        ("ello.png\n", ["'ello.png' is not among"]),
        ("n1/x.png\nn1/x.png\n", ["names 1 images more than once"]),
        (" \n", ["is empty"]),
        (None, ["cannot be read", "No such file"]),
    ],
)
def test_lists_that_do_not_fit(text, words, tmp_path):
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        subsets.listed(files("/d/n1/x.png", "/d/n2/x.png", "/d/n2/hello.png"), str(path))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_parts_of_what_has_no_labels_or_names(tmp_path):
    unread = RecordSource("imagenet2012", (np.zeros(3),), None, str, None, ("a", "b"))
    with pytest.raises(UserError, match="imagenet2012_subset/1pct"):
        subsets.balanced(unread, 0.1, 0)
    (tmp_path / "list.txt").write_text("x.png\n")
    with pytest.raises(UserError, match="expected --dataset=folder"):
        subsets.listed(numbered([3, 3]), str(tmp_path / "list.txt"))
