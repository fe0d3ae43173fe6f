"""What rank 0 finds out for all: they go on with the same, or stop with the same error, and none waits for another."""

import json
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from moco_tf.errors import FirstRankError, UserError
from moco_tf.training.collectives import Collectives


def on_first_rank(ranks: Collectives, function: Callable[[], object]) -> object:
    """Calls the function on rank 0 and returns its result (what JSON can hold) on every rank.

    Raises:
        UserError: the function's, on rank 0; a FirstRankError with its text on the others.
    """
    answer = ""
    if ranks.rank == 0:
        try:
            answer = json.dumps({"result": function()})
        except UserError as error:
            answer = json.dumps({"error": str(error)})
    answer = json.loads(_shared(ranks, answer.encode()))
    if "error" in answer:
        raise (UserError if ranks.rank == 0 else FirstRankError)(answer["error"])
    return answer["result"]


def _shared(ranks: Collectives, data: bytes) -> bytes:
    """Rank 0's bytes on every rank."""
    with tf.device("/CPU:0"):
        length = tf.Variable(len(data), dtype=tf.int64)
        ranks.broadcast([length])
        text = tf.Variable(np.frombuffer(data, np.uint8) if ranks.rank == 0 else np.zeros(int(length), np.uint8))
        ranks.broadcast([text])
    return text.numpy().tobytes()
