"""Whether runs differ: accuracies with intervals, and every pair of recipes tested on the same images.

Runs that differ in their seed alone are one recipe. Its runs answer the same test images, as those of any other recipe
do, so that `evaluation.intervals` tells seeds, images and recipes apart.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from moco_tf.config import define
from moco_tf.config.options import CheckpointOptions, MonitorOptions, Pretrain
from moco_tf.errors import UserError
from moco_tf.evaluation import intervals, scores
from moco_tf.evaluation.intervals import Estimate, Scatter
from moco_tf.reporting import accuracies
from moco_tf.reporting.accuracies import Outcome
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint

SAME = "no difference can be seen"
_NO_RECIPE = {"seed", "workdir", "data_dir", "log_every", "threads"}
_NO_RECIPE |= {field.name for group in (CheckpointOptions, MonitorOptions) for field in dataclasses.fields(group)}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A recipe, or a baseline, in one evaluation.

    Args:
        name: for people.
        runs: the names of its runs, or of the run that has the baseline.
        right: RxQ, 1 where a run's answer to a test image is right.
        scatter: of its runs from seed to seed; of the other recipes' runs where it has one; None: not known.
        baseline: whether it is a baseline: raw pixels, which no seed changes, or a network of one seed.
    """

    name: str
    runs: tuple[str, ...]
    right: np.ndarray
    scatter: Scatter | None = None
    baseline: bool = False


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two contenders, the better one first; p is corrected for the number of pairs."""

    better: Contender
    worse: Contender
    estimate: Estimate
    p: float

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.p < intervals.LEVEL:
            return SAME
        lucky = [one for one in (self.better, self.worse) if not (one.baseline or one.scatter)]
        return f"{'this run of ' if lucky else ''}{self.better.name} is better"


def markdown(runs: Mapping[str, RunFolder]) -> str:
    """What `compare` prints of run folders by name.

    Raises:
        UserError: no evaluation kept its answers, or runs do not fit together.
    """
    every = [one for name, run in runs.items() for one in accuracies.outcomes(name, run)]
    kept = [one for one in every if one.folder.predictions.is_file()]
    parts = []
    for images in dict.fromkeys(map(_images, kept)):
        together = [one for one in kept if _images(one) == images]
        for column, title in accuracies.columns(together).items():
            own = [one for one in together if one.column == column]
            if own:
                absent = _absent({one.run for one in every}, own)
                parts.append(_table(f"{title} on {images}", contenders(runs, own)) + absent)
    if not parts:
        places = ", ".join(str(run.path) for run in runs.values())
        raise UserError(
            f"no evaluation with {RunFolder('').predictions.name} is in {places}; "
            "give run folders that moco_tf.knn or moco_tf.lincls evaluated, or evaluate again if an earlier version did"
        )
    without = len(every) - len(kept)
    notes = [f"{without} of {len(every)} results are left out: an earlier version kept no answers; evaluate again."]
    notes = notes * bool(without) + list(_unevaluated(runs, every))
    notes += accuracies.damaged(runs.values())
    return "\n\n".join(parts + notes)


def _absent(evaluated: set[str], own: list[Outcome]) -> str:
    """A line of the runs that have results, but none in this table."""
    names = sorted(evaluated - {one.run for one in own if one.baseline == "none"})
    return f"\nNot in this table, for lack of such a result: {', '.join(names)}." if names else ""


def _unevaluated(runs: Mapping[str, RunFolder], every: list[Outcome]) -> Iterator[str]:
    """A line of the runs without a result."""
    names = [name for name in runs if name not in {one.run for one in every}]
    if names:
        yield f"Left out, for lack of a result: {', '.join(names)}; evaluate with moco_tf.knn or moco_tf.lincls."


def _images(one: Outcome) -> str:
    """What was tested on, in words that are the same wherever a folder of this name stands."""
    place = str(one.result.get("data_dir"))
    return one.images.replace(f"({place})", f"({pathlib.PurePath(place).name})")


def contenders(runs: Mapping[str, RunFolder], found: list[Outcome]) -> list[Contender]:
    """The recipes and baselines of one evaluation.

    Args:
        runs: the run folders by name.
        found: results of one evaluation, on the same images, under the same settings.

    Raises:
        UserError: test images differ, or two runs of a recipe do not differ in their seed, or do in their step.
    """
    groups: dict[object, list[Outcome]] = {}
    for name, run in runs.items():
        if own := [one for one in found if one.run == name and one.baseline == "none"]:
            groups.setdefault(recipe(run), []).append(_newest(run, own))
    answers = _reader()
    names = _names(list(groups.values()))
    made = [_of_runs(name, group, runs, answers) for name, group in zip(names, groups.values())]
    seen = intervals.pooled([one.scatter for one in made if one.scatter])
    made = [dataclasses.replace(one, scatter=one.scatter or seen) for one in made]
    return made + [Contender(name, (one.run,), answers(one)[None], None, True) for name, one in _baselines(found)]


def _baselines(found: list[Outcome]) -> Iterator[tuple[str, Outcome]]:
    """(name, result) of each baseline once, though several runs have it; by the run where weights differ."""
    own = list({(one.title, one.weights): one for one in reversed(found) if one.baseline != "none"}.values())[::-1]
    titles = [one.title for one in own]
    yield from ((one.title if titles.count(one.title) == 1 else f"{one.title} of {one.run}", one) for one in own)


def recipe(run: RunFolder) -> object:
    """What two runs have in common that differ in --seed alone; the folder itself where flags.cfg is missing.

    Where --data_dir says which images there are, its last part and their number count, so that a folder may move.
    """
    texts = define.texts_of(run.flags)
    if not texts:
        return run.path
    defaults = define.texts(define.flagfile(Pretrain()).splitlines())  # of flags that an earlier version did not have
    texts = {**defaults, **texts}
    kept = frozenset((name, text) for name, text in texts.items() if name not in _NO_RECIPE)
    if not accuracies.is_place(texts["dataset"]):
        return kept
    return kept, pathlib.PurePath(texts.get("data_dir", "")).name, _trained_on(run)


def _trained_on(run: RunFolder) -> object:
    """The number of training images, as the newest checkpoint says it; None without one."""
    with contextlib.suppress(UserError, IndexError):
        return checkpoint.describe(checkpoint.existing(run.checkpoints)[-1]).get("num_examples")
    return None


def _newest(run: RunFolder, own: list[Outcome]) -> Outcome:
    newest = max((one.step for one in own if one.step is not None), default=None)
    return accuracies.by_weights(run, [one for one in own if one.step == newest])[0][0]


def _reader() -> Callable[[Outcome], np.ndarray]:
    """(result) to 1 where its answer is right, Q; refuses other images than the first one's."""
    first: list[tuple[Outcome, np.ndarray]] = []

    def read(one: Outcome) -> np.ndarray:
        found = scores.read_predictions(one.folder.predictions)
        if found is None:
            raise UserError(f"{one.folder.predictions} is damaged; evaluate again")
        predictions, labels = found
        first.append((one, labels))
        if not np.array_equal(first[0][1], labels):
            raise UserError(
                f"{first[0][0].folder.path} and {one.folder.path} answer other test images, expected the same ones; "
                "evaluate both on one set"
            )
        return (predictions == labels).astype(np.float64)

    return read


