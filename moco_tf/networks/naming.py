"""Names of layers and variables as PyTorch names its modules: by the attributes and lists that hold them.

A layer's attribute `conv1` is called conv1, the third entry of its list `blocks` is blocks.2, and a layer with `layers`
(keras.Sequential, heads.Sequence) calls them 0, 1, 2 ... The last part of a variable's name is PyTorch's too.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import keras

Variables = dict[str, keras.Variable]

_PARTS = {  # Keras' name: PyTorch's; all other names stay
    "kernel": "weight",
    "gamma": "weight",
    "embeddings": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "running_variance": "running_var",
}


class Composite(keras.layers.Layer):
    """A layer that is made of others, which its first call builds."""

    def build(self, input_shape: tuple) -> None:
        """Does nothing. Without it Keras traces a call before the first one, in every layer."""

    def named_variables(self, prefix: str = "") -> Variables:
        """{name: variable} of this layer and all layers inside."""
        return named_variables(self, prefix)

    def named_parameters(self, prefix: str = "") -> Variables:
        """{name: variable} of what is learnt: no running statistics."""
        return learnt(self.named_variables(prefix))


def walk(layer: keras.layers.Layer, name: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """(name, layer) of a layer and then of all layers inside."""
    yield name, layer
    for part, child in _children(layer):
        yield from walk(child, _joined(name, part))


def having(attribute: str, layers: Iterable[keras.layers.Layer]) -> list[Any]:
    """Those of the layers, and of the layers inside them, that have an attribute."""
    return [found for layer in layers for _, found in walk(layer) if hasattr(found, attribute)]


def own_variables(layer: keras.layers.Layer) -> Variables:
    """{PyTorch's name: variable} of what a layer holds itself, without the layers inside it."""
    inside = {id(v) for _, child in _children(layer) for v in child.weights}
    return {_PARTS.get(v.name, v.name): v for v in layer.weights if id(v) not in inside}


def named_variables(layer: keras.layers.Layer, name: str = "") -> Variables:
    """{name: variable} of a layer and all layers inside; a variable that layers share has its first name."""
    found: Variables = {}
    seen: set[int] = set()
    for place, inner in walk(layer, name):
        own = {_joined(place, part): v for part, v in own_variables(inner).items() if id(v) not in seen}
        seen |= {id(v) for v in own.values()}
        found |= own
    if len(found) != len({id(v) for v in layer.weights}):
        raise ValueError(f"{layer.name} holds two variables of one name; keep its layers in attributes of their own")
    return found


def learnt(variables: Variables) -> Variables:
    """Those that were made trainable: running statistics are not; what was frozen later is."""
    return {name: v for name, v in variables.items() if v.value.trainable}


def _children(layer: keras.layers.Layer) -> Iterator[tuple[str, keras.layers.Layer]]:
    if hasattr(layer, "layers"):
        yield from _layers_in("", list(layer.layers))
        return
    for name, value in vars(layer).items():
        # Keras' own lists of layers are private.
        if isinstance(value, keras.layers.Layer) or not name.startswith("_"):
            yield from _layers_in(name.strip("_"), value)


def _layers_in(name: str, value: Any) -> Iterator[tuple[str, keras.layers.Layer]]:
    if isinstance(value, keras.layers.Layer):
        yield name, value
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            yield from _layers_in(_joined(name, str(i)), entry)


def _joined(name: str, part: str) -> str:
    return f"{name}.{part}" if name and part else name or part
