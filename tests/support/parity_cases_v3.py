"""Runs MoCo v3 on a parity case and compares every step: losses, gradients, changes of all tensors, statistics."""

import functools

import numpy as np
import tensorflow as tf

from moco_tf.config.options import ScheduleOptions
from moco_tf.formats.torchvision import set_weights, to_keras_layout, to_torch_layout
from moco_tf.methods.moco_v3 import MoCoV3
from moco_tf.networks import naming
from moco_tf.networks.encoder import Encoder
from moco_tf.networks.memory import statistics_fixed
from moco_tf.training import optimizers, schedules
from moco_tf.training.collectives import SingleProcess
from support import parity_files
from support import parity_weights_v3 as weights

# README_v3's, float32, of steps 1 to 5. change: the error of its norm or projection over its norm.
TOLERANCES = {
    "vit": {"loss": (1e-5,) * 5, "first": 4e-5, "gradient": 2e-4, "change": (1e-2,) * 5, "running": 3e-2, "norm": 5e-3},
    "resnet": {
        "loss": (5e-6, 5e-6, 1e-4, 3e-4, 1e-3),
        "first": 1e-4,
        "gradient": 5e-2,
        "change": (0.1, 0.1, 0.2, 0.25, 0.4),
        "running": 1e-2,
        "norm": 5e-3,
    },
}
FLOAT64 = {name: (1e-8,) * 5 if name in ("loss", "change") else 1e-8 for name in TOLERANCES["vit"]}
# Their gradients are zero but for rounding, of which Adam makes steps.
NOISE = ("qkv.bias", "qkv.bias[k]", "base_encoder/norm.bias", "momentum_encoder/norm.bias")

probe = functools.cache(weights.probe)


def load(name):
    case = np.load(parity_files.path(name))
    return {key: case[key] for key in case.files}


def is_vit(case):
    return str(case["arch"]) == "vit"


def tolerances(case, mode):
    return FLOAT64 if mode == "float64" else TOLERANCES["vit" if is_vit(case) else "resnet"]


def encoder(case, dtype):
    both = {"hidden_dim": int(case["head_hidden"]), "feature_dim": int(case["head_dim"]), "dtype": dtype}
    if not is_vit(case):
        return Encoder(str(case["arch"]), head="mlp_bn2", zero_init_residual=True, **both)
    own = {key: int(case[key]) for key in ("patch", "depth", "heads")}
    built = Encoder("vit_small", width=int(case["dim"]), stem=str(case["stem"]), head="mlp_bn3", **own, **both)
    if dtype == "float64":  # PyTorch's float32 sines differ from the nearest number in the last bit
        known = load(f"float64/vit_forward_{case['stem']}.npz")["pos_embed"][0]
        built.backbone.positions = lambda rows, columns: tf.constant(known)
    return built


def shapes(case):
    """(name, shape, kind) of the encoder's tensors, and of the predictor's."""
    hidden, dim = int(case["head_hidden"]), int(case["head_dim"])
    if is_vit(case):
        width = int(case["dim"])
        trunk = weights.vit_shapes(int(case["patch"]), width, int(case["depth"]), 4, str(case["stem"]))
        head = weights.mlp_shapes("head", 3, width, hidden, dim)
    else:
        trunk, head = weights.resnet_shapes(str(case["arch"])), weights.mlp_shapes("fc", 2, 512, hidden, dim)
    return trunk + head, weights.mlp_shapes("predictor", 2, dim, hidden, dim, last_bn=is_vit(case))


def method(case, collectives=None, mode="float64"):
    """A MoCoV3 with the case's weights and hyper-parameters."""
    collectives = collectives or SingleProcess()
    encoders = [encoder(case, "float64" if mode == "float64" else "float32") for _ in range(2)]
    whole = "all" if collectives.size == 1 else "views"
    built = MoCoV3(
        *encoders,
        key_momentum=float(case["base_momentum"]),
        temperature=float(case["temperature"]),
        collectives=collectives,
        jit_compile=whole if mode == "compiled" else "none",
    )
    if mode == "compiled" and collectives.size > 1:
        for one in encoders:
            one.compile_backbone()
    momentum, decay = float(case.get("sgd_momentum", 0.9)), float(case["weight_decay"])
    built.compile(optimizers.build(str(case["optimizer"]), 7.0, momentum, decay))
    of_encoder, of_predictor = (weights.encoder_state(int(case["weights_seed"]), part) for part in shapes(case))
    for one in encoders:
        set_weights(one, of_encoder)
    for name, variable in built.predictor.named_variables("predictor").items():
        variable.assign(to_keras_layout(of_predictor.pop(name)))
    assert not of_predictor
    return built


