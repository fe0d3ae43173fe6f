"""Losses equal the naive oracles, the hand-computed cases and the public implementations; their gradients too."""

import math

import numpy as np
import pytest
import tensorflow as tf
from support import oracles, parity_files

from moco_tf.contrast import losses, memory_bank, nce, supcon

MODES = ("eager", "graph", "compiled")
B, C, K = 6, 5, 11


def value_and_gradient(loss, features, mode="eager"):
    """A loss of features alone and its gradient, as float64 NumPy."""

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(x)
        return value, tape.gradient(value, x)

    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "compiled")
    value, gradient = run(tf.constant(features, tf.float32))
    return float(value), gradient.numpy().astype(np.float64)


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def batch(seed, ranks=1):
    """q, k, queue, labels, key_labels, queue_labels: with unlabelled images, empty rows and a label of its own."""
    rng = np.random.default_rng(seed)
    g = B * ranks
    labels, queue_labels = rng.integers(0, 3, g), rng.integers(0, 3, K)
    labels[1], labels[2], queue_labels[::3] = -1, 77, -1
    labels[3] = -1
    return unit(rng, g, C), unit(rng, g, C), unit(rng, K, C), labels, labels, queue_labels


def f32(*arrays):
    return [tf.constant(a, tf.float32 if a.dtype.kind == "f" else tf.int64) for a in arrays]


def without_key_labels(q, k, queue, labels, _, queue_labels):
    return q, k, queue, labels, queue_labels


def info_nce(q, k, queue, temperature):
    return losses.info_nce(losses.info_nce_logits(q, k, queue, temperature))


def supcon_in(*given, **first_key):
    return supcon.supcon_in(*supcon.against_keys(*given, **first_key))


def supcon_out(*given, **first_key):
    return supcon.supcon_out(*supcon.against_keys(*given, **first_key))


def info_nce_case(seed):
    return batch(seed)[:3]


def suploss_case(seed):
    return without_key_labels(*batch(seed))


