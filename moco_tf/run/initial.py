"""--init: what a pre-training starts from in place of random numbers, from whatever --load takes."""

from typing import Any

import numpy as np

from moco_tf.errors import UserError
from moco_tf.formats import load
from moco_tf.formats.architecture import HEAD, configuration
from moco_tf.formats.foreign import Foreign
from moco_tf.formats.torchvision import get_weights, set_weights
from moco_tf.methods.base import Method

Weights = dict[str, np.ndarray]


def initialise(method: Method, path: str) -> dict[str, Any]:
    """Sets the encoders of a method, and its queue, from what a source holds; says what it took.

    The backbone must be the same. The head is taken where it is the same; the key encoder's values are its own where
    the source has them, else those of the query encoder; a queue is taken with the head that made its keys.

    Returns:
        {"from": path, "source": what that is, "taken": list of parts, "fresh": {part: why}, "notes": lines}.

    Raises:
        UserError: nothing is there, or it holds another backbone.
    """
    place = load.find(path, "init")
    state, query = load.read_state(place), method.query_encoder
    own, there = get_weights(query), state.encoder
    same_head = _shapes(_head(own)) == _shapes(_head(there))
    head = _head(there if same_head else own)
    try:
        set_weights(query, _backbone(there) | head)
    except UserError as error:
        raise UserError(
            f"--init={path} {_holds(state)}, and the run has --arch={query.config['arch']}: {error}"
        ) from None
    fresh: dict[str, str] = {}
    if not same_head:
        fresh["head"] = "another one there" if _head(there) else "none there"
    for encoder in (encoder for encoder in method.encoders() if encoder is not query):
        key = state.key_encoder or there
        set_weights(encoder, _backbone(key) | (_head(key) if same_head else head))
    taken = ["backbone", *(["head"] if same_head and head else [])]
    if len(method.encoders()) > 1:
        taken += ["key encoder"] if state.key_encoder else []
        fresh |= {} if state.key_encoder else {"key encoder": "none there, so a copy of the query encoder"}
    if hasattr(method, "queue"):
        why = _take_queue(method.queue, state, same_head)
        taken, fresh = (taken, {**fresh, "queue": why}) if why else ([*taken, "queue"], fresh)
    return {"from": str(place), "source": state.source, "taken": taken, "fresh": fresh, "notes": list(state.notes)}


def line(said: dict[str, Any]) -> str:
    """What `initialise` returns, for people."""
    fresh = [f"{part} ({why})" for part, why in said["fresh"].items()]
    text = f"starts from {said['from']} ({said['source']}): {', '.join(said['taken'])} taken; fresh: "
    return "\n".join([text + ", ".join([*fresh, "all else"]), *said["notes"]])


def _take_queue(queue: Any, state: Foreign, same_head: bool) -> str:
    """Takes the queue if it fits; returns why not."""
    if state.queue is None:
        return "none there"
    if queue.labels is not None:
        return "its labels are of other images"
    if not same_head:
        return "its keys are of another head"
    if state.queue.shape != tuple(queue.keys.shape):
        return "{} x {} there, {} x {} here".format(*state.queue.shape, *queue.keys.shape)
    queue.keys.assign(state.queue.astype(queue.keys.dtype.as_numpy_dtype))
    queue.pointer.assign(state.queue_pointer or 0)
    return ""


def _head(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if name.startswith(HEAD)}


def _backbone(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if not name.startswith(HEAD)}


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in weights.items()}


def _holds(state: Foreign) -> str:
    try:
        found = configuration(_backbone(state.encoder))
    except UserError:
        return "holds another network"
    return "holds " + " ".join(f"--{name}={found[name]}" for name in ("arch", "stem", "width"))