def snapshot(method):
    """{group/name: float64 array in PyTorch's layout} of all tensors."""
    groups = {
        "base_encoder": method.query_encoder,
        "momentum_encoder": method.key_encoder,
        "predictor": method.predictor,
    }
    return {
        f"{group}/{name}": to_torch_layout(variable.numpy()).astype(np.float64)
        for group, part in groups.items()
        for name, variable in part.named_variables().items()
    }


def set_rates(method, case, step):
    """What run.pretraining sets, by its functions; the case says what that must be."""
    per_epoch, epochs = int(case["steps_per_epoch"]), int(case["epochs"])
    options = ScheduleOptions(epochs=epochs, schedule_per="step", warmup_epochs=float(case["warmup_epochs"]))
    peak = float(case["base_lr"]) * int(case["ranks"] * case["batch_per_rank"]) / 256
    rate = schedules.learning_rate(step, per_epoch, peak, options)
    momentum = schedules.key_momentum(step, epochs * per_epoch, float(case["base_momentum"]), "cosine")
    np.testing.assert_allclose([rate, momentum], [case["lr"][step], case["momentum"][step]], rtol=0, atol=1e-12)
    method.optimizer.learning_rate.assign(rate)
    method.key_momentum.assign(momentum)


def images(case, step, rows, dtype):
    n = int(case["ranks"] * case["batch_per_rank"])
    # The mix is made in float32, as by the public run.
    views = weights.views(
        int(case["view1_seed"]), int(case["view2_seed"]), case["view_mix"], step, n, int(case["size"])
    )
    return [tf.constant(np.ascontiguousarray(x[rows].transpose(0, 2, 3, 1)), dtype) for x in views]


def first_outputs(method, x1, x2):
    """Predictions and keys of the start, before normalising."""
    norms = naming.having("moves", method.layers)
    with statistics_fixed(norms):
        q1, q2 = (method._predictions(x) for x in (x1, x2))
        k1, k2 = (method.key_encoder(x, training=True) for x in (x1, x2))
    return {"first_q1": q1, "first_k2": k2, "first_q2": q2, "first_k1": k1}


def recording(method):
    """Variables that hold the gradients of a step, averaged over ranks, by the optimizer's names."""
    seen = {name: tf.Variable(tf.zeros_like(v.value)) for name, v in method.learnt().items()}
    apply = method.optimizer.apply

    def record(gradients, variables):
        for variable, gradient in zip(seen.values(), gradients, strict=True):
            variable.assign(gradient)
        return apply(gradients, variables)

    method.optimizer.apply = record
    return seen


def run(method, case, mode, rows=slice(None)):
    """Runs all steps and checks each.

    Args:
        method: of `method`.
        case: of `load`.
        mode: "float64", "eager" (float32), "graph" or "compiled".
        rows: of the global batch, this rank's; all: one process with the global batch.

    Returns:
        The state after the last step, of `snapshot`.
    """
    tolerance, start = tolerances(case, mode), snapshot(method)
    gradients, dtype = recording(method), method.query_encoder.compute_dtype
    ranks, rank = method.collectives.size, method.collectives.rank
    expected = case["loss_halves"].mean(0) if ranks == 1 else case["loss_halves"][rank]
    step = method.step
    if mode in ("graph", "compiled"):
        step = tf.function(step, autograph=False, jit_compile=mode == "compiled" and ranks == 1)
    steps = int(case["steps"])
    for number in range(steps):
        given = images(case, number, rows, dtype)
        if number == 0:
            check_first(first_outputs(method, *given), case, rows, tolerance["first"])
        set_rates(method, case, number)
        metrics, losses = step(*given)
        where, rtol = f"step {number + 1}", tolerance["loss"][number]
        np.testing.assert_allclose(losses, expected[number], rtol=rtol, err_msg=where)
        np.testing.assert_allclose(metrics["loss"], case["losses"].mean(0)[number], rtol=rtol, err_msg=where)
        if number == 0:
            check_gradients(gradients, case, tolerance["gradient"])
        state = snapshot(method)
        check_state(state, start, case, number, mode)
    if steps == len(case["lr"]):
        check_final(state, case, mode)
    return state


