"""Looks at every value of a step as it is computed, op by op, and notes those that are not finite, in their order."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from moco_tf.methods.base import Method
from moco_tf.training.update import flat


@dataclasses.dataclass(frozen=True)
class Found:
    """A value that is not finite.

    Args:
        part: of the step: "state", "view", "output", "metric", "gradient" or "update".
        name: query_encoder/conv1.weight, loss ...
        count: numbers that are not finite.
        size: numbers.
        ranks: whose images' rows hold them; empty where rows are no images, or all are of one rank.
    """

    part: str
    name: str
    count: int
    size: int
    ranks: tuple[int, ...] = ()

    def __str__(self) -> str:
        ranks = f", images of rank {', '.join(map(str, self.ranks))}" if self.ranks else ""
        return f"{self.name} ({self.count:,} of {self.size:,} numbers{ranks})"


class Watch:
    """Values of a step that are not finite, in `found`; those of a view or layer in the order of the computation.

    Args:
        method: whose step is computed.
        batch: images of its batch, over all ranks; the rank r of n has the rows r, r + n ...
        ranks: n.
    """

    def __init__(self, method: Method, batch: int, ranks: int) -> None:
        self.method, self.batch, self.ranks = method, batch, ranks
        self.found: list[Found] = []
        self.loss: float | None = None  # of the step, if it is finite

    def see(self, part: str, name: str, value: Any) -> None:
        """Notes a value unless it is finite."""
        array = np.asarray(tf.cast(value, tf.float64))
        bad = ~np.isfinite(array)
        if bad.any():
            rows = np.flatnonzero(bad.reshape(len(array), -1).any(axis=1)) if array.shape[:1] == (self.batch,) else ()
            of = tuple(sorted({int(row) % self.ranks for row in rows})) if self.ranks > 1 else ()
            self.found.append(Found(part, name, int(bad.sum()), array.size, of))

    def state(self, part: str) -> None:
        """Looks at all variables: what is learnt first."""
        variables = {n: v for n, v in flat(self.method.state()).items() if v.dtype.is_floating}
        for name in sorted(variables, key=lambda name: not variables[name].trainable):
            self.see(part, name, variables[name])

    def step(self, batch: Any) -> None:
        """Computes a step op by op; then the method's state is that after it."""
        self.state("state")
        learnt = list(self.method.learnt())

        def apply(gradients: list[tf.Tensor], metrics: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            for name, value in metrics.items():
                self.see("metric", name, value)
            for name, gradient in reversed(list(zip(learnt, gradients))):  # as the backward pass goes
                self.see("gradient", name, gradient)
            return type(self.method).apply(self.method, gradients, metrics)

        def view(images: tf.Tensor, use: int, positions: tf.Tensor | None = None) -> tf.Tensor:
            seen = type(self.method).view(self.method, images, use, positions)
            self.see("view", str(use + 1), seen)
            return seen

        with op_by_op(), replaced(self.method, apply=apply, view=view), outputs_seen(self._output):
            loss = float(self.method.train_step(batch)["loss"])
        self.loss = loss if math.isfinite(loss) else None
        if not self.found:
            self.state("update")

    def _output(self, layer: keras.layers.Layer, output: Any) -> None:
        if tf.is_tensor(output) and (name := self._names().get(id(layer))):
            self.see("output", name, output)

    def _names(self) -> dict[int, str]:
        """{id of a layer with variables: its name}."""
        method = self.method
        named = [
            (e, name, layer)
            for e in ("query_encoder", "key_encoder")
            if hasattr(method, e)
            for name, layer in getattr(method, e).named_layers()
        ]
        return {id(layer): f"{e}/{name}" for e, name, layer in named}


@contextlib.contextmanager
def op_by_op() -> Iterator[None]:
    """Functions that are traced or compiled elsewhere run as Python in this context."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@contextlib.contextmanager
def replaced(method: Method, **functions: Callable) -> Iterator[None]:
    """A method has these functions in place of its own."""
    own = cast(dict[str, Any], vars(method))  # Keras tracks what is set by name
    own |= functions
    try:
        yield
    finally:
        for name in functions:
            del own[name]


@contextlib.contextmanager
def outputs_seen(see: Callable[[keras.layers.Layer, Any], None]) -> Iterator[None]:
    """Calls see(layer, output) after every call of a layer."""
    call = keras.layers.Layer.__call__

    def seen(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        output = call(layer, *args, **kwargs)
        see(layer, output)
        return output

    setattr(keras.layers.Layer, "__call__", seen)  # noqa: B010
    try:
        yield
    finally:
        setattr(keras.layers.Layer, "__call__", call)  # noqa: B010
