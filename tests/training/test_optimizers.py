"""Optimizers follow their update rules for ten steps, with a drop of the learning rate, as oracles and PyTorch do."""

import importlib.util
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import oracles, parity_files, parity_weights_v3

from moco_tf.errors import UserError
from moco_tf.training import optimizers

MODES = ("eager", "graph", "compiled")
RATES = [0.1] * 5 + [0.01] * 5  # a velocity that held the learning rate would show after the drop

# Adam: 1 - beta_2^t loses 1e-5 of its value in float32 at t = 1, which PyTorch computes in float64.
TOLERANCE = {"SGD": 1e-6, "Adam": 5e-6, "LARS": 1e-6}

# Name: our optimizer, its oracle, the arguments of both.
CASES = {
    "sgd": ("SGD", oracles.sgd, {"momentum": 0.0}),
    "sgd_weight_decay": ("SGD", oracles.sgd, {"momentum": 0.0, "weight_decay": 0.05}),
    "momentum": ("SGD", oracles.sgd, {"momentum": 0.9}),
    "momentum_weight_decay": ("SGD", oracles.sgd, {"momentum": 0.9, "weight_decay": 0.05}),
    "nesterov": ("SGD", oracles.sgd, {"momentum": 0.9, "nesterov": True}),
    "nesterov_weight_decay": ("SGD", oracles.sgd, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    "adam": ("Adam", oracles.adam, {}),
    "adam_weight_decay": ("Adam", oracles.adam, {"weight_decay": 0.05}),
    "adam_constants": ("Adam", oracles.adam, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 0.1}),
    "lars": ("LARS", oracles.lars, {"trust_coefficient": 0.02}),
    "lars_weight_decay": ("LARS", oracles.lars, {"trust_coefficient": 0.02, "weight_decay": 0.05}),
}


def problem(seed=0):
    """A matrix and a vector, and ten gradients of each."""
    rng = np.random.default_rng(seed)
    shapes = ((3, 4), (4,))
    return [rng.standard_normal(s) for s in shapes], [rng.standard_normal((10, *s)) for s in shapes]


def trajectories(optimizer, weights, gradients, rates=RATES, mode="eager"):
    """The variables' values after each step, as a list with one array for each variable."""
    variables = [keras.Variable(w.astype(np.float32)) for w in weights]
    optimizer.build(variables)

    def step(*g):
        optimizer.apply(list(g), variables)

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "compiled")
    values = []
    for rate, *g in zip(rates, *gradients):
        optimizer.learning_rate.assign(rate)
        step(*(tf.constant(each, tf.float32) for each in g))
        values.append([v.value.numpy() for v in variables])
    return [np.stack(each) for each in zip(*values)]


def make(kind, **arguments):
    return getattr(optimizers, kind)(learning_rate=7.0, **arguments)  # 7: the assigned rate must win


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_equals_its_oracle(name, mode):
    kind, oracle, arguments = CASES[name]
    weights, gradients = problem()
    for ours, w, g in zip(trajectories(make(kind, **arguments), weights, gradients, mode=mode), weights, gradients):
        np.testing.assert_allclose(ours, oracle(w, g, RATES, **arguments), atol=TOLERANCE[kind])


TORCH = """
import json, sys, torch
found = {}
for name, (kind, arguments, weights, gradients, rates) in json.load(sys.stdin).items():
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = getattr(torch.optim, kind)(parameters, lr=7.0, **arguments)
    found[name] = []
    for rate, *step in zip(rates, *gradients):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(parameters, step):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
        found[name].append([p.tolist() for p in parameters])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def torch_trajectories():
    """PyTorch's values after each step of each case, from a process of its own: beside TensorFlow it may abort."""
    if not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")
    weights, gradients = ([x.tolist() for x in arrays] for arrays in problem(1))
    cases = {}
    for name, (kind, _, given) in CASES.items():
        arguments = dict(given)
        if kind == "Adam":
            arguments["betas"] = arguments.pop("beta_1", 0.9), arguments.pop("beta_2", 0.999)
            arguments["eps"] = arguments.pop("epsilon", 1e-8)
        if kind != "LARS":
            cases[name] = kind, arguments, weights, gradients, RATES
    done = subprocess.run([sys.executable, "-c", TORCH], input=json.dumps(cases), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("lars")])
