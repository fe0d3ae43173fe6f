"""The loop of pre-training: steps, metrics, kNN monitor, checkpoints, and what can stop it."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from moco_tf.contrast.collapse import has_collapsed
from moco_tf.data import pipeline
from moco_tf.data.normalisation import Normalisation
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.methods.base import Method
from moco_tf.run import build
from moco_tf.run import statistics as rank_statistics
from moco_tf.run.resume import Found, flags_of
from moco_tf.training import checkpoint, device, elastic, schedules
from moco_tf.training.checkpoint_writer import Writer
from moco_tf.training.collectives import Collectives
from moco_tf.training.guard import check_state, explanation
from moco_tf.training.meter import Meter
from moco_tf.training.runlog import RunLog
from moco_tf.training.stop import INTERRUPTED, Signals, Stopped
from moco_tf.training.waiting import InputWait
from moco_tf.training.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop works on: built for these ranks, and anew when they change."""

    o: object
    ranks: Collectives
    train: Source
    size: int
    mean_and_std: Normalisation
    batches: pipeline.TrainBatches
    method: Method
    monitor: Callable[[Method], dict[str, float]] | None

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        every = self.o.epochs * self.batches.steps_per_epoch
        return min(self.o.steps or every, every)


def fit(run: Run, found: Found, log: RunLog, writer: Writer, received: Signals, watchdog: Watchdog) -> None:
    """Takes the steps that are left, with metrics, kNN monitor and checkpoints when they are due.

    Raises:
        Stopped: the run was asked to stop; its checkpoint is written.
        HostsUpdatedInterrupt: ranks join or leave an elastic job; it runs again with them.
    """
    o, method, per_epoch = run.o, run.method, run.batches.steps_per_epoch
    train_step = tf.function(method.train_step)
    meter, wait, collapse = Meter(o.batch_size, found.pending), InputWait(), CollapseWatch(method, log)
    # To read what a GPU has computed, it must have computed all that it was given.
    look_every = min(o.log_every, 10) if device.has_gpu() else 1
    for step, batch in watchdog.steps(wait.timed(steps(run.batches, found.step, run.total))):
        learning_rate = schedule(run, step)
        if received.status:
            method.stop.ask(received.status)
        meter.add(train_step(batch))
        log.advance()
        writer.check()
        epoch, last = step / per_epoch, step == run.total
        logs, evaluates = last or step % o.log_every == 0, run.monitor and (last or epoch % o.knn_every == 0)
        saves = last or is_due(step, epoch, o.checkpoint_every, o.checkpoint_steps)
        if not (logs or evaluates or saves or step % look_every == 0):
            continue
        with together(run, writer):
            check_finite(run, step, log, lambda: kept(run, writer))
        stop = method.stop.status() if not last else 0
        watchdog.alone(f"writing the metrics of step {step}")
        if logs:
            values = meter.read()
            values["input_wait"] = wait.share(values["images_per_second"] / o.batch_size)
            log.show(**shown(values))
            log.write(step, epoch=epoch, learning_rate=learning_rate, **values)
            collapse(step, values)
        if evaluates:
            watchdog.off()
            evaluate(run, step, epoch, log)
        if saves or stop:
            watchdog.saving(step)
            log.to_disk()
            save(run, step, meter.pending(), writer)
        if evaluates or saves:
            meter.restart()
        if stop:
            with together(run, writer):
                leave(run, step, stop)
        if logs and not last:
            elastic.commit(method.state())


def evaluate(run: Run, step: int, epoch: float, log: RunLog) -> None:
    """Runs the kNN monitor on all ranks."""
    values = run.monitor(run.method)
    log.write(step, epoch=epoch, **values)
    log.say(f"epoch {epoch:.4g}: kNN top-1 {values['knn_top1']:.2%}, top-5 {values['knn_top5']:.2%}")


def shown(values: dict[str, float]) -> dict[str, float]:
    """What stands beside the progress bar."""
    names = {
        name: "top1" if name.endswith("_top1") else name.replace("images_per_second", "images_s") for name in values
    }
    return {name: values[n] for n, name in names.items() if name in ("loss", "top1", "images_s")}


def schedule(run: Run, step: int) -> float:
    """Sets what is scheduled for a step, counted from 1; returns its learning rate."""
    o, method, per_epoch = run.o, run.method, run.batches.steps_per_epoch
    learning_rate = build.learning_rate(o, step - 1, per_epoch)
    method.optimizer.learning_rate.assign(learning_rate)
    if o.key_momentum_schedule == "cosine" and hasattr(method, "key_momentum"):
        method.key_momentum.assign(schedules.key_momentum(step - 1, o.epochs * per_epoch, o.key_momentum, "cosine"))
    return learning_rate