QUEUE_LOSSES = {
    "info_nce": (info_nce, oracles.info_nce, info_nce_case),
    "in": (supcon_in, oracles.supcon_in, batch),
    "out": (supcon_out, oracles.supcon_out, batch),
    "suploss": (supcon.supcon_suploss, oracles.supcon_suploss, suploss_case),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("name", QUEUE_LOSSES)
def test_queue_loss_equals_its_oracle(name, temperature, mode):
    loss, oracle, case = QUEUE_LOSSES[name]
    q, *rest = case(3)
    constants = f32(*rest)
    value, gradient = value_and_gradient(lambda x: loss(x, *constants, temperature), q, mode)
    np.testing.assert_allclose(value, oracle(q, *rest, temperature), rtol=1e-6)
    expected = oracles.numerical_gradient(lambda x: oracle(x, *rest, temperature), q)
    np.testing.assert_allclose(gradient, expected, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("contrast_mode", ["all", "one"])
@pytest.mark.parametrize("labelled", [False, True])
def test_batch_loss_equals_its_oracle(labelled, contrast_mode, mode):
    features = unit(np.random.default_rng(5), 4, 3, C)
    labels = np.array([0, -1, 0, -1]) if labelled else None
    value, gradient = value_and_gradient(lambda x: supcon.supcon_batch(x, labels, 0.3, contrast_mode), features, mode)

    def oracle(x):
        return oracles.supcon_batch(x, labels, 0.3, contrast_mode)

    np.testing.assert_allclose(value, oracle(features), rtol=1e-6)
    np.testing.assert_allclose(gradient, oracles.numerical_gradient(oracle, features), atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_nce_equals_its_oracle(mode):
    rng = np.random.default_rng(6)
    features, rows = unit(rng, B, C), unit(rng, B, 1 + 9, C)
    constant = tf.constant(rows, tf.float32)
    value, gradient = value_and_gradient(
        lambda x: nce.nce_loss(similarities(x, constant), 0.1, 1234.5, 200), features, mode
    )
    np.testing.assert_allclose(value, oracles.nce(features, rows, 0.1, 1234.5, 200), rtol=1e-6)
    expected = oracles.numerical_gradient(lambda x: oracles.nce(x, rows, 0.1, 1234.5, 200), features)
    np.testing.assert_allclose(gradient, expected, atol=2e-6)


def similarities(features, rows):
    return tf.einsum("bc,bmc->bm", tf.cast(features, tf.float32), rows)


def parity_case(name):
    case = np.load(parity_files.path(name))
    return {key: case[key] for key in case.files}


def check_parity(case, name, loss, features):
    value, gradient = value_and_gradient(loss, features)
    np.testing.assert_allclose(value, case[name], rtol=1e-6, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(gradient, case[f"{name}_grad"], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_queue_losses_equal_the_public_ones(temperature):
    case = parity_case("queue_losses.npz")
    q = case["query"]
    given = f32(*(case[name] for name in ("key", "queue", "labels", "labels", "queue_labels")))
    k, queue, labels, _, queue_labels = given
    public = {
        "in": lambda x: supcon_in(x, *given, temperature),
        "out": lambda x: supcon_out(x, *given, temperature),
        "suploss": lambda x: supcon.supcon_suploss(x, k, queue, labels, queue_labels, temperature),
        "infonce": lambda x: info_nce(x, k, queue, temperature),
    }
    for name, loss in public.items():
        check_parity(case, f"{name}_t{temperature}", loss, q)


@pytest.mark.parametrize("temperature", [0.07, 0.1])
def test_nce_equals_the_public_one(temperature):
    case = parity_case("queue_losses.npz")
    rows = tf.constant(case["bank"][case["bank_indices"]])
    z = nce.normalisation_constant(similarities(case["query"], rows), temperature, len(case["bank"]))
    np.testing.assert_allclose(z, case[f"npid_t{temperature}_z"], rtol=1e-6)
    loss = lambda x: nce.nce_loss(similarities(x, rows), temperature, z, len(case["bank"]))  # noqa: E731
    check_parity(case, f"npid_t{temperature}", loss, case["query"])
    after = nce.update_rows(rows[:, 0], tf.constant(case["query"]), float(case["bank_momentum"]))
    np.testing.assert_allclose(after, case["bank_rows_after"], atol=1e-7)


@pytest.mark.parametrize("contrast_mode", ["all", "one"])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5])
def test_batch_losses_equal_the_public_ones(temperature, contrast_mode):
    case = parity_case("supcon.npz")
    for name, labels in (("supcon", case["labels"]), ("simclr", None)):
        loss = lambda x, labels=labels: supcon.supcon_batch(x, labels, temperature, contrast_mode)  # noqa: E731
        check_parity(case, f"{name}_{contrast_mode}_t{temperature}", loss, case["features"])


# Computed by hand: the similarities are 1 (own key), 0 (a queue row of the same label) and 0 (one of another).
E1 = math.e
BY_HAND = {
    "info_nce": -math.log(E1 / (E1 + 2)),  # 0.5514
    "in": -math.log((E1 + 1) / (E1 + 2) / 2),  # 0.9313
    "out": -(math.log(E1 / (E1 + 2)) + math.log(1 / (E1 + 2))) / (2 + 1e-5),  # 1.0514
    "suploss": -(math.log(E1 / (E1 + 2)) + math.log(1 / (E1 + 2))) / 2,  # 1.0514
}


@pytest.mark.parametrize("name", QUEUE_LOSSES)
def test_one_image_by_hand(name):
    q, queue = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, -1.0]])
    whole = (q, q, queue, np.array([4]), np.array([4]), np.array([4, 2]))
    loss = QUEUE_LOSSES[name][0]
    arguments = {"info_nce": whole[:3], "suploss": without_key_labels(*whole)}.get(name, whole)
    np.testing.assert_allclose(loss(*f32(*arguments), 1.0), BY_HAND[name], rtol=1e-6)


def test_nce_by_hand():
    """P_0 = e / 10 and P_1 = 1 / 10 against M / n = 1 / 4; Z = 8 (e + 1) / 2."""
    v, rows = tf.constant([[1.0, 0.0]]), tf.constant([[[1.0, 0.0], [0.0, 1.0]]])
    expected = -math.log(E1 / (E1 + 2.5)) - math.log(2.5 / (1 + 2.5))
    np.testing.assert_allclose(nce.nce_loss(similarities(v, rows), 1.0, 10.0, 4), expected, rtol=1e-6)
    np.testing.assert_allclose(nce.normalisation_constant(similarities(v, rows), 1.0, 8), 4 * (E1 + 1), rtol=1e-6)


