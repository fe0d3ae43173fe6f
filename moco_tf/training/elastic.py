"""Elastic jobs (horovodrun --min-np --max-np --host-discovery-script): training goes on when ranks die or join.

Horovod's own loop (`hvd.elastic.run`) connects the ranks that are left, and new ones, and gives them the state of rank
0. A program then runs again from its start, because batches, graphs and collectives depend on the number of ranks; it
goes on from what was last committed to memory. In other jobs `run` calls the program, and the rest does nothing.
"""

import functools
import gc
import os
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from moco_tf.training import collectives, device, runlog

_state: Any = None  # horovod's ObjectState of this process; its values are the committed variables, None before any


def is_elastic() -> bool:
    """Whether horovodrun started this process in an elastic job."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def run(program: Callable[[], None], threads: int = 0) -> None:
    """Runs a program; in an elastic job, from its start again whenever ranks come or go.

    Args:
        program: returns when all is done. Its collectives raise when a rank is lost, `commit` when one joins.
        threads: of this process, see `device.configure`; set here, before the first exchange.
    """
    global _state
    if not is_elastic():
        program()
        return
    ranks = collectives.connect()
    device.configure(threads, ranks.local_size)
    hvd = collectives.horovod()
    _state = hvd.elastic.ObjectState(hvd.broadcast_object, hvd.rank, values=None, size=0)
    _state.sync = _translating(_state.sync)
    hvd.elastic.run(_translating(lambda _: _attempt(program)))(_state)


def _translating(function: Callable[..., None]) -> Callable[..., None]:
    """The function, but TensorFlow's errors of lost ranks are raised as Horovod's loop expects them."""

    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        try:
            function(*arguments)
        except tf.errors.OpError as error:
            if collectives.is_rank_failure(error):
                raise collectives.rank_failure(error) from None
            raise

    return call


def _attempt(program: Callable[[], None]) -> None:
    size = collectives.horovod().size()
    if _state.values is not None:
        step = int(_state.values["steps_done"])
        collectives.say(f"elastic: {size} ranks now, {_state.size} before; going on after step {step}")
    try:
        program()
    finally:
        runlog.close_all()
        keras.backend.clear_session()
        gc.collect()  # frees the device's memory of the old model before the new one is built


def commit(state: Mapping) -> None:
    """Copies the variables to memory. All ranks call it after the same step.

    Raises:
        HostsUpdatedInterrupt: ranks join or leave; `run` catches it.
    """
    if _state is not None:
        _state.values = tf.nest.map_structure(lambda variable: np.array(variable), dict(state))
        _state.size = collectives.horovod().size()
        _state.commit()


def restore(state: Mapping) -> bool:
    """Sets the variables to the committed values; returns whether there were any."""
    if _state is None or _state.values is None:
        return False
    tf.nest.map_structure(lambda variable, value: variable.assign(value), dict(state), _state.values)
    return True