def _of_runs(
    name: str, group: list[Outcome], runs: Mapping[str, RunFolder], answers: Callable[[Outcome], np.ndarray]
) -> Contender:
    """The contender of one recipe's runs."""
    seeds = [define.texts_of(runs[one.run].flags).get("seed") for one in group]
    for earlier, one in itertools.combinations(range(len(group)), 2):
        pair = f"{runs[group[earlier].run].path} and {runs[group[one].run].path}"
        if seeds[earlier] == seeds[one]:
            raise UserError(f"{pair} have one recipe and one --seed, expected runs that differ; leave one of them out")
        if group[earlier].step != group[one].step:
            steps = f"{group[earlier].step} and {group[one].step}"
            raise UserError(
                f"{pair} have one recipe and were evaluated at steps {steps}, expected the same; evaluate again"
            )
    right = np.stack([answers(one) for one in group])
    return Contender(name, tuple(one.run for one in group), right, intervals.scatter(right) if len(group) > 1 else None)


def _names(groups: list[list[Outcome]]) -> list[str]:
    """Of recipes: what the names of their runs begin with, where that tells them apart."""
    prefixes = [os.path.commonprefix([one.run for one in group]) for group in groups]
    short = [group[0].run if len(group) == 1 else prefix.rstrip("-_. /") for group, prefix in zip(groups, prefixes)]
    distinct = len(set(short)) == len(short) and all(short)
    return short if distinct else [" + ".join(one.run for one in group) for group in groups]