def check_first(found, case, rows, tolerance):
    for name, value in found.items():
        np.testing.assert_allclose(
            value, case[name][rows], rtol=0, atol=tolerance * np.abs(case[name]).max(), err_msg=name
        )


def parts(name, value):
    """(name in the case, tensor): qkv's bias as three."""
    yield name, value
    if name.endswith("qkv.bias"):
        yield from ((f"{name}[{third}]", part) for third, part in zip("qkv", np.split(value, 3), strict=True))


def check_gradients(seen, case, tolerance):
    """Norm and projection, of the norm; where that is rounding, absolutely."""
    checked = 0
    for name, variable in seen.items():
        name = name if name.startswith("predictor.") else f"base_encoder.{name}"
        for part, value in parts(name, to_torch_layout(variable.numpy()).astype(np.float64)):
            if f"first_grad/{part}" not in case:
                continue
            _, norm, projection = case[f"first_grad/{part}"]
            found = [np.linalg.norm(value), np.sum(value * probe(part, value.shape))]
            atol = tolerance * (norm if norm > 1e-3 else 1)
            np.testing.assert_allclose(found, [norm, projection], rtol=0, atol=atol, err_msg=f"gradient of {part}")
            checked += 1
    assert checked >= len([key for key in case if key.startswith("first_grad/")])


def check_state(state, start, case, number, mode):
    """Every tensor's norm, and the norm and projection of its change since the start."""
    tolerance, checked = tolerances(case, mode), 0
    tiny = 1e-12 if mode == "float64" else 1e-6  # of a tensor's norm: what rounding moves it by
    for full, whole in state.items():
        changes = dict(parts(full, whole - start[full]))
        for name, value in parts(full, whole):
            if name not in case or (number and name.endswith(NOISE) and mode != "float64"):
                checked += name in case
                continue
            _, norm, length, projection = case[name][number]
            change, where = changes[name], f"{name} in step {number + 1}"
            np.testing.assert_allclose(np.linalg.norm(value), norm, rtol=tolerance["norm"], err_msg=f"norm of {where}")
            found = [np.linalg.norm(change), np.sum(change * probe(name.replace("/", ".", 1), change.shape))]
            bound = tolerance["running"] if ".running_" in name else tolerance["change"][number]
            bound = 1e-5 if name.endswith(NOISE) else bound
            atol = max(bound * length, tiny * norm)
            np.testing.assert_allclose(found, [length, projection], rtol=0, atol=atol, err_msg=f"change of {where}")
            if any(name.endswith(frozen.partition(".")[2]) for frozen in case["frozen"]):
                assert found[0] == 0.0, where
            checked += 1
    everything = [key for key in case if key.partition("/")[0] in ("base_encoder", "momentum_encoder", "predictor")]
    missing = {key for key in everything if "[" not in key} - state.keys()
    assert not {key for key in missing if "pos_embed" not in key}, missing
    assert checked >= len(everything) - 2, (checked, len(everything))


def check_final(state, case, mode):
    """The first eight numbers of each tensor."""
    tolerance = 1e-8 if mode == "float64" else 5e-3
    for name, value in state.items():
        if f"final/{name}" in case and not (mode != "float64" and name.endswith(NOISE)):
            few = case[f"final/{name}"]
            atol = tolerance * max(np.abs(value).max(), 1e-3)
            np.testing.assert_allclose(value.ravel()[: len(few)], few, rtol=0, atol=atol, err_msg=f"final {name}")
