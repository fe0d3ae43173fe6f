"""Runs a method on a parity case and compares what is left."""

import functools

import numpy as np

from moco_tf.methods.moco import MoCo
from moco_tf.networks.encoder import Encoder
from moco_tf.run import exact_steps
from moco_tf.training.optimizers import SGD
from support import parity_files, parity_weights

# Relative, of steps 1 to 4. In float32 the README's of the parity cases, but for the fourth step of v1 (temperature
# 0.07, batches of 8): 2e-3 to 1.7e-2 was measured there, with the order of summation, and 1.3e-2 in PyTorch itself.
# In float64, where 7e-10 was measured, Keras' learning rate is what differs: it has 24 bits.
LOSS_TOLERANCE = {"float64": (5e-9,) * 4, "float32": (1e-4, 2e-4, 5e-3, 5e-3), "v1 float32": (1e-4, 2e-4, 5e-3, 4e-2)}


def load(name):
    case = np.load(parity_files.path(name))
    return {key: case[key] for key in case.files}


def method(case, collectives=None, mode="graph"):
    """A MoCo with the case's weights, queue and hyper-parameters."""
    arch, stem, head = (str(case[key]) for key in ("arch", "stem", "head"))
    dtype = "float64" if mode == "float64" else "float32"
    splits = int(case.get("bn_splits", 1))
    encoders = [
        Encoder(arch, stem=stem, bn_splits=splits, head=head, feature_dim=int(case["dim"]), dtype=dtype)
        for _ in range(2)
    ]
    moco = MoCo(
        *encoders,
        queue_size=int(case["queue_size"]),
        key_momentum=float(case["key_momentum"]),
        temperature=float(case["temperature"]),
        symmetric=bool(case.get("symmetric", False)),
        collectives=collectives,
        jit_compile="all" if mode == "compiled" else "none",
    )
    moco.compile(SGD(float(case["lr"]), float(case["sgd_momentum"]), float(case["weight_decay"])))
    weights = _weights(arch, int(case["weights_seed"]), stem, head, int(case["dim"]))
    queue = parity_weights.queue(int(case["queue_seed"]), int(case["dim"]), int(case["queue_size"]))
    exact_steps.set_state(moco, weights, queue.T)
    return moco


_weights = functools.lru_cache(maxsize=1)(parity_weights.state_dict)


def pairs(case, rows=slice(None)):
    """The steps' (query, key) images, NHWC, of the given rows of the global batch."""
    several = "ranks" in case
    n = int(case["batch_per_rank"] * case["ranks"] if several else case["batch"])
    mix = case["key_mix"].astype(np.float32 if several else np.float64)  # see the README of the parity cases
    for step in range(int(case["steps"])):
        query = parity_weights.images(int(case["query_seed"]) + step, n, int(case["size"]))
        other = parity_weights.images(int(case["key_seed"]) + step, n, int(case["size"]))
        key = mix[0] * query + mix[1] * other
        yield tuple(np.ascontiguousarray(x[rows].transpose(0, 2, 3, 1)) for x in (query, key))


def run(moco, case, mode, losses, rows=slice(None), shuffles=None, loss="loss"):
    """Runs the steps and compares each loss: float64 eagerly, as tracing takes longer, float32 as a graph.

    Args:
        moco: of `method`.
        case: of `load`.
        mode: "float64", "eager", "graph" or "compiled".
        losses: expected.
        rows: of the global batch's images, this process's.
        shuffles: permutations; None: the case's own.
        loss: the record's name of what is compared.

    Returns:
        The records of `exact_steps.run_steps`.
    """
    found = []
    for some in records(moco, case, mode, rows, shuffles):
        found += some
        check_losses([record[loss] for record in found], losses, case, mode)
    return found


def records(moco, case, mode, rows=slice(None), shuffles=None):
    """Runs the steps, see `run`; yields lists of records of `exact_steps.run_steps`."""
    steps = int(case["steps"])
    shuffles = case["shuffles"].reshape(steps, 1 + moco.symmetric, -1) if shuffles is None else shuffles
    data = list(zip(pairs(case, rows), map(list, shuffles), strict=True))
    eager = mode in ("float64", "eager")
    for chunk in [[one] for one in data] if eager else [data]:  # a graph is traced once
        yield exact_steps.run_steps(moco, *map(list, zip(*chunk)), eager=eager)


def rows_by_position(case):
    """The rank-major row at each position of the global batch: rank r holds the positions p with p mod ranks = r."""
    ranks, batch = int(case["ranks"]), int(case["batch_per_rank"])
    return np.arange(ranks * batch).reshape(ranks, batch).T.ravel()


def check_losses(found, expected, case, mode):
    precision = "float64" if mode == "float64" else "float32"
    v1 = "v1 " if float(case["temperature"]) == 0.07 and mode != "float64" else ""
    for step, (loss, value, tolerance) in enumerate(zip(found, expected, LOSS_TOLERANCE[v1 + precision]), start=1):
        np.testing.assert_allclose(loss, value, rtol=tolerance, err_msg=f"step {step}")


def check_state(moco, case, mode, own_statistics=True):
    """Final queue and pointer, and every tensor's mean and norm.

    Args:
        moco: after the case's steps.
        case: of `load`.
        mode: see `run`.
        own_statistics: whether the case's running statistics are those of this process: rank 0's.
    """
    tolerance = 1e-8 if mode == "float64" else 5e-3  # measured: 3e-9 and 3e-3
    state = exact_steps.snapshot(moco)
    np.testing.assert_allclose(state["queue"].T, case["queue"], atol=tolerance * np.abs(case["queue"]).max())
    assert state["queue_pointer"] == int(case["queue_ptr"])
    check_tensors(state, case, tolerance, own_statistics)


def check_tensors(state, case, tolerance, own_statistics=True):
    """Both encoders' tensors, see `check_tensor`."""
    for ours, theirs in (("query_encoder", "encoder_q"), ("key_encoder", "encoder_k")):
        # The key encoder moves by 1 % of what the query encoder does, or less: in float32, too, it is known to 1e-6.
        bound = tolerance if ours == "query_encoder" else min(tolerance, 1e-5)
        for name, value in state[ours].items():
            if own_statistics or ".running_" not in name:
                check_tensor(value, case[f"{theirs}/{name}"], bound, f"{ours} {name}")


def check_tensor(value, mean_and_norm, tolerance, name):
    """Norm relative to itself; mean relative to the root mean square, by which a change of the tensor moves it.

    In float64 that leaves no mean free to change its sign: the least of the cases is 1e-5 of the root mean square.
    """
    value, (mean, norm) = value.astype(np.float64), mean_and_norm
    np.testing.assert_allclose(np.linalg.norm(value), norm, rtol=tolerance, err_msg=f"norm of {name}")
    atol = tolerance * norm / np.sqrt(value.size)
    np.testing.assert_allclose(value.mean(), mean, rtol=0, atol=atol, err_msg=f"mean of {name}")
