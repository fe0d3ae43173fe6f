"""MoCo's steps equal the public PyTorch implementations' on the parity cases."""

import numpy as np
import parity_cases
import pytest


@pytest.mark.parametrize("mode", ["eager", "graph", "compiled"])
@pytest.mark.parametrize("name", ["moco_cifar_asymmetric", "moco_cifar_symmetric"])
def test_cifar_demo(name, mode):
    case = parity_cases.load(f"float64/{name}.npz")
    method = parity_cases.method(case, jit_compile="all" if mode == "compiled" else "none")
    trace = parity_cases.run(method, case, eager=mode == "eager")
    parity_cases.check(method, case, [step["loss"] for step in trace])
