"""What the loop trains: a pre-training method, a linear probe or a fine-tuning."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from moco_tf.config.options import CheckpointOptions
from moco_tf.run.folder import RunFolder
from moco_tf.training.collectives import Collectives
from moco_tf.training.stop import StopRequest
from moco_tf.training.update import Guard


class Learner(Protocol):
    """What can be trained step by step: `Method`, `LinearProbe`, `FineTuning`.

    one_piece: whether XLA can compile its whole train_step.
    """

    one_piece: bool
    guard: Guard
    stop: StopRequest
    steps_done: tf.Variable

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step on this rank's batch; scalar metrics with a loss, averaged over ranks."""

    def learnt(self) -> dict[str, keras.Variable]:
        """What the optimizer changes, by name."""

    def state(self) -> Mapping[str, Any]:
        """All variables by name, in groups; what a checkpoint holds."""

    def running_statistics(self) -> list[tf.Variable]:
        """Running means and variances that differ from rank to rank."""

    def synchronise(self) -> None:
        """Gives every rank the state of rank 0."""


class Batches(Protocol):
    """Batches of an epoch, from any step on: `TrainBatches`, `CachedBatches`."""

    steps_per_epoch: int

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple]:
        """A batch for each step, which is numbers on this machine's CPU or its device."""

    def fetch(self, batch: Any) -> tuple:
        """(images or features, labels, indices) of a batch, inside of the step."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A test on the way.

    Args:
        every: epochs between two; 0: only at the end.
        measure: (step, epoch) to numbers for the metrics; all ranks call it.
        line: what to say of these numbers.
    """

    every: int
    measure: Callable[[int, float], dict[str, float]]
    line: Callable[[dict[str, float]], str]


def says_nothing(step: int, values: dict[str, float]) -> str:
    """What is wrong with a step's metrics: nothing."""
    return ""


def sets_nothing() -> None:
    """What a training starts from: what it was built with."""


@dataclasses.dataclass(frozen=True)
class TrainingTask:
    """One training, whatever is trained.

    Args:
        options: the program's: a run that goes on compares them.
        folder: where metrics and checkpoints go.
        learner: what is trained.
        batches: this rank's.
        batch_size: images a step, over all ranks.
        total: steps of the whole training.
        collectives: what crosses ranks.
        checkpoints: when to write them, and what stops the training.
        log_every: steps between two lines of metrics.
        rates: what is scheduled for a step, counted from 1: its learning rate, then the others.
        set_rates: sets them, inside of the step.
        about: what checkpoint.json says besides.
        begin: sets what a training starts from that has no checkpoint yet; rank 0 calls it, the others get its state.
        facts: what must be the same when the training goes on, by its name in a message.
        evaluation: a test on the way, or none.
        watch: looks at a step's metrics and says what is wrong.
        resumes: whether checkpoints are written, and the training goes on from them.
        steps_per_call: most steps of one call, see `calls`.
        peak_rate: images a second of a rank at which its device would reach its peak; None where that is not known.
        keeps_broken: whether the state and batch of a step that is not finite are kept, for moco_tf.debug.
    """

    options: Any
    folder: RunFolder
    learner: Learner
    batches: Batches
    batch_size: int
    total: int
    collectives: Collectives
    checkpoints: CheckpointOptions
    log_every: int
    rates: Callable[[int], Sequence[float]]
    set_rates: Callable[[Sequence[tf.Tensor]], None]
    about: Callable[[], dict[str, Any]]
    begin: Callable[[], None] = sets_nothing
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    evaluation: Evaluation | None = None
    watch: Callable[[int, dict[str, float]], str] = says_nothing
    resumes: bool = True
    steps_per_call: int = 1
    peak_rate: float | None = None
    keeps_broken: bool = False

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.batches.steps_per_epoch
