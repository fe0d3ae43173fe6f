"""Collectives on two ranks: compressed gradients, both forms of the shuffle, SyncBN against one process."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from support import collective_cases as cases
from support import method_cases, ranks

from moco_tf.contrast import shuffle_bn
from moco_tf.errors import UserError
from moco_tf.methods import base
from moco_tf.networks.encoder import Encoder
from moco_tf.networks.norm import BatchNorm
from moco_tf.networks.sync_norm import normalise_over_ranks
from moco_tf.training.collectives import SingleProcess, gpu_of_rank
from moco_tf.training.update import compressed_mean

SYNC = [("moco", "float64"), ("simclr", "float64"), ("moco", "float32")]


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    """Folder with what each of two ranks has found."""
    out = tmp_path_factory.mktemp("ranks")
    methods = [word for case in SYNC for word in case]
    done = ranks.horovodrun(2, ranks.TESTS / "workers" / "collectives.py", out, *methods)
    assert done.stdout.count("finished on rank") == 2
    return out


@pytest.mark.horovod
def test_compressed_gradients_are_the_mean_to_half_precision(of_two_ranks):
    found = [np.load(of_two_ranks / f"rank{rank}.npz") for rank in range(2)]
    for i, given in enumerate(zip(*map(cases.gradients, range(2)))):
        mean, largest = np.mean(given, axis=0, dtype=np.float64), np.abs(given).max(axis=0)
        for rank in range(2):
            assert found[rank][f"float16 {i}"].dtype == np.float32
            np.testing.assert_array_equal(found[rank][f"float16 {i}"], found[0][f"float16 {i}"])
            # Each number is rounded before the sum, in it and after it: half a unit in the last of its bits.
            error = np.abs(found[rank][f"float16 {i}"] - mean)
            assert (error <= 3 * largest * 2.0**-11).all() and error.max() > 0


@pytest.mark.horovod
def test_both_forms_of_the_shuffle_give_the_same_keys(of_two_ranks):
    """And those of an encoder that is given the shuffled batches by hand."""
    every = np.concatenate([cases.images(rank) for rank in range(2)]).astype(np.float32)
    permutation = shuffle_bn.draw_permutation([3, 5], cases.BATCH, 2).numpy()
    batches = every[permutation].reshape(2, cases.BATCH, -1)
    expected = np.empty((2 * cases.BATCH, batches.shape[2]), np.float32)
    expected[permutation] = (batches - batches.mean(axis=1, keepdims=True)).reshape(expected.shape)
    for rank in range(2):
        found = np.load(of_two_ranks / f"rank{rank}.npz")
        for what in ("own", "all"):
            np.testing.assert_array_equal(found[f"alltoall {what}"], found[f"allgather {what}"])
        np.testing.assert_allclose(found["alltoall all"], expected, atol=1e-3)
        own = slice(rank * cases.BATCH, (rank + 1) * cases.BATCH)
        np.testing.assert_array_equal(found["alltoall own"], found["alltoall all"][own])


@pytest.mark.horovod
@pytest.mark.parametrize(("name", "dtype"), SYNC)
def test_sync_on_two_ranks_is_one_process_with_the_whole_batch(name, dtype, of_two_ranks):
    """Losses, gradients (by the momenta, which are sums of them) and running statistics."""
    method = method_cases.build(name, dtype=dtype)
    start = method_cases.arrays(method)
    expected = method_cases.run(method, steps=range(cases.STEPS[dtype])) | method_cases.arrays(method)
    tolerance = {"float64": 1e-9, "float32": 1e-5}[dtype]
    first, second = (np.load(of_two_ranks / f"{name}-{dtype}-{rank}.npz") for rank in range(2))
    np.testing.assert_allclose(first["metric loss"], expected["metric loss"], rtol=tolerance)
    groups = ("optimizer momentum/", "query_encoder ", "key_encoder ")[: 3 if dtype == "float64" else 1]
    for group in groups:  # of float32 weights the last bit is more than a thousandth of the way they went
        keys = [key for key in expected if key.startswith(group)]
        if not keys:  # SimCLR has one encoder
            continue
        moved = np.concatenate([(expected[key] - start[key]).ravel() for key in keys])
        error = np.concatenate([(first[key] - expected[key]).ravel() for key in keys])
        assert np.linalg.norm(error) <= tolerance * np.linalg.norm(moved), group
    for key in method_cases.arrays(method):
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)  # running statistics, too


class Stand(SingleProcess):
    """Two ranks of which the other one has the same batch."""

    size = 2


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_sync_norm_against_its_formula_and_the_tape(dtype):
    """With the same batch on both ranks it is a plain batch norm, in value and in every gradient."""
    rng = np.random.default_rng(3)
    wide = "float64" if dtype == "float64" else "float32"
    x = tf.cast(rng.normal(50.0, 2.0, (6, 3, 3, 5)), dtype)
    gamma, beta, shift = (tf.constant(rng.normal(m, 0.3, 5), wide) for m in (1, 0, 49))
    weights = tf.constant(rng.normal(size=x.shape), wide)

    def plain(x, gamma, beta):
        mean, variance = tf.nn.moments(tf.cast(x, "float64"), [0, 1, 2])
        y = (tf.cast(x, "float64") - mean) / tf.sqrt(variance + 1e-5)
        return y * tf.cast(gamma, "float64") + tf.cast(beta, "float64"), mean, variance * 108 / 107

    def synchronised(x, gamma, beta):
        return normalise_over_ranks(x, gamma, beta, shift, 1e-5, Stand())

    found = []
    for norm in (synchronised, plain):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            y, *statistics = norm(x, gamma, beta)
            loss = tf.reduce_sum(tf.cast(y, wide) * weights)
        gradients = tape.gradient(loss, [x, gamma, beta])
        found.append([tf.cast(value, "float64").numpy() for value in (y, *statistics, *gradients)])
    tolerance = {"float64": 1e-10, "float32": 2e-4, "bfloat16": 3e-2}[dtype]
    for got, expected in zip(*found):
        np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())


def test_sync_is_refused_where_it_cannot_be():
    with pytest.raises(ValueError, match="bn_splits is 2; expected 1"):
        Encoder("resnet10", stem="cifar", width=4, bn_splits=2).synchronise_norms(SingleProcess())
    with pytest.raises(ValueError, match="expected jit_compile 'views' or 'none'"):
        method_cases.build("moco", ranks=Stand(), bn="sync", jit_compile="all")
    with pytest.raises(ValueError, match="bn is 'group'; expected"):
        method_cases.build("moco", bn="group")


@functools.cache
def first_loss(**kwargs):
    return float(method_cases.run(method_cases.build("moco", **kwargs), steps=[0])["metric loss"][0])


@pytest.mark.parametrize("bn", ["split", "sync"])
def test_without_a_shuffle_keys_stay_where_they_are(bn):
    """In one process without splits that changes nothing but the order of sums."""
    method = method_cases.build("moco", bn=bn)
    assert method.permutation(base.SHUFFLE, 4) is None
    norms = [layer for _, layer in method.key_encoder.named_layers() if isinstance(layer, BatchNorm)]
    assert {norm.over_ranks is not None for norm in norms} == {bn == "sync"}
    assert first_loss(bn=bn) == pytest.approx(first_loss(), rel=1e-5)


def test_a_single_process_rounds_as_ranks_do():
    (mean,) = compressed_mean(SingleProcess(), [tf.constant([1.0 + 2.0**-12, 3.0])], "float16")
    assert mean.dtype == tf.float32 and mean.numpy().tolist() == [1.0, 3.0]
    exact, rounded = (method_cases.build("moco", compression=dtype) for dtype in ("none", "float16"))
    for method in (exact, rounded):
        method_cases.run(method, steps=[0])
    moments = [v.numpy().ravel() for m in (exact, rounded) for v in m.optimizer.slots["momentum"]]
    exact, rounded = (np.concatenate(part) for part in (moments[: len(moments) // 2], moments[len(moments) // 2 :]))
    assert 0 < np.linalg.norm(exact - rounded) < 2**-11 * np.linalg.norm(exact)


def test_a_rank_takes_the_gpu_of_its_place():
    assert [gpu_of_rank(rank, 4, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [gpu_of_rank(rank, 4, 1) for rank in range(4)] == [0, 0, 0, 0]  # the launcher shows each its own
    with pytest.raises(UserError, match="8 ranks on this machine came, expected at most 4"):
        gpu_of_rank(1, 8, 4)
