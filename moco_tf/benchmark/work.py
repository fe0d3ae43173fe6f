"""How much a step computes, and how near that comes to what the device can do."""

from moco_tf.benchmark import machine
from moco_tf.methods.base import Method
from moco_tf.networks.cost import cost


def forward_passes(method: Method) -> int:
    """A step's passes through an encoder for each image, in units of a forward one; a backward pass counts as two.

    With a key encoder (moco and the supcon family): one view forward and backward, the other forward, 3 + 1; twice that
    where both views change places (symmetric). Without one (simclr, npid, supervised): 3 for each view.
    """
    if hasattr(method, "key_encoder"):
        return 4 * (1 + bool(getattr(method, "symmetric", False)))
    return 3 * method.num_views


def multiply_adds(method: Method, image_size: int, batch: int) -> int | None:
    """Of a step on a rank's images: the encoders' passes alone, without views, logits and optimizer.

    None where the encoder holds operations that cannot be counted.
    """
    counted = cost(method.query_encoder, image_size).multiply_adds
    return None if counted is None else forward_passes(method) * batch * counted


def achieved(operations: int | None, seconds: float, dtype: str) -> dict[str, float | None]:
    """{"flops_per_second": two for each multiply-add, "share_of_peak"} of a rank; None where not known."""
    if operations is None:
        return {"flops_per_second": None, "share_of_peak": None}
    flops, peak = 2 * operations / seconds, machine.peak_flops(machine.gpu() or "", dtype)
    return {"flops_per_second": flops, "share_of_peak": flops / peak if peak else None}
