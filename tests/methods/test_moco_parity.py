"""MoCo's steps equal the public PyTorch implementations' on the parity cases.

The cases are chaotic: an activation that rounding moves across zero changes the gradient, and after four steps at these
learning rates differences of 1e-6 have grown to 1e-3 and more, in PyTorch's own float32 too. So float64 proves that the
same thing is computed, to 1e-7 on all steps, and float32 that it is computed well, at the cases' tolerances.
"""

import numpy as np
import pytest
from support import parity_cases, parity_files, ranks

MODES = ("float64", "eager", "graph", "compiled")


def cases(names, everyday):
    """(name, mode) of every case in every mode; those that are not of every day are system tests."""
    pairs = [(name, mode) for name in names for mode in MODES]
    return [pair if pair in everyday else pytest.param(*pair, marks=pytest.mark.system) for pair in pairs]


# Float64 proves all cases, and the symmetric step's modes are compared on a small network, too: test_methods.py.
OF_ONE_RANK = [*(("moco_cifar_asymmetric", mode) for mode in MODES), ("moco_cifar_symmetric", "float64")]


@pytest.mark.parametrize("name, mode", cases(["moco_cifar_asymmetric", "moco_cifar_symmetric"], OF_ONE_RANK))
def test_cifar_demo(name, mode):
    case = parity_cases.load(f"float64/{name}.npz")
    method = parity_cases.method(case, mode=mode)
    trace = parity_cases.run(method, case, eager=mode == "eager")
    parity_cases.check_losses([step["loss"] for step in trace], case["losses"], mode)
    parity_cases.check_state(method, case, mode)


# Each form of float32 on one of them.
ON_TWO_RANKS = [("moco_v1_2ranks", mode) for mode in ("float64", "graph")]
ON_TWO_RANKS += [("moco_v2_2ranks", mode) for mode in ("float64", "eager", "compiled")]


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


@pytest.mark.parametrize("name", ["moco_v1_2ranks", "moco_v2_2ranks"])
def test_facebook_moco_of_two_ranks_in_one_process(name):
    """SplitBatchNorm(2) on the positions' order is two ranks: the same losses, the same queue."""
    case = parity_cases.load(f"float64/{name}.npz")
    method = parity_cases.method(case | {"bn_splits": 2}, mode="float64")
    rows = parity_cases.rows_by_position(case)  # position p holds row rows[p]
    shuffles = [[np.argsort(rows)[permutation[rows]]] for permutation in case["shuffles"]]
    trace = parity_cases.debug.run_steps(method, list(parity_cases.pairs(case, rows)), shuffles)
    np.testing.assert_allclose([step["loss"] for step in trace], case["losses"].mean(0), rtol=1e-7)
    by_row = np.concatenate([batch[np.argsort(rows)] for batch in np.split(method.queue.keys.numpy(), 4)])
    np.testing.assert_allclose(by_row.T, case["queue"], atol=1e-7)
