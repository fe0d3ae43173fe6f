"""What crosses ranks in a step, each exchange by itself: gradients, and the shuffle beside its original form."""

import functools
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from moco_tf.contrast import shuffle_bn
from moco_tf.methods.base import SHUFFLE, Method
from moco_tf.run.measure import Bench
from moco_tf.training.collectives import Collectives
from moco_tf.training.update import compressed_mean


def shuffle_by_allgather(images: tf.Tensor, permutation: tf.Tensor, collectives: Collectives) -> tf.Tensor:
    """What `shuffle_bn.shuffle` returns, BxHxWxC in and out, in the original form: every rank gathers all images.

    G - B images reach a rank, not at most B.
    """
    every = collectives.allgather(images)  # GxHxWxC
    return tf.gather(every, shuffle_bn.shuffled_rows(permutation, images.shape[0], collectives))


def exchanges(method: Method, images: tf.Tensor) -> dict[str, Callable[[], Any]]:
    """The exchanges of a step: "gradients", and with ShuffleBN "alltoall" and "allgather", its two forms.

    Args:
        method: whose parameters and ShuffleBN, with its collectives.
        images: of this rank, as the step shuffles them.
    """
    ranks = method.collectives

    def average(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        if method.compression == "none":
            return ranks.mean(gradients)
        return compressed_mean(ranks, gradients, method.compression)

    gradients = [tf.zeros(v.shape, v.dtype) for v in method.learnt().values()]
    found = {"gradients": functools.partial(tf.function(average), gradients)}
    permutation = method.permutation(SHUFFLE, images.shape[0])
    if hasattr(method, "key_encoder") and permutation is not None:
        for name, form in (("alltoall", shuffle_bn.shuffle), ("allgather", shuffle_by_allgather)):
            shuffle = functools.partial(form, permutation=permutation, collectives=ranks)
            found[name] = functools.partial(tf.function(shuffle), images)
    return found


def measure(bench: Bench) -> dict[str, dict[str, Any]]:
    """{name: {"bytes": that a rank hands over, "sent_bytes": that leave it, "ms": a spread}}; ms is None of one rank.

    Every rank takes part. Between the steps of a repeat ranks wait for each other by the exchange itself.
    """
    found, o = {}, bench.o.bench
    images = bench.data["views"][0]
    images = images[-1] if isinstance(images, tuple) else images
    for name, exchange in exchanges(bench.method, images).items():
        (given,) = bench.counting.during(exchange).values()  # one collective, which a first call traces
        found[name] = {"bytes": given["bytes"], "sent_bytes": given["sent_bytes"], "ms": None}
        if bench.ranks.size > 1:
            repeats = [seconds(exchange, bench.ranks, o.bench_steps) for _ in range(o.repeats)]
            found[name]["ms"] = bench.rates_of(repeats)["ms"]
    return found


def seconds(exchange: Callable[[], Any], ranks: Collectives, steps: int) -> float:
    """Seconds of an exchange, over so many in a row."""
    ranks.barrier()
    start = time.perf_counter()
    for _ in range(steps):
        last = tf.nest.flatten(exchange())[-1]
    last.numpy()
    return (time.perf_counter() - start) / steps
