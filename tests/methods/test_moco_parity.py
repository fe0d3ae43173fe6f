"""MoCo's steps equal the public PyTorch implementations' on the parity cases.

The cases are chaotic: an activation that rounding moves across zero changes the gradient, and after four steps at these
learning rates differences of 1e-6 have grown to 1e-3 and more, in PyTorch's own float32 too. So float64 proves that the
same thing is computed, to 5e-9 on all steps and 1e-8 in all state, and float32 that it is computed well, at the cases'
tolerances. Defects that float32 cannot see are planted: float64 must.
"""

import numpy as np
import pytest
from support import parity_cases, parity_files, ranks

MODES = ("float64", "eager", "graph", "compiled")


def cases(names, everyday):
    """(name, mode) of every case in every mode; those that are not of every day are system tests."""
    pairs = [(name, mode) for name in names for mode in MODES]
    return [pair if pair in everyday else pytest.param(*pair, marks=pytest.mark.system) for pair in pairs]


# Float64 runs eagerly and proves all cases; graph and compiled form are float32's of every day. Their equality with the
# eager form is test_methods.py's, for every method and the symmetric step.
OF_ONE_RANK = [("moco_cifar_asymmetric", mode) for mode in ("float64", "graph", "compiled")]
OF_ONE_RANK += [("moco_cifar_symmetric", "float64")]


@pytest.mark.parametrize("name, mode", cases(["moco_cifar_asymmetric", "moco_cifar_symmetric"], OF_ONE_RANK))
def test_cifar_demo(name, mode):
    case = parity_cases.load(f"float64/{name}.npz")
    method = parity_cases.method(case, mode=mode)
    parity_cases.run(method, case, mode, case["losses"])
    parity_cases.check_state(method, case, mode)
    if mode == "float64":  # a defect that no loss shows: running statistics of keys that follow the queries' for a step
        encoders = method.query_encoder, method.key_encoder
        for query, key in zip(*(encoder.running_statistics() for encoder in encoders), strict=True):
            key.assign(0.99 * key + 0.01 * query)
        with pytest.raises(AssertionError, match="norm of key_encoder bn1.running_mean"):
            parity_cases.check_state(method, case, mode)


# What crosses ranks is the same in every form: a graph in float32 is the usual one.
ON_TWO_RANKS = [("moco_v1_2ranks", "float64"), ("moco_v1_2ranks", "graph"), ("moco_v2_2ranks", "float64")]


@pytest.fixture(scope="module")
def of_two_ranks(request, tmp_path_factory):
    """(folder of the ranks' queues, what was printed) of one launch for all cases that are to be tested."""
    out = tmp_path_factory.mktemp("ranks")
    own = [item for item in request.session.items if item.path == request.path and "of_two_ranks" in item.fixturenames]
    chosen = [item.callspec.params for item in own]
    words = [word for case in chosen for word in (f"float64/{case['name']}.npz", case["mode"])]
    for case in words[::2]:
        parity_files.path(case)
    done = ranks.horovodrun(2, ranks.TESTS / "workers" / "moco_parity.py", out, *words, check=False)
    return out, done.stdout + done.stderr


@pytest.mark.horovod
@pytest.mark.parametrize("name, mode", cases(["moco_v1_2ranks", "moco_v2_2ranks"], ON_TWO_RANKS))
def test_facebook_moco_on_two_ranks(name, mode, of_two_ranks):
    out, said = of_two_ranks
    assert all(f"equal on rank {rank} float64/{name}.npz {mode}" in said for rank in range(2)), said[-4000:]
    np.testing.assert_array_equal(*(np.load(out / f"{name}-{mode}-{rank}.npy") for rank in range(2)))


def test_facebook_moco_of_two_ranks_in_one_process():
    """SplitBatchNorm(2) on the positions' order is two ranks: the same losses, the same weights, the same queue."""
    check_in_one_process("moco_v2_2ranks")


def check_in_one_process(name, plant=lambda moco: None):
    case = parity_cases.load(f"float64/{name}.npz")
    method = parity_cases.method(case | {"bn_splits": 2}, mode="float64")
    plant(method)
    rows = parity_cases.rows_by_position(case)  # position p holds row rows[p]
    shuffles = [[np.argsort(rows)[permutation[rows]]] for permutation in case["shuffles"]]
    trace = parity_cases.run(method, case, "float64", case["losses"].mean(0), rows, shuffles)
    queue = np.concatenate([batch[np.argsort(rows)] for batch in np.split(trace[-1]["queue"], 4)])
    np.testing.assert_allclose(queue.T, case["queue"], atol=1e-8)
    parity_cases.check_tensors(trace[-1], case, 1e-8, own_statistics=False)


# ---- defects that must not pass


def no_weight_decay(moco):
    moco.optimizer.coupled_weight_decay = 0.0


def no_weight_decay_of_norms_and_biases(moco):
    optimizer, update = moco.optimizer, moco.optimizer.update_step

    def spare(gradient, variable, learning_rate):
        decay, optimizer.coupled_weight_decay = optimizer.coupled_weight_decay, 0.0
        optimizer.coupled_weight_decay = decay if len(variable.shape) > 1 else 0.0
        update(gradient, variable, learning_rate)
        optimizer.coupled_weight_decay = decay

    optimizer.update_step = spare


def another_momentum(moco):
    moco.key_momentum.assign(moco.key_momentum + 1e-4)  # 0.9901 for 0.99


def keys_move_after_the_step(moco):
    moco.update_first = False


def nesterov(moco):
    moco.optimizer.nesterov = True


def keys_enter_before_the_loss(moco):
    keys = moco._keys

    def enqueued(*given):
        own, every = keys(*given)
        moco.queue.enqueue(every)
        return own, every

    moco._keys, moco._enqueue = enqueued, lambda every: None


@pytest.mark.parametrize(
    "defect, seen_in",
    [
        (no_weight_decay, "step 2"),
        (no_weight_decay_of_norms_and_biases, "norm of query_encoder bn1.weight"),
        (another_momentum, "step 2"),
        (keys_move_after_the_step, "norm of key_encoder conv1.weight"),
        (nesterov, "step 2"),
        (keys_enter_before_the_loss, "step 1"),
    ],
)
def test_a_planted_defect_is_seen(defect, seen_in):
    with pytest.raises(AssertionError, match=seen_in):
        check_in_one_process("moco_v2_2ranks", defect)
