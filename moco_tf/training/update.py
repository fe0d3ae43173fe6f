"""From gradients to the optimizer: means over ranks, the loss scale, steps that are not finite."""

import math
from collections.abc import Callable, Mapping

import tensorflow as tf

from moco_tf.errors import UserError
from moco_tf.training.collectives import Collectives
from moco_tf.training.stop import StopRequest

_SHOWN = 3  # layers named in a message


def averaged(
    collectives: Collectives,
    stop: StopRequest,
    gradients: list[tf.Tensor],
    metrics: dict[str, tf.Tensor],
    compression: str = "none",
) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
    """Means over ranks of gradients and of scalar metrics; every rank learns whether one was asked to stop.

    Args:
        collectives: what crosses ranks.
        stop: this rank's request goes along; the requests of all ranks are set.
        gradients: of this rank.
        metrics: of this rank.
        compression: "float16" sends gradients in half the bytes; "none" as they are.
    """
    numbers = [*metrics.values(), *tf.unstack(stop.asked)]
    values = tf.stack([tf.cast(x, gradients[0].dtype) for x in numbers])
    if compression == "none":
        *gradients, values = collectives.mean([*gradients, values])  # one exchange
    else:
        gradients = compressed_mean(collectives, gradients, compression)
        (values,) = collectives.mean([values])  # few bytes, as they are
    *values, requeue, interrupt = tf.unstack(values)
    stop.agreed.assign(tf.cast([requeue, interrupt], tf.float32))
    return gradients, dict(zip(metrics, values, strict=True))


def compressed_mean(collectives: Collectives, tensors: list[tf.Tensor], dtype: str) -> list[tf.Tensor]:
    """The mean over ranks of each tensor, in its own dtype, but sent as dtype: "float16".

    float16 keeps 11 bits. Numbers below 6e-8 become 0, and a sum above 65,504 overflows, because Horovod adds in
    float16. A single process rounds, too.
    """
    means = collectives.mean([tf.cast(tensor, dtype) for tensor in tensors])
    return [tf.cast(mean, tensor.dtype) for mean, tensor in zip(means, tensors, strict=True)]


class Guard:
    """Leaves out the optimizer's step when the loss is not finite, and counts it on the device for the host to read.

    left_out: number of such steps. first: the first of them, counted from 1. gradient_norms: its gradients' norms.
    every_gradient: whether all gradients are checked too, which reads them once more; set it before the first step.

    Args:
        gradients: number of gradients.
    """

    def __init__(self, gradients: int) -> None:
        self.left_out = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps_left_out")
        self.first = tf.Variable(0, trainable=False, dtype=tf.int64, name="first_left_out")
        self.gradient_norms = tf.Variable(tf.zeros([gradients]), trainable=False, name="gradient_norms")
        self.every_gradient = False

    def passes(self, loss: tf.Tensor, gradients: list[tf.Tensor], step: tf.Tensor) -> tf.Tensor:
        """Whether the optimizer may take this step, the same on all ranks when its arguments are."""
        finite = tf.math.is_finite(loss)
        if self.every_gradient:
            finite = tf.reduce_all([finite, *(tf.reduce_all(tf.math.is_finite(g)) for g in gradients)])

        def note() -> None:
            norms = tf.stack([tf.cast(tf.norm(g), tf.float32) for g in gradients])
            first = self.left_out == 0
            self.first.assign(tf.where(first, step, self.first))
            self.gradient_norms.assign(tf.where(first, norms, self.gradient_norms))
            self.left_out.assign_add(1)

        tf.cond(finite, lambda: None, note)
        return finite


class LossScale:
    """Dynamic loss scaling, which keeps float16 gradients from vanishing (Micikevicius et al., 2018, section 3.2).

    Gradients of scale times the loss are divided by the scale; when one overflows, the step is left out.

        not finite: scale <- scale / 2, no step        finite `interval` times in a row: scale <- 2 scale

    Args:
        initial: the first scale; one that is too large costs a few steps.
        interval: steps without overflow before the scale is doubled.
    """

    def __init__(self, initial: float = 2.0**15, interval: int = 2000) -> None:
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="loss_scale")
        self.good_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="loss_scale_good_steps")
        self.interval = interval

    def unscale(self, gradients: list[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        """(gradients over the scale, whether all numbers of all gradients are finite)."""
        gradients = [g / tf.cast(self.scale, g.dtype) for g in gradients]
        return gradients, tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])

    def update(self, finite: tf.Tensor) -> None:
        """Adapts the scale to what a step's gradients were."""
        good = tf.where(finite, self.good_steps + 1, 0)
        grown = good >= self.interval
        factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
        self.scale.assign(tf.maximum(self.scale * factor, 1.0))
        self.good_steps.assign(tf.where(grown, tf.zeros_like(good), good))

    def state(self) -> dict[str, tf.Variable]:
        """Variables for a checkpoint."""
        return {"loss_scale": self.scale, "loss_scale_good_steps": self.good_steps}


def flat(state: Mapping, prefix: str = "") -> dict[str, tf.Variable]:
    """The variables of a state by group and name: query_encoder/conv1.weight."""
    found: dict[str, tf.Variable] = {}
    for name, value in state.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def not_finite(state: Mapping) -> list[str]:
    """Names of the variables of a state that hold a number which is not finite, see `flat`."""
    variables = {name: value for name, value in flat(state).items() if value.dtype.is_floating}
    return [name for name, value in variables.items() if not bool(tf.reduce_all(tf.math.is_finite(value)))]


def check_state(state: Mapping, step: int, kept: Callable[[], str]) -> None:
    """Raises UserError when a state is not finite; kept() says which checkpoint there is, for the message."""
    names = not_finite(state)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UserError(
            f"after step {step} {', '.join(names[:_SHOWN])}{more} hold numbers that are not finite; no checkpoint "
            f"of that is written, {kept()}; {_ADVICE}"
        )


def explanation(step: int, names: list[str], parameters: list[tf.Variable], norms: tf.Tensor, kept: str) -> str:
    """The message about a step that was not finite, with the largest norms by layer.

    Args:
        step: its number, from 1 on.
        names: of the parameters, P.
        parameters: P.
        norms: of their gradients, P.
        kept: which checkpoint there is, in words.
    """
    return (
        f"the loss or a gradient of step {step} is not finite; largest norms of parameters: "
        f"{_largest(names, [float(tf.norm(tf.cast(v, tf.float32))) for v in parameters])}; of gradients: "
        f"{_largest(names, norms.numpy().tolist())}; {kept}; {_ADVICE}"
    )


_ADVICE = (
    "lower --learning_rate, warm up with --warmup_epochs, give --precision=float32, or leave such steps out with "
    "--nan_policy=skip"
)


def _largest(names: list[str], norms: list[float]) -> str:
    """The layers of the largest norms, those that are not finite first."""
    order = sorted(zip(names, norms), key=lambda pair: -float("inf") if math.isnan(pair[1]) else -pair[1])
    return ", ".join(f"{name} {norm:.3g}" for name, norm in order[:_SHOWN])
