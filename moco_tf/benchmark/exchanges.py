"""The exchanges of a step by themselves: its gradients, and its shuffle beside the original form of it."""

import functools
from collections.abc import Callable

import tensorflow as tf

from moco_tf.benchmark import allgather_shuffle, timing
from moco_tf.contrast import shuffle_bn
from moco_tf.methods.base import SHUFFLE, Method
from moco_tf.training.counting import Counting
from moco_tf.training.update import compressed_mean


def exchanges(method: Method, images: tf.Tensor) -> dict[str, tuple[Callable, object]]:
    """What crosses ranks in a step: {name: (function, its argument)}.

    Names are "gradients", and with ShuffleBN "alltoall" and "allgather", its two forms.

    Args:
        method: whose parameters and ShuffleBN, with its collectives.
        images: of this rank, as the step shuffles them.
    """
    ranks = method.collectives

    def average(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        if method.compression == "none":
            return ranks.mean(gradients)
        return compressed_mean(ranks, gradients, method.compression)

    gradients = [tf.zeros(v.shape, v.dtype) for v in method.query_encoder.parameters()]
    found: dict[str, tuple[Callable, object]] = {"gradients": (average, gradients)}
    permutation = method.permutation(SHUFFLE, images.shape[0])
    if hasattr(method, "key_encoder") and permutation is not None:
        found["alltoall"] = lambda x: shuffle_bn.shuffle(x, permutation, ranks), images
        found["allgather"] = lambda x: allgather_shuffle.shuffle(x, permutation, ranks), images
    return found


def measure(method: Method, images: tf.Tensor, counting: Counting, steps: int, repeats: int) -> dict[str, dict]:
    """{name: {"bytes": that a rank hands over, "sent_bytes": that leave it, "ms": a spread}}; ms is None of one rank.

    Every rank takes part. Between the steps of a repeat ranks wait for each other by the exchange itself.
    """
    found = {}
    for name, (exchange, argument) in exchanges(method, images).items():
        graph = functools.partial(tf.function(exchange), argument)
        (given,) = counting.during(graph).values()  # one collective, which a first call traces
        found[name] = {"bytes": given["bytes"], "sent_bytes": given["sent_bytes"], "ms": None}
        if counting.size > 1:
            found[name]["ms"] = timing.spread([1000 * _seconds(graph, counting, steps) for _ in range(repeats)])
    return found


def _seconds(graph: Callable[[], object], ranks: Counting, steps: int) -> float:
    ranks.barrier()
    return timing.seconds_per_step(lambda: {"last": tf.nest.flatten(graph())[-1]}, steps)