def test_equals_torch(name, torch_trajectories):
    kind, _, arguments = CASES[name]
    ours = trajectories(make(kind, **arguments), *problem(1))
    for values, theirs in zip(ours, zip(*torch_trajectories[name])):
        np.testing.assert_allclose(values, theirs, atol=TOLERANCE[kind])


# One weight of 1, gradients 1, 1, 1, rates .1, .1, .01, weight decay .1, momentum .9; worked out by hand, for example
# momentum: v = 1.1; w = 1 - .11 = .89; v = .99 + 1.089 = 2.079; w = .89 - .2079 = .6821;
# v = 1.8711 + 1.06821 = 2.93931; w = .6821 - .0293931. LARS scales g = 1.1 by .01 * 1 / 1.1 on a matrix.
GOLDEN = {
    "momentum": ("SGD", {"weight_decay": 0.1}, [0.89, 0.6821, 0.6527069]),
    "nesterov": ("SGD", {"weight_decay": 0.1, "nesterov": True}, [0.791, 0.496871, 0.4601672351]),
    "plain": ("SGD", {"weight_decay": 0.1, "momentum": 0.0}, [0.89, 0.7811, 0.7703189]),
    "lars": ("LARS", {"weight_decay": 0.1, "trust_coefficient": 0.01}, [0.999, 0.997101, 0.9968303799]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_trajectory(name):
    kind, arguments, expected = GOLDEN[name]
    ours = trajectories(make(kind, **arguments), [np.ones((1, 1))], [np.ones((3, 1, 1))], [0.1, 0.1, 0.01])
    np.testing.assert_allclose(ours[0].ravel(), expected, rtol=1e-6)


def test_adam_moves_by_the_learning_rate_at_first():
    """Bias correction: the first step is lr sign(g), whatever the gradient's size."""
    for size in (1e-3, 1.0, 1e3):
        ours = trajectories(make("Adam"), [np.ones(1)], [np.array([[size]])], [0.1])
        np.testing.assert_allclose(ours[0], [[0.9]], rtol=1e-4)


def test_keras_sgd_differs():
    """Keras' velocity holds the learning rate: after a drop it goes on at the old rate, 0.01 + 0.9 * 0.19 here."""
    weights, gradients, rates = [np.ones(1)], [np.ones((3, 1))], [0.1, 0.1, 0.01]
    ours = trajectories(optimizers.SGD(momentum=0.9), weights, gradients, rates)[0].ravel()
    theirs = trajectories(keras.optimizers.SGD(momentum=0.9), weights, gradients, rates)[0].ravel()
    np.testing.assert_allclose(ours, [0.9, 0.71, 0.71 - 0.01 * 2.71], rtol=1e-6)
    np.testing.assert_allclose(theirs, [0.9, 0.71, 0.71 - (0.01 + 0.9 * 0.19)], rtol=1e-6)


def test_lars_leaves_vectors_unscaled():
    """On a vector it is SGD with momentum and without weight decay."""
    weights, gradients = problem(2)
    arguments = {"weight_decay": 0.05, "trust_coefficient": 0.02}
    ours = trajectories(make("LARS", **arguments), weights[1:], gradients[1:])[0]
    np.testing.assert_allclose(ours, oracles.sgd(weights[1], gradients[1], RATES, momentum=0.9), atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_lars_with_a_norm_of_zero(mode):
    """Zero weights take the gradient as it is; a zero gradient leaves the weights where they are, not at NaN."""
    zeros, ones = np.zeros((2, 2)), np.ones((2, 2))
    ours = trajectories(make("LARS"), [zeros, ones], [ones[None], zeros[None]], [0.1], mode)
    np.testing.assert_allclose(ours[0][0], -0.1 * ones, rtol=1e-6)
    np.testing.assert_array_equal(ours[1][0], ones)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "LARS"])
def test_config_makes_the_same_optimizer(kind):
    arguments = {"SGD": {"nesterov": True, "momentum": 0.8}, "Adam": {"beta_1": 0.5}, "LARS": {"momentum": 0.8}}[kind]
    original = make(kind, weight_decay=0.05, **arguments)
    again = type(original).from_config(original.get_config())
    weights, gradients = problem(3)
    for one, other in zip(trajectories(original, weights, gradients), trajectories(again, weights, gradients)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("sgd", {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True}),
        ("lars", {"momentum": 0.8, "weight_decay": 0.1}),
        ("adam", {"weight_decay": 0.1}),
    ],
)
def test_found_by_name(name, expected):
    built = optimizers.build(name, 0.25, momentum=0.8, weight_decay=0.1, nesterov=True)
    config = built.get_config()
    assert float(built.learning_rate) == 0.25 and {key: config[key] for key in expected} == expected