def check_finite(run: Run, step: int, log: RunLog, kept: Callable[[], str]) -> None:
    """Stops, or says so, when steps since the last look were not finite; on all ranks alike. kept: see check_state.

    Raises:
        UserError: with --nan_policy=stop, or when leaving a step out has not kept the state finite.
    """
    guard, method = run.method.guard, run.method
    if not int(guard.left_out):
        return
    names = [name for name in method.query_encoder.named_variables() if ".running_" not in name]
    parameters = [v.value for v in method.query_encoder.parameters()]
    message = explanation(int(guard.last), names, parameters, guard.gradient_norms, kept())
    if run.o.nan_policy == "stop":
        raise UserError(message)
    check_state(method.state(), step, kept)
    log.say(f"warning: {int(guard.left_out)} steps left out: {message}")
    guard.left_out.assign(0)


def kept(run: Run, writer: Writer) -> str:
    """What a run that stops can go on from, in words."""
    writer.wait()
    found = checkpoint.existing(pathlib.Path(run.o.workdir) / "checkpoints")
    return f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"


@contextlib.contextmanager
def together(run: Run, writer: Writer) -> Iterator[None]:
    """What stops the run in this context does so on all ranks: when they are all there, and the last checkpoint is.

    A launcher kills the ranks that are left when one has gone: rank 0 too, which writes, and says why.
    """
    try:
        yield
    except (UserError, Stopped):
        writer.wait()
        run.ranks.barrier()
        raise


def leave(run: Run, step: int, status: int) -> None:
    """Ends a run that was asked to. Raises Stopped."""
    again = "the same command goes on from there"
    why = "interrupted" if status == INTERRUPTED else "asked to stop by SIGTERM or SIGUSR1"
    raise Stopped(f"{why}: checkpoint written after step {step} of {run.total}; {again}", status)


def steps(batches: pipeline.TrainBatches, start: int, total: int) -> Iterator[tuple[int, tuple]]:
    """(number of the step from 1 on, (images, labels, indices)) from where start steps were done, across epochs."""
    done = start
    while done < total:
        epoch, place = divmod(done, batches.steps_per_epoch)
        for batch in batches.batches(epoch, place):
            done += 1
            yield done, batch
            if done == total:
                return


def is_due(step: int, epoch: float, every_epochs: int, every_steps: int) -> bool:
    """Whether a checkpoint is due after a step."""
    return bool((every_epochs and epoch % every_epochs == 0) or (every_steps and step % every_steps == 0))


def save(run: Run, step: int, pending: dict, writer: Writer) -> None:
    """Starts writing a checkpoint on rank 0, with the running statistics of all ranks and their means.

    Raises:
        UserError: the state is not finite, on every rank; or the checkpoint before could not be written.
    """
    o, (mean, std) = run.o, run.mean_and_std
    about = {"encoder": dict(run.method.query_encoder.config), "image_size": run.size, "mean": mean, "std": std}
    about |= {"method": o.method, "dataset": o.dataset, "ranks": run.ranks.size, "batch_size": o.batch_size}
    about |= {"num_examples": run.train.num_examples, "flags": flags_of(o), "pending": pending}
    rows = rank_statistics.gather(run.method, run.ranks)
    permanent = is_due(step, step / run.batches.steps_per_epoch, o.keep_every, o.keep_steps)
    with rank_statistics.averaged(run.method):
        with together(run, writer):
            check_state(run.method.state(), step, lambda: kept(run, writer))
        if run.ranks.rank == 0:
            writer.save(step, {**run.method.state(), checkpoint.RANK_STATISTICS: rows}, about, permanent)


class CollapseWatch:
    """Warns when the features become the same for all images, once until they recover."""

    def __init__(self, method: Method, log: RunLog) -> None:
        self._dim, self._log, self._warned = method.query_encoder.config["feature_dim"], log, False

    def __call__(self, step: int, values: dict[str, float]) -> None:
        """Looks at the metrics of a step."""
        std = values.get("feature_std", 1.0)
        collapsed = has_collapsed(std, self._dim)
        if collapsed and not self._warned:
            self._log.say(
                f"warning: the features are collapsing at step {step}: feature_std is {std:.2g}, expected towards "
                f"1/sqrt({self._dim}) = {self._dim**-0.5:.2g}; lower --learning_rate, warm up with --warmup_epochs, or "
                "raise --temperature"
            )
        self._warned = collapsed
