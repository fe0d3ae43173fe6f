"""MoCo v3's steps equal the public PyTorch implementation's: five of them, on two ranks and in one process.

Float64 proves that the same is computed, to 1e-8 in every tensor's change; float32 that it is computed well.
"""

import numpy as np
import pytest
import tensorflow as tf
from support import parity_cases_v3, parity_files, ranks

NAMES = ("resnet", "vit", "vit_conv")
# Of every day: float64 on two ranks, which is the strictest, and a graph in float32; the rest are system tests.
EVERYDAY = {("vit", "graph")}
ON_TWO_RANKS = {("resnet", "float64"), ("vit_conv", "float64")}


def cases(modes, everyday):
    pairs = [(name, mode) for name in NAMES for mode in modes]
    return [pair if pair in everyday else pytest.param(*pair, marks=pytest.mark.system) for pair in pairs]


def file_of(name, mode):
    return f"{'float64/' if mode == 'float64' else ''}moco_v3_{name}_2ranks.npz"


@pytest.mark.parametrize("name, mode", cases(("float64", "eager", "graph", "compiled"), EVERYDAY))
def test_one_process_with_the_global_batch(name, mode):
    case = parity_cases_v3.load(file_of(name, mode))
    parity_cases_v3.run(parity_cases_v3.method(case, mode=mode), case, mode)


@pytest.fixture(scope="module")
def of_two_ranks(request):
    """What was printed by one launch for all cases that are to be tested."""
    own = [item for item in request.session.items if item.path == request.path and "of_two_ranks" in item.fixturenames]
    chosen = [item.callspec.params for item in own]
    words = [word for each in chosen for word in (file_of(each["name"], each["mode"]), each["mode"])]
    for file in words[::2]:
        parity_files.path(file)
    done = ranks.horovodrun(2, ranks.TESTS / "workers" / "moco_v3_parity.py", *words, check=False)
    return done.stdout + done.stderr


@pytest.mark.horovod
@pytest.mark.parametrize("name, mode", cases(("float64", "graph", "compiled"), ON_TWO_RANKS))
def test_two_ranks(name, mode, of_two_ranks):
    """With SyncBN in trunk and heads, keys of both ranks, gradients averaged."""
    expected = [f"equal on rank {rank} {file_of(name, mode)} {mode}" for rank in range(2)]
    assert all(line in of_two_ranks for line in expected), of_two_ranks[-4000:]


# ---- defects that must not pass


def keys_move_after_the_step(method):
    update, apply = method._update_keys, method.apply
    method._update_keys = lambda: None

    def applied(*given):
        metrics = apply(*given)
        update()
        return metrics

    method.apply = applied


def statistics_of_keys_follow(method):
    update = method._update_keys

    def moved():
        update()
        for q, k in zip(method.query_encoder.running_statistics(), method.key_encoder.running_statistics()):
            k.assign(0.9 * k + 0.1 * q)

    method._update_keys = moved


def both_views_in_one_batch(method):
    method._encode_keys = lambda x: tf.nn.l2_normalize(method.key_encoder(tf.concat([x, -x], 0), training=True), 1)[:16]


def no_decay_of_vectors(method):
    update, optimizer = method.optimizer.update_step, method.optimizer

    def spare(gradient, variable, learning_rate):
        decay = optimizer.coupled_weight_decay
        optimizer.coupled_weight_decay = decay if len(variable.shape) > 1 else 0.0
        update(gradient, variable, learning_rate)
        optimizer.coupled_weight_decay = decay

    optimizer.update_step = spare


@pytest.mark.parametrize(
    "defect, seen_in",
    [
        (keys_move_after_the_step, "norm of momentum_encoder/.* in step 2"),
        (statistics_of_keys_follow, "norm of momentum_encoder/head.1.running_.* in step 4"),
        (both_views_in_one_batch, "step 1"),
        (no_decay_of_vectors, "norm of base_encoder/blocks.0.norm1.weight in step 2"),
    ],
)
def test_a_planted_defect_is_seen(defect, seen_in):
    case = parity_cases_v3.load(file_of("vit", "float64"))
    method = parity_cases_v3.method(case)
    defect(method)
    with pytest.raises(AssertionError, match=seen_in):
        parity_cases_v3.run(method, case | {"steps": np.int64(4)}, "float64")