def test_a_module_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "plain.py").write_text(
        "from moco_tf.training.optimizers import Optimizer\n\n\n"
        "class Plain(Optimizer):\n"
        "    def __init__(self, learning_rate, **kwargs):\n"
        "        super().__init__(learning_rate, 0.0, (), **kwargs)\n\n"
        "    def update_step(self, gradient, variable, learning_rate):\n"
        "        variable.assign_sub(learning_rate * gradient)\n"
    )
    package = tmp_path.rename(tmp_path.with_name("users_optimizers"))
    monkeypatch.syspath_prepend(package.parent)
    built = optimizers.build("users_optimizers.plain", 0.5)
    variable = keras.Variable(np.float32([1.0]))
    built.build([variable])
    built.apply([tf.constant([1.0])], [variable])
    assert variable.value.numpy().tolist() == [0.5]


def test_a_wrong_name_says_what_there_is():
    with pytest.raises(
        UserError, match=r"--optimizer=lasr came, expected one of adam, adamw, lars, sgd \(did you mean lars"
    ):
        optimizers.build("lasr", 0.1)


# ---- MoCo v3's, as the public LARS and torch's AdamW ran


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["lars", "adamw"])
def test_equals_moco_v3s(kind, mode):
    """Six steps of nine tensors: of one dimension and more, without weight, without gradient, with a tiny one."""
    case = np.load(parity_files.path("optimizers_v3.npz"))
    rates, names = case[f"{kind}/lr"], [name.removeprefix(f"{kind}/") for name in case.files if name.startswith(kind)]
    names = [name for name in names if name not in ("lr", "weight_decay")]
    assert len(names) == 9 and len(rates) == int(case["steps"])

    def value(seed, name):
        shape = case[f"{kind}/{name}"].shape[1:]
        return parity_weights_v3.value(seed, name, shape, "gamma" if name == "gamma" and seed == start else "bias")

    start, seed, scale = int(case["weights_seed"]), int(case["gradients_seed"]), case["gradient_scale"]
    weights = [value(start, name) * (name != "zero_weight") for name in names]
    factors = {"zero_gradient": np.float32(0), "tiny_gradient": np.float32(1e-5)}
    gradients = [
        [scale * value(seed + step, name) * factors.get(name, np.float32(1)) for step in range(len(rates))]
        for name in names
    ]
    built = optimizers.build(kind, 7.0, float(case["sgd_momentum"]), float(case[f"{kind}/weight_decay"]))
    for name, ours in zip(names, trajectories(built, weights, gradients, rates, mode), strict=True):
        expected = case[f"{kind}/{name}"]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max(), err_msg=name)
