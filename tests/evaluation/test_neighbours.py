"""Nearest neighbours: the public ranking, the naive oracle, the same answer however the rows are chunked."""

import numpy as np
import pytest
import tensorflow as tf
from support import oracles, parity_files, ranks

from moco_tf.data.sources import ArraySource
from moco_tf.evaluation import knn, neighbours
from moco_tf.training.collectives import SingleProcess

CHUNKS = [(65536, 1024), (333, 70), (2000, 9), (37, 300)]


def small_integers(seed, n=150, queries=20, dim=3, classes=4):
    """Features whose products are exact in float32 and full of ties."""
    rng = np.random.default_rng(seed)
    bank, q = (rng.integers(-2, 3, (rows, dim)).astype(np.float32) for rows in (n, queries))
    return bank, rng.integers(0, classes, n), q


@pytest.mark.parametrize("chunk,query_chunk", CHUNKS)
@pytest.mark.parametrize("k,temperature", [(200, 0.1), (20, 0.07), (1, 0.1)])
def test_equals_the_cifar_demo(k, temperature, chunk, query_chunk):
    case = np.load(parity_files.path("knn.npz"))
    ranked = neighbours.classify(
        case["bank"],
        case["bank_labels"],
        case["queries"],
        int(case["classes"]),
        k,
        temperature,
        chunk=chunk,
        query_chunk=query_chunk,
    )
    np.testing.assert_array_equal(ranked, case[f"ranked_labels_k{k}_t{temperature}"])
    expected = case[f"top1_k{k}_t{temperature}"], case[f"top5_k{k}_t{temperature}"]
    assert neighbours.accuracy(ranked, case["query_labels"]) == expected


@pytest.mark.horovod
def test_two_ranks_equal_the_cifar_demo():
    """Each with half of the bank, in one chunk and in many; ties across ranks go to the lower row."""
    done = ranks.horovodrun(2, ranks.TESTS / "workers" / "knn_parity.py", parity_files.path("knn.npz"))
    assert done.stdout.count("equal") == 2


@pytest.mark.parametrize("chunk,query_chunk", CHUNKS)
def test_similarities_are_exact_however_chunked(chunk, query_chunk):
    """Bit for bit those of integers, so the order of summation cannot matter; equal rows are equally near."""
    rng = np.random.default_rng(5)
    bank, queries = (rng.normal(size=(rows, 256)).astype(np.float32) for rows in (700, 90))
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    bank[600:] = bank[:100]
    exact = np.rint(queries.astype(np.float64) * 2**26).astype(np.int64) @ np.rint(
        bank.T.astype(np.float64) * 2**26
    ).astype(np.int64)
    similarities, rows = neighbours.nearest(bank, queries, 50, chunk, query_chunk)
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :50]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(similarities * 2.0**52, np.take_along_axis(exact, expected, axis=1))


@pytest.mark.parametrize("chunk,query_chunk", [(65536, 1024), (40, 7), (5, 20), (1, 3)])
@pytest.mark.parametrize("k", [1, 10, 150])
def test_nearest_breaks_ties_by_row_however_chunked(k, chunk, query_chunk):
    bank, _, queries = small_integers(0)
    products = queries @ bank.T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :k]
    similarities, rows = neighbours.nearest(bank, queries, k, chunk, query_chunk)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(similarities, np.take_along_axis(products, expected, axis=1))


@pytest.mark.parametrize("chunk,query_chunk", [(65536, 1024), (11, 6)])
@pytest.mark.parametrize("temperature", [None, 0.5, 2.0])
def test_equals_the_oracle(temperature, chunk, query_chunk):
    bank, labels, queries = small_integers(1)
    given = {"weighting": "majority"} if temperature is None else {"temperature": temperature}
    ranked = neighbours.classify(bank, labels, queries, 5, 12, chunk=chunk, query_chunk=query_chunk, **given)
    np.testing.assert_array_equal(ranked, oracles.knn(bank, labels, queries, 5, 12, temperature))


