"""Computes a step that was not finite once more, in one process, and says which value was the first.

First from the state as it was found, on the images that were kept: that takes seconds, and shows what a fault from
outside has left, such as a weight that is infinite. Where the step does not explain itself, because the state was
broken before it or the step is finite now, the training goes forward from the last checkpoint, or from its start, with
the same images, and its last two steps are looked at. For the batches of several ranks one process splits its batch
norms as many times.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.config import define
from moco_tf.config.options import Debug, Pretrain
from moco_tf.errors import UserError
from moco_tf.run import broken, calls, loop, prepare, pretraining
from moco_tf.run.folder import RunFolder
from moco_tf.run.learner import TrainingTask
from moco_tf.run.watch import Found, Watch
from moco_tf.training import checkpoint
from moco_tf.training.files import write_whole
from moco_tf.training.runlog import progress
from moco_tf.training.update import flat

_SHOWN = 3  # values of a kind that are named
_PARTS = {
    "state": "before the step",
    "view": "random view",
    "output": "output of",
    "metric": "metric",
    "gradient": "gradient of",
    "update": "after the step",
}


def replay(o: Debug) -> dict[str, Any]:
    """Says what is not finite in the step that a run has kept, and writes it to RUN/broken/replay.json; returns it.

    Raises:
        UserError: there is no run, it has kept no step, its images are not there, or there are several ranks.
    """
    if not o.load.load:
        raise UserError("--load is missing, and runs/ has no run; give the folder of a run that stopped")
    folder = RunFolder.of(o.load.load)
    if not folder.path.is_dir():
        raise UserError(f"--load={folder.path} is no folder; give the folder of a run that stopped")
    kept = next(reversed(checkpoint.existing(folder.broken)), None)
    if kept is None:
        raise UserError(
            f"--load={folder.path} holds no {folder.broken.name}/, expected a run that has stopped at a step that is "
            "not finite; give such a run"
        )
    about = checkpoint.describe(kept)
    replaying = Replay(folder, kept, about, _options(about, o.replay.data_dir))
    steps = replaying.explained()
    found = {"step": about["step"], "ranks": about["ranks"], "steps": [dataclasses.asdict(step) for step in steps]}
    write_whole(folder.broken / "replay.json", json.dumps(found, indent=1) + "\n")
    print(f"written to {folder.broken / 'replay.json'}", flush=True)
    return found


def _options(about: dict[str, Any], data_dir: str | None) -> Pretrain:
    """Those of the run, for one process that has the batches of all ranks."""
    o = define.parse(Pretrain, ["debug", *about["words"]])
    splits = o.encoder.bn_splits * (1 if prepare.sync(o) else about["ranks"])
    own = {"data_dir": data_dir} if data_dir else {}
    return define.replaced(o, workdir=None, knn_every=0, bn_splits=splits, precision=about["precision"], **own)


@dataclasses.dataclass(frozen=True)
class Step:
    """What was seen of a step.

    Args:
        number: of the step, from 1 on.
        start: the state that was computed from, in words.
        loss: as it came out; None if it was not finite, or not computed.
        found: what is not finite.
    """

    number: int
    start: str
    loss: float | None
    found: list[Found]


class Replay:
    """A run that broke, built once more.

    Args:
        folder: of the run.
        kept: the state that was kept.
        about: what its checkpoint.json says.
        options: of one process.

    Raises:
        UserError: there are several ranks, or the images are not there.
    """

    def __init__(self, folder: RunFolder, kept: pathlib.Path, about: dict[str, Any], options: Pretrain) -> None:
        collectives = prepare.connect(options.device, options.run.seed)
        if collectives.size > 1:
            raise UserError(
                "one process computes the images of all ranks, and several came; start it without horovodrun"
            )
        self.folder, self.kept, self.about, self.first = folder, kept, about, int(about["step"])
        self.run = prepare.pretraining(options, collectives, mean_and_std=(tuple(about["mean"]), tuple(about["std"])))
        self.training: TrainingTask = pretraining.training_of(self.run)
        self.method, self.state = self.run.method, self.training.learner.state()
        if not self._before(self.first):
            pretraining.begin(self.run, None)
        self._initial = {name: v.numpy() for name, v in flat(self.state).items()}

    def explained(self) -> list[Step]:
        """Looks at the step, and prints what there is to say, as far as it is needed."""
        first, about = self.first, self.about
        held = f"; rank {about['broken_rank']} held weights that are not finite" if about["broken_rank"] >= 0 else ""
        print(f"step {first} of a run on {about['ranks']} ranks, found after step {about['found']}{held}", flush=True)
        steps = [self._said(self.as_found())]
        if self.about["left_out"] and steps[0].found and steps[0].found[0].part != "state":
            return steps
        for step in self.forward(first):
            steps.append(self._said(step))
            if step.found:
                return steps
        print(
            f"steps {steps[1].number} to {first} are finite when they are computed again on the same images: what was "
            "found came from elsewhere, as a weight that something else has set, a fault of memory or of a GPU; or the "
            "steps are not the same each time, see --deterministic"
        )
        return steps

    def as_found(self) -> Step:
        """The step from the state and on the images that were kept."""
        before, name = self._restore_before(self.first)
        checkpoint.restore(self.kept, self.state)
        if not self.about["left_out"]:  # the weights are those after the step
            watch = self._watch()
            watch.state("update")
            return Step(self.first, "nothing: the state after it was kept", None, watch.found)
        mended = self._mend(before)
        images = broken.read(self.folder.broken / broken.BATCH, self.first)
        start = "the state as it was found"
        start += (
            f", with {', '.join(mended)} of {name} where the step itself had made them not finite" if mended else ""
        )
        return self._looked_at(self.first, start, images)

    def _mend(self, before: dict[str, np.ndarray]) -> list[str]:
        """What the step changed though it was left out, and that is not finite, is as before; returns its names."""
        mended = []
        for name, v in flat(self.state).items():
            kept = v.trainable or name.startswith("optimizer/") or not v.dtype.is_floating
            if not kept and not np.isfinite(v.numpy()).all():
                v.assign(np.where(np.isfinite(v.numpy()), v.numpy(), before[name]))
                mended.append(name)
        return [name for name in mended if "running_" not in name]  # which no training step reads

    def _before(self, step: int) -> pathlib.Path | None:
        """The newest checkpoint before a step."""
        found = [(checkpoint.describe(p)["step"], p) for p in checkpoint.existing(self.folder.checkpoints)]
        return max(((number, path) for number, path in found if number < step), default=(0, None))[1]

    def _restore_before(self, step: int) -> tuple[dict[str, np.ndarray], str]:
        """Restores the newest checkpoint before a step, or the start; returns its values and what it is."""
        if path := self._before(step):
            checkpoint.restore(path, self.state)
            return {name: v.numpy() for name, v in flat(self.state).items()}, path.name
        for name, v in flat(self.state).items():
            v.assign(self._initial[name])
        return self._initial, "the start"

    def forward(self, until: int) -> list[Step]:
        """The last two steps up to this one, computed after all others since the last checkpoint."""
        _, name = self._restore_before(until)
        guard, done = self.method.guard, int(self.method.steps_done)
        guard.left_out.assign(0)
        apart = max(done, until - 2)  # steps that are only computed
        self._go(done, apart)
        if int(guard.left_out) and int(guard.first) <= apart:
            return self.forward(int(guard.first))
        start = f"{name} of the run" + (f", {apart - done:,} steps further" if apart > done else "")
        steps = []
        for number in range(apart + 1, until + 1):
            steps.append(self._looked_at(number, start))
            if steps[-1].found:
                break
            start = f"step {number}"
        return steps

    def _go(self, done: int, until: int) -> None:
        """Computes the steps after `done`, as the run did."""
        call, t = calls.caller(self.training), self.training
        groups = calls.grouped(loop.steps(t.batches, done, until), t.steps_per_call, lambda step: step == until)
        with progress(until - done, "steps", until > done) as bar:
            for step, batches in groups:
                call(batches, [t.rates(number) for number in range(step - len(batches) + 1, step + 1)])
                bar.update(len(batches))

    def _watch(self) -> Watch:
        return Watch(self.method, self.training.batch_size, self.about["ranks"])

    def _looked_at(self, number: int, start: str, batch: tuple | None = None) -> Step:
        """A step op by op, on the data set's images where none are given."""
        t, watch = self.training, self._watch()
        self.method.steps_done.assign(number - 1)
        t.set_rates([tf.constant(rate) for rate in t.rates(number)])
        watch.step(batch or t.batches.fetch(broken.batch_of(t.batches, number)))
        return Step(number, start, watch.loss, watch.found)

    @staticmethod
    def _said(step: Step) -> Step:
        """Prints what was found of a step."""
        if not step.found:
            print(f"step {step.number}, from {step.start}: finite, loss {step.loss:.6g}", flush=True)
            return step
        print(f"step {step.number}, from {step.start}: the first is {_PARTS[step.found[0].part]} {step.found[0]}")
        for part in dict.fromkeys(each.part for each in step.found):
            every = [each for each in step.found if each.part == part]
            more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
            print(f"  {_PARTS[part]}: {', '.join(map(str, every[:_SHOWN]))}{more}", flush=True)
        return step
