"""Draws of labelled images, and what is learnt from one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from moco_tf.data.sources import ArraySource
from moco_tf.errors import UserError
from moco_tf.evaluation import few_labels, intervals, logistic, scores


def source(labels, classes):
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return ArraySource("planted", images, np.asarray(labels, np.int32), tuple("abcdefgh"[:classes]))


def blobs(seed, count, width, classes=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(9).normal(size=(classes, width)) * 2 / width**0.5
    return (centres[labels] + rng.normal(size=(count, width)) / 3).astype(np.float32), labels


def test_draws_are_balanced_and_nested():
    labels = np.random.default_rng(0).permutation([0] * 9 + [1] * 20 + [2] * 7)
    train = source(labels, 3)
    drawn = few_labels.draws(train, 7, 4, seed=1)
    for draw in drawn:
        assert draw.shape == (3, 7) and len(np.unique(draw)) == 21
        assert (labels[draw] == np.arange(3)[:, None]).all()
    assert sorted(drawn[0][2]) == sorted(drawn[1][2]) == np.flatnonzero(labels == 2).tolist()
    assert (drawn[0] != drawn[1]).any()
    for draw, smaller, again in zip(drawn, few_labels.draws(train, 2, 4, 1), few_labels.draws(train, 7, 4, 1)):
        assert (draw[:, :2] == smaller).all() and (draw == again).all()
    assert (few_labels.draws(train, 7, 1, 2)[0] != drawn[0]).any()


def test_how_many_labels_there_can_be():
    train = source([0, 0, 0, 1, 1], 2)
    assert few_labels.check_shots(train, (5, 2, 1, 1)) == [1, 2]
    with pytest.raises(UserError, match="--shots=3,4 came, expected at most 2, the training images of class b"):
        few_labels.check_shots(train, (3, 4))
    with pytest.raises(UserError, match="at most 0, the training images of class c"):
        few_labels.check_shots(source([0, 1], 3), (1,))
    with pytest.raises(UserError, match="planted has 1 classes, expected labels of two or more"):  # as fewshot begins
        scores.check_labels(source([0, 0], 1), train)


def test_draws_that_share_images():
    """More than a quarter of the smallest class, 12: from 4 on."""
    train = source([0] * 12 + [1] * 40, 2)
    (words,) = few_labels.shared_images(train, [3, 4, 12])
    assert words.startswith("With 4, 12 labels a class the draws share images, as the smallest class has 12: there")
    assert few_labels.shared_images(train, [1, 3]) == []


@pytest.mark.parametrize("width", [4, 200])
def test_features_that_are_alike(width):
    """A dead encoder: one answer to every image, right for one class of three."""
    labels = np.arange(30) % 3
    for value in (0, 1e-9):
        x = np.full((30, width), value, np.float32)
        predictions, _ = logistic.few(x, labels, labels // 3, x)
        assert np.mean(predictions == labels) == pytest.approx(1 / 3)


@pytest.mark.parametrize("width, classes", [(8, 3), (200, 3), (40, 2)])
def test_logistic_regression_of_few_images(width, classes):
    """With less or more features than images: the answers of scikit-learn without a turn, and the best of the folds."""
    (x, labels), (test, _) = blobs(0, 30, width, classes), blobs(1, 300, width, classes)
    folds = np.arange(30) // classes % 5
    predictions, decay = logistic.few(x, labels, folds, test)

    def fitted(rows, decay):
        model = LogisticRegression(C=1 / (len(rows) * decay), max_iter=20000, tol=1e-7)
        return model.fit(x[rows].astype(np.float64), labels[rows])

    shares = {}
    with threadpool_limits(1):
        for candidate in logistic.FEW_WEIGHT_DECAYS:
            right = [fitted(np.flatnonzero(folds != f), candidate).predict(x[folds == f]) for f in range(5)]
            shares[candidate] = np.mean(np.concatenate(right) == np.concatenate([labels[folds == f] for f in range(5)]))
        model = fitted(np.arange(30), decay)
        assert (predictions == model.predict(test)).mean() > 0.99
    assert shares[decay] >= max(shares.values()) - 1 / 30  # a tie that rounding breaks


def test_one_label_a_class_leaves_nothing_to_choose():
    x, labels = blobs(0, 3, 20)
    test, truth = blobs(1, 300, 20)
    predictions, decay = logistic.few(x, labels, np.zeros(3), test)
    assert decay == 0.1 and np.mean(predictions == truth) > 0.8


def test_images_that_cannot_be_read():
    x, labels = blobs(0, 6, 20)
    found, _ = few_labels.answers(x, labels, np.array([[0, 3], [1, 4], [2, -1]]), [1, 2], x)
    assert found.shape == (2, 6) and (found[0][:3] == labels[:3]).all()
    with pytest.raises(UserError, match="of 3 labelled images drawn too few can be read"):
        few_labels.answers(x, labels, np.array([[0], [-1], [-1]]), [1], x)


def test_differences_are_of_pairs():
    """Draws scatter by ten points and both features with them: what they differ by is seen all the same."""
    rng = np.random.default_rng(0)
    luck, hard = rng.normal(0, 0.1, (1, 5, 1)), rng.random((1, 1, 4000))
    own, other, same = (
        (hard + 0.3 * rng.random((1, 5, 4000)) < level + luck).astype(float) for level in (0.75, 0.72, 0.75)
    )
    ((seen,), (unseen,)) = few_labels.differences(own, [other, same])
    assert seen["difference"] == pytest.approx((own - other).mean()) and seen["low"] > 0 and seen["p"] < 0.05
    assert unseen["low"] < 0 < unseen["high"] and unseen["p"] > 0.05
    apart = intervals.difference(own[0], other[0], (intervals.scatter(own[0]), intervals.scatter(other[0])))
    assert apart.p > 0.3  # what the same draws are for
    assert seen["p"] == pytest.approx(2 * intervals.mean(own[0] - other[0]).p)  # Holm's, of two
