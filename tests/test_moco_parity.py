"""MoCo's steps equal the public PyTorch implementations' on the parity cases."""

import numpy as np
import parity_cases
import parity_files
import pytest
import ranks

MODES = ("eager", "graph", "compiled")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["moco_cifar_asymmetric", "moco_cifar_symmetric"])
def test_cifar_demo(name, mode):
    case = parity_cases.load(f"float64/{name}.npz")
    method = parity_cases.method(case, jit_compile="all" if mode == "compiled" else "none")
    trace = parity_cases.run(method, case, eager=mode == "eager")
    parity_cases.check_losses([step["loss"] for step in trace], case["losses"])
    parity_cases.check_state(method, case)


@pytest.mark.horovod
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["moco_v1_2ranks", "moco_v2_2ranks"])
def test_facebook_moco_on_two_ranks(name, mode, tmp_path):
    case = f"float64/{name}.npz"
    parity_files.path(case)
    done = ranks.horovodrun(2, ranks.TESTS / "workers" / "moco_parity.py", case, mode, tmp_path)
    assert done.stdout.count("equal on rank") == 2
    queues = [np.load(tmp_path / f"queue-{rank}.npy") for rank in range(2)]
    np.testing.assert_array_equal(*queues)
