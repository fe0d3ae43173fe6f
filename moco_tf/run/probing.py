"""The training loop of a probe: tests and checkpoints on the way, and going on where a checkpoint left it."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from moco_tf.data.pipeline import TrainBatches
from moco_tf.errors import UserError
from moco_tf.evaluation.finetune import FineTuning
from moco_tf.evaluation.probe import CachedBatches, Classifiers, LinearProbe, held_out
from moco_tf.run import build
from moco_tf.training import checkpoint
from moco_tf.training.collectives import Collectives
from moco_tf.training.runlog import RunLog

_KEEP = 2  # checkpoints; a broken newest one leaves another
# What may change between a probe and its going on: the machine, the end, and what is only looked at.
_FREE = {
    *("workdir", "load", "data_dir", "max_bad_images", "precision", "jit_compile", "threads", "log_every", "steps"),
    *("eval_every", "checkpoint_every"),
}


@dataclasses.dataclass(frozen=True)
class Test:
    """Accuracies in [0, 1] on the test images after some epochs, and the likeliest class of each, Q int64."""

    top1: float
    top5: float
    predictions: np.ndarray


class Checkpoints:
    """Where a probe's state is kept: <folder>/checkpoints.

    Args:
        folder: of the results.
        o: options; those that decide what is learnt must stay the same.
        facts: what must stay the same besides, by its name in a message.
        state: variables to save and restore.
        about: what checkpoint.json is to say besides.
        ranks: rank 0 writes, all read.
    """

    def __init__(
        self, folder: pathlib.Path, o: object, facts: dict, state: dict, about: dict, ranks: Collectives
    ) -> None:
        values = {f"--{name}": v for name, v in dataclasses.asdict(o).items() if name not in _FREE} | facts
        self._made_by = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        self._folder, self._state, self._about, self._ranks = folder / "checkpoints", state, about, ranks

    def resume(self) -> tuple[int, list[dict]]:
        """Restores the newest whole checkpoint on every rank; returns the steps done and the tests so far.

        Raises:
            UserError: it is another probe's.
        """
        newest, complaints = checkpoint.newest_sound(self._folder)
        say = print if self._ranks.rank == 0 else lambda *_, **__: None
        for complaint in complaints:
            say(f"skipped: {complaint}", flush=True)
        if newest is None:
            return 0, []
        description = checkpoint.describe(newest)
        self._check(newest, description.get("made_by", {}))
        checkpoint.restore(newest, self._state)
        say(f"resuming from {newest}", flush=True)
        return description["step"], description["tests"]

    def save(self, step: int, tests: list[dict]) -> None:
        """Writes a checkpoint on rank 0."""
        if self._ranks.rank == 0:
            about = {**self._about, "tests": tests, "made_by": self._made_by}
            checkpoint.save(self._folder, step, self._state, about, _KEEP)

    def _check(self, newest: pathlib.Path, made_by: dict) -> None:
        if not made_by:
            raise UserError(f"{newest} is no probe's checkpoint, expected one or none at all; give another --workdir")
        # A flag that only one of the two knows is older or newer than this program: not a difference.
        differing = [name for name in self._made_by if made_by.get(name, self._made_by[name]) != self._made_by[name]]
        if differing:
            there, here = (" ".join(f"{n}={values[n]}" for n in differing) for values in (made_by, self._made_by))
            raise UserError(
                f"{newest} is of another probe: {there} made it, and {here} came; give the same to go on, or another "
                "--workdir to begin anew"
            )


def fit(
    o: object,
    probe: LinearProbe | FineTuning,
    rates: Sequence[float],
    batches: CachedBatches | TrainBatches,
    log: RunLog,
    test: Callable[[], Test] | None = None,
    done: tuple[int, Sequence[dict]] = (0, ()),
    save: Callable[[int, list[dict]], None] | None = None,
) -> tuple[Test | None, list[dict], np.ndarray]:
    """Trains from the steps done on to the end; returns the last test, all tests and the last losses, R.

    Args:
        o: options of schedule, --eval_every, --checkpoint_every and --log_every.
        probe, rates: what is trained, R classifiers, and their base learning rates.
        batches: of the training images.
        log: gets metrics and tests.
        test: measures the accuracy on the test images.
        done: steps and tests of before, as `Checkpoints.resume` gives them.
        save: writes a checkpoint of (steps done, tests so far).

    Raises:
        UserError: the loss of a single classifier is not finite.
    """
    per_epoch, total = batches.steps_per_epoch, steps(o, batches)
    options = [dataclasses.replace(o, learning_rate=rate) for rate in rates]
    train_step = tf.function(probe.train_step)
    start, tests, last_test, losses = done[0], list(done[1]), None, np.full(len(rates), np.nan)
    for step, (images, labels) in _steps(batches, start, total):
        now = [build.learning_rate(own, step - 1, per_epoch) for own in options]
        probe.set_learning_rates(now)
        losses, accuracies = train_step(images, tf.constant(labels), tf.constant([o.seed, step - 1]))
        log.advance()
        epoch, last = step / per_epoch, step == total
        tested = test and (last or _is_due(o.eval_every, epoch))
        saved = save and (last or _is_due(o.checkpoint_every, epoch))
        if (last or tested or saved or step % o.log_every == 0) and len(rates) == 1:
            _log_training(log, step, epoch, now[0], loss=float(losses[0]), train_top1=float(accuracies[0]))
        if tested or saved:
            probe.settle()
        if tested:
            last_test = test()
            _record(log, tests, last_test, step, epoch)
        if saved:
            save(step, tests)
    if test and last_test is None:  # there was nothing left to do
        last_test = test()
        if not tests:
            _record(log, tests, last_test, start, start / per_epoch)
    return last_test, tests, np.asarray(losses)


def choose(o: object, features: np.ndarray, labels: np.ndarray, num_classes: int, ranks: Collectives) -> dict:
    """Trains one classifier for each of --learning_rates on nine tenths of cached features, tests them on the others.

    Returns:
        learning_rate: the one that is right most often on the held-out training images; learning_rates: all of them,
        with held_out_top1 and the last loss, None where it diverged; held_out_images.

    Raises:
        UserError: all of them diverged.
    """
    kept_out = held_out(len(features), o.seed)
    rows = np.setdiff1d(np.arange(len(features)), kept_out)
    batches = CachedBatches(features, labels, o.batch_size, o.seed, ranks, rows)
    classifiers = Classifiers(features.shape[1], num_classes, [build.optimizer(o) for _ in o.learning_rates])
    ranks.broadcast(classifiers.variables())
    probe = LinearProbe(classifiers, tf.identity, ranks)
    _, _, losses = fit(o, probe, o.learning_rates, batches, RunLog(pathlib.Path(), False, 0))
    shares, _ = classifiers.test(features[kept_out], labels[kept_out])
    found = [
        {"learning_rate": rate, "held_out_top1": top1, "loss": float(loss) if math.isfinite(loss) else None}
        for rate, (top1, _), loss in zip(o.learning_rates, shares, losses)
    ]
    if ranks.rank == 0:
        for one in found:
            said = "diverged" if one["loss"] is None else f"{one['held_out_top1']:.2%}"
            print(f"learning rate {one['learning_rate']:g}: {said} of {len(kept_out)} held-out training images")
    best = max(found, key=lambda one: (one["loss"] is not None, one["held_out_top1"]))
    if best["loss"] is None:
        raise UserError("every one of --learning_rates diverged, expected one that does not; lower them")
    return {"learning_rate": best["learning_rate"], "learning_rates": found, "held_out_images": len(kept_out)}


def steps(o: object, batches: CachedBatches | TrainBatches) -> int:
    """Steps of the whole training."""
    return min(o.steps or 10**12, o.epochs * batches.steps_per_epoch)


def summary(tests: list[dict]) -> dict[str, float]:
    """What a result says of the tests: top1 and top5 are the last one's, best_ those of the highest top-1.

    The best one is chosen on the test images themselves, so it flatters: it is there to compare with those who report
    it.
    """
    last, best = tests[-1], max(tests, key=lambda test: test["top1"])
    names = {"best_top1": "top1", "best_top5": "top5", "best_epoch": "epoch"}
    return {"top1": last["top1"], "top5": last["top5"], **{name: best[key] for name, key in names.items()}}


def _steps(batches: CachedBatches | TrainBatches, start: int, total: int) -> Iterator[tuple[int, tuple]]:
    """(number of the step from 1 on, (images, labels)) from where start steps were done, across epochs."""
    done = start
    while done < total:
        for images, labels, _ in batches.batches(*divmod(done, batches.steps_per_epoch)):
            done += 1
            yield done, (images, labels)
            if done == total:
                return


def _is_due(every: int, epoch: float) -> bool:
    """Whether this is the end of an epoch of which every so many count; 0: none."""
    return bool(every) and epoch % every == 0


def _record(log: RunLog, tests: list[dict], found: Test, step: int, epoch: float) -> None:
    """Appends a test to those that results and checkpoints list, and to the metrics."""
    tests.append({"step": step, "epoch": epoch, "top1": found.top1, "top5": found.top5})
    log.write(step, epoch=epoch, test_top1=found.top1, test_top5=found.top5)


def _log_training(log: RunLog, step: int, epoch: float, learning_rate: float, **values: float) -> None:
    _check_loss(values["loss"], step, learning_rate)
    log.show(**values)
    log.write(step, epoch=epoch, learning_rate=learning_rate, **values)


def _check_loss(loss: float, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step}, expected a finite number; lower the learning rate, which is "
            f"{learning_rate:g} there, or standardise cached features (--standardise)"
        )