def test_bank_momentum_weighs_the_new_features():
    old, new = tf.constant([[1.0, 0.0]]), tf.constant([[0.0, 1.0]])
    expected = np.array([[0.25, 0.75]]) / math.hypot(0.25, 0.75)
    np.testing.assert_allclose(nce.update_rows(old, new, 0.75), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_in_is_at_most_out(seed):
    for temperature in (0.07, 0.5):
        arguments = f32(*batch(seed))
        inside = float(supcon_in(*arguments, temperature))
        outside = float(supcon_out(*arguments, temperature))
        assert inside <= outside * (1 + 2e-5)  # 2e-5: Out divides by |P| + 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_one_positive_makes_all_equal(seed):
    """One image without a partner in the queue: In, Out, SupLoss and InfoNCE have the same candidates."""
    q, k, queue, labels, _, queue_labels = batch(seed)
    one = f32(q[:1], k[:1], queue, np.array([9]), np.array([9]), queue_labels)
    expected = float(info_nce(*one[:3], 0.2))
    np.testing.assert_allclose(supcon_in(*one, 0.2), expected, rtol=1e-6)
    np.testing.assert_allclose(supcon_out(*one, 0.2), expected / (1 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(supcon.supcon_suploss(*without_key_labels(*one), 0.2), expected, rtol=1e-6)


@pytest.mark.parametrize("loss", [supcon_in, supcon_out])
def test_ranks_have_the_mean_of_the_whole_batch(loss):
    q, k, queue, labels, key_labels, queue_labels = f32(*batch(8, ranks=2))
    whole = loss(q, k, queue, labels, key_labels, queue_labels, 0.2)
    parts = [
        loss(q[i : i + B], k, queue, labels[i : i + B], key_labels, queue_labels, 0.2, first_key=i) for i in (0, B)
    ]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-6)
    wrong = loss(q[B:], k, queue, labels[B:], key_labels, queue_labels, 0.2)
    assert abs(float(wrong - parts[1])) > 1e-3


@pytest.mark.parametrize("name", ["in", "out", "suploss"])
def test_empty_rows_are_negatives_of_all(name):
    """An empty row counts as one of a label that no image has: also for unlabelled images."""
    loss, _, case = QUEUE_LOSSES[name]
    *rest, queue_labels = case(4)
    other = np.where(queue_labels < 0, 1000, queue_labels)
    np.testing.assert_array_equal(loss(*f32(*rest, queue_labels), 0.1), loss(*f32(*rest, other), 0.1))


@pytest.mark.parametrize("name", ["in", "out", "suploss"])
@pytest.mark.parametrize("label", [-1, 0])
def test_nothing_is_nan(name, label):
    """Neither where nothing has a label nor where every candidate is positive, at a temperature that overflows exp."""
    loss, _, case = QUEUE_LOSSES[name]
    q, *rest = (np.full_like(a, label) if a.dtype.kind == "i" else a for a in case(4))
    constants = f32(*rest)
    value, gradient = value_and_gradient(lambda x: loss(x, *constants, 0.005), q)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_in_of_positives_alone():
    """sum_P = sum_A: log |P|, without any gradient."""
    q, k, queue, *_ = batch(4)
    rest = f32(k, queue, np.zeros(B, int), np.zeros(B, int), np.zeros(K, int))
    value, gradient = value_and_gradient(lambda x: supcon_in(x, *rest, 0.1), q)
    np.testing.assert_allclose(value, math.log(B + K), rtol=1e-6)
    assert not gradient.any()


def test_small_losses_keep_their_digits():
    """exp(-30) against 1: a log-sum-exp minus the positive gives 0."""
    q, queue = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    arguments = f32(q, q, queue, np.array([0]), np.array([0]), np.array([1]))
    np.testing.assert_allclose(supcon_in(*arguments, 1 / 30), math.exp(-30), rtol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(arguments[0])
        loss = info_nce(*arguments[:3], 1 / 30)
    np.testing.assert_allclose(loss, math.exp(-30), rtol=1e-5)
    gradient = 30 * math.exp(-30) * np.array([[-1.0, 1.0]])  # towards the key, off the queue
    np.testing.assert_allclose(tape.gradient(loss, arguments[0]), gradient, rtol=1e-5)


@pytest.mark.parametrize("name", QUEUE_LOSSES)
def test_no_gradient_flows_into_keys(name):
    """Nor into the queue. That SupLoss's flows into q as a candidate too is in its oracle's gradient above."""
    loss, _, case = QUEUE_LOSSES[name]
    q, k, queue, *labels = f32(*case(2))
    with tf.GradientTape() as tape:
        tape.watch([q, k, queue])
        value = loss(q, k, queue, *labels, 0.2)
    to_q, to_k, to_queue = tape.gradient(value, [q, k, queue])
    assert to_q is not None and to_k is None and to_queue is None


@pytest.mark.parametrize("count", [4, 30])  # rows are gathered; all similarities are computed
def test_no_gradient_flows_into_the_bank(count):
    bank = memory_bank.MemoryBank(20, 3)
    rows = tf.constant(np.random.default_rng(0).integers(0, 20, (2, count)))
    features = tf.constant([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    with tf.GradientTape() as tape:
        tape.watch([features, bank.rows])
        s = bank.similarities(features, rows)
        value = nce.nce_loss(s, 0.1, 10.0, 20)
    to_features, to_rows = tape.gradient(value, [features, bank.rows])
    assert to_features is not None and to_rows is None
    np.testing.assert_allclose(s, np.einsum("bc,brc->br", features, bank.rows.numpy()[rows]), atol=1e-6)


def test_base_temperature_scales_the_batch_loss():
    features = tf.constant(unit(np.random.default_rng(1), 4, 2, C), tf.float32)
    whole = supcon.supcon_batch(features, temperature=0.5)
    scaled = supcon.supcon_batch(features, temperature=0.5, base_temperature=0.07)
    np.testing.assert_allclose(scaled, whole * 0.5 / 0.07, rtol=1e-6)


def test_distinct_labels_are_simclr():
    features = tf.constant(unit(np.random.default_rng(1), 4, 2, C), tf.float32)
    expected = supcon.supcon_batch(features, None, 0.5)
    for labels in ([3, 1, 0, 2], [-1, -1, -1, -1]):
        np.testing.assert_allclose(supcon.supcon_batch(features, tf.constant(labels), 0.5), expected, rtol=1e-6)


def test_one_view_without_partner_counts_as_nothing():
    features = unit(np.random.default_rng(1), 4, 1, C)
    value, gradient = value_and_gradient(lambda x: supcon.supcon_batch(x, tf.range(4), 0.5), features)
    assert value == 0.0 and not gradient.any()


def test_bad_arguments_say_so():
    with pytest.raises(ValueError, match="contrast_mode is 'two'; expected"):
        supcon.supcon_batch(tf.zeros([4, 2, 3]), contrast_mode="two")
    with pytest.raises(ValueError, match=r"shape \(4, 3\); expected batch x views"):
        supcon.supcon_batch(tf.zeros([4, 3]))


def test_contrast_accuracy():
    """Positives with 0, 1, 4 and 5 candidates nearer."""
    logits = np.zeros((4, 8), np.float32)
    for row, nearer in enumerate((0, 1, 4, 5)):
        logits[row, 1 : 1 + nearer] = 1.0
        logits[row, 1 + nearer :] = -1.0
    top1, top5 = losses.contrast_accuracy(tf.constant(logits))
    assert (float(top1), float(top5)) == (0.25, 0.75)


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_features_that_tell_nothing_apart_are_right_nowhere(value):
    """Neither keys, nor views of a batch, nor classes."""
    found = [*losses.contrast_accuracy(tf.fill([4, 8], value)), *supcon.batch_accuracy(tf.fill([4, 2, 3], value))]
    found += losses.nearest_is_positive(tf.fill([4, 10], value), tf.one_hot(range(4), 10, True, False, dtype=tf.bool))
    assert [float(share) for share in found] == [0.0] * 6