def differences(found: Sequence[Contender]) -> list[Difference]:
    """Of all pairs but those of two baselines, the largest first; p corrected for their number (Holm)."""
    pairs = [pair for pair in itertools.combinations(found, 2) if not (pair[0].baseline and pair[1].baseline)]
    tested = []
    for pair in pairs:
        better, worse = sorted(pair, key=lambda one: -one.right.mean())
        scatters = better.scatter, worse.scatter
        tested.append((better, worse, intervals.difference(better.right, worse.right, scatters)))
    corrected = intervals.holm([estimate.p for _, _, estimate in tested])
    return sorted((Difference(*one, p) for one, p in zip(tested, corrected)), key=lambda one: -one.estimate.mean)


def _table(title: str, found: list[Contender]) -> str:
    lines = [f"{title}:", "", "| features | runs | top-1 | 95 % interval |", "|---|---|---|---|"]
    for one in found:
        estimate = intervals.share(one.right, one.scatter)
        low, high = 100 * estimate.low, 100 * estimate.high
        lines.append(f"| {one.name} | {len(one.runs)} | {100 * estimate.mean:.2f} | {low:.2f} to {high:.2f} |")
    tested = differences(found)
    if tested:
        lines += ["", "| difference | points | 95 % interval | p | |", "|---|---|---|---|---|"]
    for pair in tested:
        low, high = 100 * pair.estimate.low, 100 * pair.estimate.high
        p = "< 0.0001" if pair.p < 1e-4 else f"{pair.p:.2g}"
        lines.append(
            f"| {pair.better.name} - {pair.worse.name} | {100 * pair.estimate.mean:.2f} | {low:.2f} to {high:.2f} | "
            f"{p} | {pair.verdict} |"
        )
    return "\n".join([*lines, "", *_notes(found, len(tested))])


def _notes(found: list[Contender], tested: int) -> Iterator[str]:
    """What the numbers are, in sentences."""
    for one in (one for one in found if len(one.runs) > 1):
        shares = 100 * one.right.mean(axis=1)
        yield (
            f"{', '.join(one.runs)} differ in --seed alone, so that they are one recipe, and {SAME}: the "
            f"{shares.max() - shares.min():.2f} points from the worst to the best are the seeds'."
        )
    single = [one for one in found if len(one.runs) == 1 and not one.baseline]
    if single and any(one.scatter for one in single):
        yield f"One run of {_and(single)}: the seed is taken to matter as much as to the other recipes."
    elif single:
        yield f"One run of {_and(single)}: the luck of its seed is in no interval; give runs of other seeds."
    untrained = [one for one in found if one.baseline and one.name.startswith(accuracies.BASELINES["untrained"])]
    if tested and untrained:
        yield f"One {_and(untrained)}: the luck of its first weights is in no interval."
    if not tested:
        yield "Nothing is compared here: no other recipe and no baseline has answers to these images."
    if tested > 1:
        yield f"Each p is corrected for the {tested} pairs (Holm); each interval is of its pair alone."


def _and(found: list[Contender]) -> str:
    return ", ".join(one.name for one in found)