def test_weights_and_votes_by_hand():
    """One row of class 2 at similarity 1 against two of class 0 at 0.8: e^10 > 2 e^8, but one vote against two."""
    bank = np.array([[0.8, 0.6], [0.8, -0.6], [1.0, 0.0], [-1.0, 0.0]], np.float32)
    labels, query = np.array([0, 0, 2, 1]), np.array([[1.0, 0.0]], np.float32)
    weighted = neighbours.classify(bank, labels, query, 3, 3, temperature=0.1)
    majority = neighbours.classify(bank, labels, query, 3, 3, weighting="majority")
    assert weighted.tolist() == [[2, 0, 1]] and majority.tolist() == [[0, 2, 1]]


def test_a_small_temperature_overflows_nothing():
    bank, labels, query = np.eye(3, dtype=np.float32), np.array([2, 0, 1]), np.array([[1.0, 0.9, 0.0]], np.float32)
    assert neighbours.classify(bank, labels, query, 3, 3, temperature=1e-4).tolist() == [[2, 0, 1]]


def test_accuracy():
    ranked = np.tile(np.arange(7), (4, 1))
    assert neighbours.accuracy(ranked, np.array([0, 1, 4, 5])) == (0.25, 0.75)
    assert neighbours.accuracy(ranked[:, :2], np.array([0, 1, 1, 1])) == (0.25, 1.0)


def test_a_class_without_a_vote_is_no_answer():
    """Votes for 4 and 4, 2 and 0: right are label 4, and 2 among the first five; 1 and 3 would fill these by order."""
    near = np.tile([4, 4, 2, 0], (4, 1))
    ranked = neighbours.rank_classes(np.full((4, 4), 0.5), near, 6)
    assert ranked[0].tolist() == [4, 0, 2, 1, 3, 5] and neighbours.voted(near).tolist() == [3] * 4
    assert neighbours.accuracy(ranked, np.array([4, 2, 1, 3]), neighbours.voted(near)) == (0.25, 0.5)
    tiny = neighbours.rank_classes(np.array([[1.0, 0.0]]), np.array([[1, 5]]), 6, temperature=1e-4)
    assert tiny.tolist() == [[1, 5, 0, 2, 3, 4]], "a weight that underflows remains a vote"


def test_with_one_neighbour_top5_is_top1():
    """On noise with 10 classes: a tenth is right. With 20 neighbours of equal weight most classes have a vote."""
    images, labels = np.random.default_rng(0).integers(0, 256, (600, 4, 4, 3), np.uint8), np.arange(600) // 2 % 10
    bank, queries = (
        ArraySource("noise", images[i::2], labels[i::2].astype(np.int32), tuple("abcdefghij")) for i in (0, 1)
    )
    embed, geometries = lambda x: tf.reshape(x - 0.5, [-1, 48]), ((4, 4), (4, 4))  # noqa: E731
    found = knn.measure(embed, bank, queries, geometries, [1, 20], [0.1], "majority", 50, SingleProcess()).outcomes
    assert found[0].top1 == found[0].top5 == (found[0].predictions == queries.labels).mean() < 0.2
    assert found[1].top1 < 0.2 < 0.4 < found[1].top5


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"k": 4}, "k is 4 with a bank of 3 rows; expected 1 to 3, lower k"),
        ({"k": 0}, "k is 0 with a bank of 3 rows"),
        ({"weighting": "mean"}, "weighting is 'mean'; expected 'weighted' or 'majority'"),
        ({"bank_labels": [0, 1]}, "2 labels for a bank of 3 rows"),
        ({"bank_labels": [0, 1, 3]}, "bank labels lie in 0..3; expected 0..2"),
        ({"bank_labels": [0, 1, -1]}, "bank labels lie in -1..1; expected 0..2"),
        ({"queries": np.ones((2, 4), np.float32)}, "bank rows have 5 dimensions, queries 4"),
        ({"chunk": 0}, "chunks are 0 and 1024; expected 1 or more"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
    ],
)
def test_bad_arguments_say_so(changes, message):
    given = {"bank": np.ones((3, 5), np.float32), "bank_labels": [0, 1, 2], "queries": np.ones((2, 5), np.float32)}
    with pytest.raises(ValueError) as error:
        neighbours.classify(**{**given, "num_classes": 3, "k": 2, **changes})
    assert message in str(error.value)
