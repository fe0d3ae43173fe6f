"""MoCo's steps equal the public PyTorch implementations' on the parity cases.

The cases are chaotic: an activation that rounding moves across zero changes the gradient, and after four steps at these
learning rates differences of 1e-6 have grown to 1e-3 and more, in PyTorch's own float32 too. So float64 proves that the
same thing is computed, to 1e-7 on all steps, and float32 that it is computed well, at the cases' tolerances.
"""

import numpy as np
import parity_cases
import parity_files
import pytest
import ranks

MODES = ("float64", "eager", "graph", "compiled")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["moco_cifar_asymmetric", "moco_cifar_symmetric"])
def test_cifar_demo(name, mode):
    case = parity_cases.load(f"float64/{name}.npz")
    method = parity_cases.method(case, mode=mode)
    trace = parity_cases.run(method, case, eager=mode == "eager")
    parity_cases.check_losses([step["loss"] for step in trace], case["losses"], mode)
    parity_cases.check_state(method, case, mode)


@pytest.mark.horovod
@pytest.mark.parametrize("name", ["moco_v1_2ranks", "moco_v2_2ranks"])
def test_facebook_moco_on_two_ranks(name, tmp_path):
    case = f"float64/{name}.npz"
    parity_files.path(case)
    done = ranks.horovodrun(2, ranks.TESTS / "workers" / "moco_parity.py", case, tmp_path, *MODES)
    for mode in MODES:
        assert all(f"equal on rank {rank} {mode}" in done.stdout for rank in range(2))
        np.testing.assert_array_equal(*(np.load(tmp_path / f"queue-{mode}-{rank}.npy") for rank in range(2)))


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
