"""A deterministic entry into the step: given weights, queue, prepared images and permutations, look at everything.

    query_encoder, key_encoder = (Encoder("resnet18", dtype="float64") for _ in range(2))  # or float32
    method = MoCo(query_encoder, key_encoder, ...)  # views default to the images as they are given
    method.compile(SGD(0.03))
    exact_steps.set_state(method, weights=torchvision_named_arrays, queue=keys)
    for record in exact_steps.run_steps(method, [(im_q, im_k)], [[permutation]]):
        print(record["loss"], record["queue_pointer"])

In float64 a step leaves no room for rounding: differences that remain are differences in what is computed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from moco_tf.contrast.losses import info_nce
from moco_tf.formats.torchvision import get_weights, set_weights
from moco_tf.methods.moco import MoCo


def set_state(
    method: MoCo,
    weights: Mapping[str, np.ndarray],
    queue: np.ndarray | None = None,
    key_weights: Mapping[str, np.ndarray] | None = None,
    queue_pointer: int = 0,
) -> None:
    """Sets both encoders from arrays in PyTorch's layout by torchvision names, and the queue.

    Args:
        method: the method to set.
        weights: of the query encoder, running statistics included.
        queue: KxC float32, the normalised keys (MoCo's files hold CxK); None keeps the queue.
        key_weights: of the key encoder; None gives it the query encoder's.
        queue_pointer: the row that is replaced next.

    Raises:
        UserError: the weights do not fit the encoder.
    """
    set_weights(method.query_encoder, weights)
    set_weights(method.key_encoder, weights if key_weights is None else key_weights)
    if queue is not None:
        method.queue.keys.assign(queue)
    method.queue.pointer.assign(queue_pointer)


def run_steps(
    method: MoCo,
    image_pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    permutations: Sequence[Sequence[np.ndarray]],
    eager: bool = False,
) -> list[dict[str, object]]:
    """Runs one training step a pair on exactly these images and permutations.

    Args:
        method: a compiled MoCo whose views leave images as they are.
        image_pairs: this rank's (query images, key images) of each step, BxHxWx3 float32, normalised.
        permutations: for each step the permutations of the G rows of the global batch (ranks' batches one after the
            other): one for the keys, and a second for the other direction when the loss is symmetric.
        eager: runs op by op instead of as a graph.

    Returns:
        One dict a step: the metrics as floats (means over ranks), "logits" (of each direction, Bx(1+K), this rank's),
        "rank_loss" (this rank's own loss) and the state after the step: "query_encoder" and "key_encoder"
        ({torchvision name: array in PyTorch's layout}), "queue" (KxC) and "queue_pointer".
    """
    graph = tf.function(method.step, autograph=False, jit_compile=method.one_piece or None)
    step = method.step if eager else graph
    records = []
    for (im_q, im_k), shuffles in zip(image_pairs, permutations, strict=True):
        im_q, im_k = (tf.cast(images, method.query_encoder.compute_dtype) for images in (im_q, im_k))
        metrics, logits = step(im_q, im_k, [tf.constant(p, tf.int32) for p in shuffles])
        record = {name: float(value) for name, value in metrics.items()} | snapshot(method)
        record["logits"] = [each.numpy() for each in logits]
        record["rank_loss"] = sum(float(info_nce(each)) for each in logits)
        records.append(record)
    return records


def snapshot(method: MoCo) -> dict[str, object]:
    """Both encoders by torchvision names, the queue and its pointer, as NumPy."""
    return {
        "query_encoder": get_weights(method.query_encoder),
        "key_encoder": get_weights(method.key_encoder),
        "queue": method.queue.keys.numpy(),
        "queue_pointer": int(method.queue.pointer.numpy()),
    }
