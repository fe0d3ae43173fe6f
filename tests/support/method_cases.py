"""Every method on a tiny network and seeded images, for the conformance matrix. A method joins by being a file."""

import keras
import numpy as np
import tensorflow as tf

from moco_tf.config import find
from moco_tf.networks.encoder import Encoder
from moco_tf.training.collectives import SingleProcess
from moco_tf.training.optimizers import SGD

METHODS = find.names("method")
BATCH, SIDE, CLASSES, STEPS, IMAGES = 16, 16, 4, 3, 48  # images a step over all ranks, pixels, classes, steps, images


def shifted(images, seed, positions, count):
    """A random view that depends on an image's place in the global batch alone: a brightness of its own."""
    shift = tf.random.stateless_uniform([count], seed, 0, 1 << 16, tf.int32, alg="philox")
    shift = tf.cast(tf.gather(shift, positions), tf.float32) / 65536.0
    return tf.cast(images, tf.float32) / 64.0 + shift[:, None, None, None]


def takes(name):
    """The names of what its constructor takes: what a flag sets, and what the assembly gives."""
    return {argument.name for argument in find.arguments("method", name)} | find.find("method", name).given()


def build(
    name, ranks=None, splits=1, jit_compile="none", seed=1, dtype="float32", optimizer=SGD, arch="resnet10", **kwargs
):
    """The method with a network that is the same at every call; kwargs: of the method, beside or instead of ours."""
    keras.utils.set_random_seed(5)
    kind = find.find("method", name)
    # SyncBN has one batch on any number of ranks; MoCo v3's predictor begins with what cancels a bias before it.
    splits, hidden = (1, "mlp_bn2") if kind.norms == "sync" else (splits, "mlp")

    def encoder():
        head, dim = ("linear", CLASSES) if kind.classifies else (hidden, 8)
        own = {"stem": "cifar", "width": 4} if arch == "resnet10" else {}
        return Encoder(arch, **own, bn_splits=splits, head=head, feature_dim=dim, dtype=dtype)

    own = {"queue_size": 40, "num_examples": IMAGES, "negatives": 7, "temperature": 0.2, "key_momentum": 0.9}
    own = {argument: own[argument] for argument in takes(name) if argument in own} | kwargs
    query_encoder = encoder()
    if "key_encoder" in takes(name):
        own["key_encoder"] = encoder()
    method = kind(
        query_encoder,
        **own,
        collectives=ranks or SingleProcess(),
        views=(shifted, shifted),
        jit_compile=jit_compile,
        seed=seed,
    )
    method.compile(optimizer(0.005))  # small: where an activation crosses zero by rounding, modes part
    return method


def batch(step, ranks=None):
    """(images uint8, labels, indices) of this rank: the positions p of the global batch with p mod ranks = rank."""
    rng = np.random.default_rng([7, step])
    images = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    labels[:2] = -1  # one without a label on each of two ranks
    indices = rng.permutation(IMAGES)[:BATCH]
    ranks = ranks or SingleProcess()
    return tuple(column[ranks.rank :: ranks.size] for column in (images, labels, indices))


def run(method, ranks=None, steps=range(STEPS), eager=False):
    """{metric: its values in the steps}."""
    step = method.train_step if eager else tf.function(method.train_step, autograph=False)
    trace = [step(tuple(map(tf.constant, batch(number, ranks)))) for number in steps]
    return {f"metric {name}": np.array([float(metrics[name]) for metrics in trace]) for name in trace[0]}


def arrays(method):
    """{path of names: array} of a method's state."""
    return leaves(method.state())


def leaves(state, prefix=""):
    found = {}
    for name, value in state.items():
        found |= leaves(value, f"{prefix}{name} ") if isinstance(value, dict) else {prefix + name: value.numpy()}
    return found
