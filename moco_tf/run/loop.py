"""The one training loop: steps, metrics, tests, checkpoints, and what can stop it."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from moco_tf.config import define
from moco_tf.errors import UserError
from moco_tf.run import broken, calls, environment, statistics
from moco_tf.run.learner import Batches, TrainingTask
from moco_tf.run.resume import Start, resume
from moco_tf.training import checkpoint, compiled, device, elastic
from moco_tf.training.checkpoint_writer import Writer
from moco_tf.training.collectives import broadcast_result
from moco_tf.training.files import make_folder, write_whole
from moco_tf.training.first_step import FirstStep
from moco_tf.training.hang import HangTimer
from moco_tf.training.lock import RunLock
from moco_tf.training.meter import InputWait, Meter
from moco_tf.training.runlog import RunLog
from moco_tf.training.stop import INTERRUPTED, Signals, Stopped, reason
from moco_tf.training.update import check_state, explanation


def train(training: TrainingTask, name: str, received: Signals, introduce: Callable[[int], None]) -> int:
    """Goes on from the folder's newest whole checkpoint, to the end or until the training is asked to stop.

    Args:
        training: what to train.
        name: of the program, for messages.
        received: the signals that this process gets.
        introduce: prints what will run, from a step on; rank 0 calls it.

    Returns:
        The steps that are done: more than `training.total` where the run was further already; then nothing is written.

    Raises:
        UserError: another job works in the folder, its checkpoint does not fit, or the loss is not finite.
        Stopped: the training was asked to stop; its checkpoint is written.
    """
    folder, collectives, limits = training.folder, training.collectives, training.checkpoints
    make_folder(folder.path)
    with RunLock(folder.path) as lock:
        broadcast_result(collectives, lock.acquire)
        start = resume(training)
        if start.step > training.total:
            if collectives.rank == 0:
                print(
                    f"the run in {folder.path} has {start.step} steps already, more than the {training.total} asked "
                    "for: there is nothing to do, and its flags.cfg stays as it is",
                    flush=True,
                )
            return start.step
        if collectives.rank == 0:
            write_whole(folder.flags, define.flagfile(training.options))
            environment.note(folder, training.options, collectives.size, start.step)
            introduce(start.step)
        log = RunLog(folder.path, collectives.rank == 0, training.total, start.step)
        hang = HangTimer(limits.step_timeout, collectives.rank, collectives.size, name, elastic.is_elastic())
        with received.deferred(), Writer(folder.checkpoints, limits.keep) as writer, hang:
            Loop(training, start, log, writer, received, hang).run()
        log.close()
        collectives.barrier()  # what these processes do next finds the last checkpoint, which rank 0 has written
    return training.total


class Due(NamedTuple):
    """What is due after a step."""

    logs: bool
    evaluates: bool
    saves: bool


class Loop:
    """Takes the steps that are left, with metrics, tests and checkpoints when they are due.

    Args:
        training: what to train.
        start: where it goes on.
        log: gets metrics.
        writer: of checkpoints.
        received: the signals that this process gets.
        hang: ends this process when a step takes too long.
    """

    def __init__(
        self, training: TrainingTask, start: Start, log: RunLog, writer: Writer, received: Signals, hang: HangTimer
    ) -> None:
        self.training, self.learner, self.start, self.log = training, training.learner, start, log
        self.writer, self.received, self.hang = writer, received, hang
        self.meter, self.wait = Meter(training.batch_size, start.pending), InputWait()
        # To read what a GPU has computed, it must have computed all that it was given. Several ranks look more often:
        # that one of them was asked to stop is found there alone.
        seldom = training.log_every if training.collectives.size == 1 else min(training.log_every, 10)
        self.look_every = seldom if device.has_gpu() else 1

    def run(self) -> None:
        """Takes the steps.

        Raises:
            Stopped: the training was asked to stop; its checkpoint is written.
            UserError: a step was not finite, or a checkpoint cannot be written.
            HostsUpdatedInterrupt: ranks join or leave an elastic job; it runs again with them.
        """
        t, call = self.training, calls.caller(self.training)
        of_each = self.wait.timed(steps(t.batches, self.start.step, t.total))
        for step, batches in self.hang.steps(calls.grouped(of_each, t.steps_per_call, lambda s: any(self._due(s)))):
            first = step - len(batches) + 1
            rates = [t.rates(number) for number in range(first, step + 1)]
            if self.received.status:
                self.learner.stop.ask(self.received.status)
            with self._first_step() if first == self.start.step + 1 else contextlib.nullcontext():
                metrics = call(batches, rates)
            self.meter.add(metrics, len(batches))
            self.log.advance(len(batches))
            self.writer.check()
            self._after(step, rates[-1][0])

    @contextlib.contextmanager
    def _first_step(self) -> Iterator[None]:
        """Says how long the step is compiled. Ctrl-C then ends a program: nothing is there that could be lost."""
        log, began = self.log, time.monotonic()
        end = self._end_at_once if log.enabled and self.received.in_program else None
        watch: contextlib.AbstractContextManager = contextlib.nullcontext()
        if log.enabled:
            watch = FirstStep(lambda s: log.show(f"compiling, {s:.0f} s", True), max(1.0, log.pause), end)
        with compiled.first_use(), watch:
            if end and self.received.status == INTERRUPTED:  # noted before the context watched
                end()
            yield
        log.show("")
        if (seconds := time.monotonic() - began) >= 1:
            log.say(f"first step: {seconds:.1f} s{compiled.said()}")

    def _end_at_once(self) -> None:
        self.log.close()
        print(f"{sys.argv[0]}: interrupted while the first step was compiled; nothing is lost", file=sys.stderr)
        os._exit(INTERRUPTED)  # the main thread is inside of XLA

    def _due(self, step: int) -> Due:
        t, epoch, last = self.training, step / self.training.per_epoch, step == self.training.total
        often = (t.checkpoints.checkpoint_every, t.checkpoints.checkpoint_steps)
        return Due(
            logs=last or step % t.log_every == 0,
            evaluates=t.evaluation is not None and (last or is_due(step, epoch, t.evaluation.every)),
            saves=t.resumes and (last or is_due(step, epoch, *often)),
        )

    def _after(self, step: int, learning_rate: float) -> None:
        """What is due after a call, whose last step this is."""
        due, t = self._due(step), self.training
        epoch, last = step / t.per_epoch, step == t.total
        alone = self.received.status if t.collectives.size == 1 else 0  # no other rank is to be asked
        if not (any(due) or alone or step % self.look_every == 0):
            return
        self._check_finite(step)
        stop = 0 if last else alone or self.learner.stop.status()
        self.hang.restart(f"writing the metrics of step {step}")
        if due.logs:
            self._write(step, epoch, learning_rate)
        if due.evaluates:
            self._evaluate(step, epoch)
        if due.saves or (stop and t.resumes):
            self._save(step, epoch)
        if due.evaluates or due.saves:
            self.meter.restart()
        if stop:
            self._stop(step, stop)
        if due.logs and not last:
            elastic.commit(self.learner.state())

    def _write(self, step: int, epoch: float, learning_rate: float) -> None:
        values = self.meter.read()
        values["input_wait"] = self.wait.share(values["images_per_second"] / self.training.batch_size)
        rate, peak = values["images_per_second"] / self.training.collectives.size, self.training.peak_rate
        used = {"model_flop_utilisation": rate / peak if peak else None}
        self.log.show(shown(values))
        self.log.write(step, epoch=epoch, learning_rate=learning_rate, **values, **used)
        if warning := self.training.watch(step, values):
            self.log.say(warning)

    def _evaluate(self, step: int, epoch: float) -> None:
        assert self.training.evaluation is not None
        self.hang.stop()
        with statistics.averaged(self.learner, self.training.collectives):
            values = self.training.evaluation.measure(step, epoch)
        self.log.write(step, **{"epoch": epoch, **values})
        if line := self.training.evaluation.line(values):
            self.log.say(line)

    def _save(self, step: int, epoch: float) -> None:
        """Starts writing a checkpoint on rank 0, with the running statistics of all ranks and their means."""
        t = self.training
        self.hang.saving(step)
        self.log.to_disk()
        about = {**t.about(), "flags": define.values_of(t.options), "facts": t.facts, "pending": self.meter.pending()}
        rows = statistics.gather(self.learner, t.collectives)
        permanent = is_due(step, epoch, t.checkpoints.keep_every, t.checkpoints.keep_steps)
        with statistics.averaged(self.learner, t.collectives):
            with self._on_all_ranks(), self._kept(step, step):
                check_state(self.learner.state(), step, self._last_checkpoint)
            if t.collectives.rank == 0:
                self.writer.save(step, {**self.learner.state(), **rows}, about, permanent)

    def _check_finite(self, step: int) -> None:
        """Stops, or says so, when steps since the last look were not finite; on all ranks alike."""
        guard, learnt = self.learner.guard, self.learner.learnt()
        if not int(guard.left_out):
            return
        with self._on_all_ranks(), self._kept(int(guard.first), step):
            parameters = [v.value for v in learnt.values()]
            last = self._last_checkpoint()
            message = explanation(int(guard.first), list(learnt), parameters, guard.gradient_norms, last)
            if self.training.checkpoints.nan_policy == "stop":
                raise UserError(message)
            check_state(self.learner.state(), step, self._last_checkpoint)
        self.log.say(f"warning: {int(guard.left_out)} steps left out: {message}")
        guard.left_out.assign(0)

    @contextlib.contextmanager
    def _kept(self, first: int, step: int) -> Iterator[None]:
        """What stops the training in this context says how the step that broke it can be computed again."""
        try:
            yield
        except UserError as error:
            self.hang.saving(first)
            self.writer.wait()
            raise UserError(f"{error}{broken.keep(self.training, first, step)}") from None

    def _last_checkpoint(self) -> str:
        """What a training that stops can go on from, in words."""
        self.writer.wait()
        found = checkpoint.existing(self.training.folder.checkpoints)
        return f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"

    @contextlib.contextmanager
    def _on_all_ranks(self) -> Iterator[None]:
        """What stops the training in this context does so when all ranks are there, and the last checkpoint is.

        A launcher kills the ranks that are left when one has gone: rank 0 too, which writes, and says why.
        """
        try:
            yield
        except (UserError, Stopped):
            self.writer.wait()
            self.training.collectives.barrier()
            raise

    def _stop(self, step: int, status: int) -> None:
        """Ends a training that was asked to. Raises Stopped."""
        done = f"checkpoint written after step {step} of {self.training.total}; the same command goes on from there"
        if not self.training.resumes:
            done = f"stopped after step {step} of {self.training.total}; the same command begins anew"
        with self._on_all_ranks():
            raise Stopped(f"{reason(status)}: {done}", status)


def steps(batches: Batches, start: int, total: int) -> Iterator[tuple[int, tuple]]:
    """(number of the step from 1 on, batch) from where `start` steps were done, across epochs."""
    done = start
    while done < total:
        epoch, place = divmod(done, batches.steps_per_epoch)
        for batch in batches.batches(epoch, place):
            done += 1
            yield done, batch
            if done == total:
                return


def is_due(step: int, epoch: float, every_epochs: int, every_steps: int = 0) -> bool:
    """Whether something is due after a step; 0: never."""
    return bool((every_epochs and epoch % every_epochs == 0) or (every_steps and step % every_steps == 0))


def shown(values: dict[str, float]) -> str:
    """What stands beside the progress bar."""
    loss = [f"loss {values['loss']:.4g}"] if "loss" in values else []
    return ", ".join([*loss, f"{values['images_per_second']:,.0f} images/s"])
