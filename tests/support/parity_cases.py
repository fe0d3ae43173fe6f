"""Runs a method on a parity case and compares what is left."""

import numpy as np

from moco_tf.methods.moco import MoCo
from moco_tf.networks.encoder import Encoder
from moco_tf.run import debug
from moco_tf.training.optimizers import SGD
from support import parity_files, parity_weights

LOSS_TOLERANCE = (1e-4, 2e-4, 5e-3, 5e-3)  # of steps 1 to 4 in float32, see the README of the parity cases


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
    weights = parity_weights.state_dict(arch, int(case["weights_seed"]), stem, head, int(case["dim"]))
    queue = parity_weights.queue(int(case["queue_seed"]), int(case["dim"]), int(case["queue_size"]))
    debug.set_state(moco, weights, queue.T)
    return moco


def pairs(case, rows=slice(None)):
    """The steps' (query, key) images, NHWC, of the given rows of the global batch."""
    n = int(case["batch"] if "batch" in case else case["batch_per_rank"] * case["ranks"])
    for step in range(int(case["steps"])):
        query = parity_weights.images(int(case["query_seed"]) + step, n, int(case["size"]))
        other = parity_weights.images(int(case["key_seed"]) + step, n, int(case["size"]))
        key = np.float32(case["key_mix"][0]) * query + np.float32(case["key_mix"][1]) * other
        yield tuple(np.ascontiguousarray(x[rows].transpose(0, 2, 3, 1)) for x in (query, key))


def run(moco, case, eager=False, rows=slice(None)):
    per_step = 2 if moco.symmetric else 1
    shuffles = case["shuffles"].reshape(int(case["steps"]), per_step, -1)
    return debug.run_steps(moco, list(pairs(case, rows)), [list(s) for s in shuffles], eager=eager)


def rows_by_position(case):
    """The rank-major row at each position of the global batch: rank r holds the positions p with p mod ranks = r."""
    ranks, batch = int(case["ranks"]), int(case["batch_per_rank"])
    return np.arange(ranks * batch).reshape(ranks, batch).T.ravel()


def check_losses(losses, expected, mode, float32_steps=4):
    tolerances = (1e-7,) * 4 if mode == "float64" else LOSS_TOLERANCE[:float32_steps]
    for step, (loss, value, tolerance) in enumerate(zip(losses, expected, tolerances), start=1):
        np.testing.assert_allclose(loss, value, rtol=tolerance, err_msg=f"step {step}")


def check_state(moco, case, mode):
    """Final queue and pointer, and every tensor's mean and norm."""
    tolerance = 1e-6 if mode == "float64" else 5e-3  # Keras keeps the learning rate in float32: 4e-8 relative
    state = debug.snapshot(moco)
    np.testing.assert_allclose(state["queue"].T, case["queue"], atol=tolerance * np.abs(case["queue"]).max())
    assert state["queue_pointer"] == int(case["queue_ptr"])
    for ours, theirs in (("query_encoder", "encoder_q"), ("key_encoder", "encoder_k")):
        for name, value in state[ours].items():
            statistics = [value.mean(dtype=np.float64), np.linalg.norm(value.astype(np.float64))]
            expected = case[f"{theirs}/{name}"]
            np.testing.assert_allclose(statistics, expected, atol=tolerance * np.abs(expected).max(), err_msg=name)
