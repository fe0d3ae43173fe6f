"""Steps that are not finite: kept away from the weights, noted on the device, explained when the host looks."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from moco_tf.errors import UserError

_SHOWN = 3  # layers named in a message


class Guard:
    """Leaves out the optimizer's step where the loss is not finite, and notes it for the host to read later.

    left_out: number of such steps. last: the newest of them, counted from 1. gradient_norms: its gradients' norms.
    every_gradient: whether it looks at all gradients too, which reads them once more; to be set before the first step.

    Args:
        gradients: how many there are.
    """

    def __init__(self, gradients: int) -> None:
        self.left_out = tf.Variable(0, trainable=False, dtype=tf.int64, name="steps_left_out")
        self.last = tf.Variable(0, trainable=False, dtype=tf.int64, name="last_left_out")
        self.gradient_norms = tf.Variable(tf.zeros([gradients]), trainable=False, name="gradient_norms")
        self.every_gradient = False

    def passes(self, loss: tf.Tensor, gradients: list[tf.Tensor], step: tf.Tensor) -> tf.Tensor:
        """Whether the optimizer may take this step, the same on all ranks when its arguments are."""
        finite = tf.math.is_finite(loss)
        if self.every_gradient:
            finite = tf.reduce_all([finite, *(tf.reduce_all(tf.math.is_finite(g)) for g in gradients)])

        def note() -> None:
            self.left_out.assign_add(1)
            self.last.assign(step)
            self.gradient_norms.assign(tf.stack([tf.cast(tf.norm(g), tf.float32) for g in gradients]))

        tf.cond(finite, lambda: None, note)
        return finite


def not_finite(state: Mapping, prefix: str = "") -> list[str]:
    """Names of the variables of a state that hold a number which is not finite."""
    found = []
    for name, value in state.items():
        if isinstance(value, Mapping):
            found += not_finite(value, f"{prefix}{name}/")
        elif value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
            found.append(prefix + name)
    return found


def check_state(state: Mapping, step: int, kept: Callable[[], str]) -> None:
    """Raises UserError when a state is not finite; kept says what is left then."""
    names = not_finite(state)
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UserError(
            f"after step {step} {', '.join(names[:_SHOWN])}{more} hold numbers that are not finite; no checkpoint "
            f"of that is written, {kept()}; {_ADVICE}"
        )


def explanation(step: int, names: list[str], parameters: list, norms: tf.Tensor, kept: str) -> str:
    """What to say of a step that was not finite: the largest norms by layer."""
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
    order = sorted(zip(names, norms), key=lambda pair: -pair[1] if pair[1] == pair[1] else -float("inf"))
    return ", ".join(f"{name} {norm:.3g}" for name, norm in order[:_SHOWN])
