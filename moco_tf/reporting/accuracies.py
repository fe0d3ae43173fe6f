"""The accuracies that run folders hold, in tables of what belongs together: the same images, the same settings."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from moco_tf.errors import UserError
from moco_tf.evaluation.subject import weights_of
from moco_tf.formats.load import load
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint

BASELINES = {"untrained": "untrained encoder", "raw_pixels": "raw pixels"}
NOTHING = "Nothing was evaluated yet: moco_tf.knn and moco_tf.lincls with --load of the run folder do that."
_TITLES = {"kNN": "kNN", "lincls": "linear"}  # these columns are always there
_OF_THE_IMAGES = ("dataset", "data_dir", "holdout", "all_checkpoints")  # settings that make no column


def is_place(dataset: str) -> bool:
    """Whether --data_dir says which images a data set has, as it does of a folder and may do of a module's."""
    return dataset == "folder" or "." in re.split("[/:]", dataset)[0]


Column = tuple[str, tuple[tuple[str, str], ...]]  # an evaluation and its settings


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One result.

    Args:
        run: the name of its run.
        folder: that holds it.
        result: of result.json.
    """

    run: str
    folder: RunFolder
    result: dict[str, Any]

    @property
    def images(self) -> str:
        """What was tested on, in words."""
        name, place = str(self.result.get("dataset")), self.result.get("data_dir")
        where = f" ({place})" if place and is_place(name) else ""
        count = self.result.get("test_images")
        return f"{name}{where}, {count:,} {self.kind}" if isinstance(count, int) else f"{name}{where}, {self.kind}"

    @property
    def kind(self) -> str:
        """What the tested images are: test images, or held-out training images."""
        split = str(self.result.get("split", "test"))
        return "test images" if split == "test" else split.partition(" ")[2]

    @property
    def subject(self) -> str:
        """What was evaluated."""
        return str(self.result.get("subject", ""))

    @property
    def baseline(self) -> str:
        """The name of a baseline, or none; results of earlier versions do not say it."""
        guess = "raw_pixels" if self.subject == "raw pixels" else self.subject.partition(" ")[0]
        return str(self.result.get("baseline", guess if guess in BASELINES else "none"))

    @property
    def title(self) -> str:
        """What a baseline is called."""
        return BASELINES.get(self.baseline, pathlib.PurePath(self.baseline).name)

    @property
    def step(self) -> int | None:
        """Of the checkpoint; None if unknown."""
        step = self.result.get("step")
        return step if isinstance(step, int) else None

    @property
    def weights(self) -> str | None:
        """A digest of what was evaluated; None if unknown."""
        digest = self.result.get("weights")
        return digest if isinstance(digest, str) else None

    @property
    def column(self) -> Column:
        """Where it stands in a table."""
        given = self.result.get("settings")
        found = {name: str(text) for name, text in (given if isinstance(given, dict) else {}).items()}
        kept = sorted((name, text) for name, text in found.items() if name not in _OF_THE_IMAGES)
        return str(self.result.get("evaluation", self.folder.path.name)), tuple(kept)


@dataclasses.dataclass(frozen=True)
class Table:
    """Accuracies that may be compared.

    Args:
        images: what was tested on, in words.
        columns: their titles.
        rows: (name, a cell for each column), runs first, then baselines.
    """

    images: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def outcomes(name: str, run: RunFolder) -> list[Outcome]:
    """The results in a run folder that can be read."""
    found = [Outcome(name, folder, folder.read_result()) for folder in run.all_results()]
    return [one for one in found if isinstance(one.result.get("top1"), int | float)]


def damaged(runs: Iterable[RunFolder]) -> Iterator[str]:
    """A line of each result that cannot be read."""
    found = [folder for run in runs for folder in run.all_results() if not folder.read_result()]
    yield from (f"Left out: {folder.result} is damaged; evaluate again." for folder in found)


def by_weights(run: RunFolder, found: list[Outcome]) -> list[list[Outcome]]:
    """Results of one step in groups of the same weights, the newest first.

    The first group is of the weights that the run's checkpoint of this step has now, where there is one and it matters,
    with the results that do not say of which weights they are.
    """
    found = sorted(found, key=lambda one: one.folder.result.stat().st_mtime_ns, reverse=True)
    groups = {weights: [one for one in found if one.weights == weights] for weights in _known(found)}
    if len(groups) < 2:
        return [found]
    own = _weights_now(run, found[0].step)
    first = own if own in groups else next(iter(groups))
    together = [one for one in found if one.weights in (first, None)]
    return [together, *(group for weights, group in groups.items() if weights != first)]


def _known(found: list[Outcome]) -> list[str]:
    return list(dict.fromkeys(one.weights for one in found if one.weights))


def _weights_now(run: RunFolder, step: int | None) -> str | None:
    """Those of the run's checkpoint; None without one, or where it holds no encoder that can be loaded."""
    for path in checkpoint.existing(run.checkpoints):
        if int(path.name[5:]) == step:
            with contextlib.suppress(UserError):
                return weights_of(load(str(path)).encoder)
    return None


def tables(runs: dict[str, RunFolder]) -> list[Table]:
    """A table for each kind of images that runs, folders by name, were tested on."""
    every = [one for name, run in runs.items() for one in outcomes(name, run)]
    found = []
    for images in dict.fromkeys(one.images for one in every):
        together = [one for one in every if one.images == images]
        titles = columns(together)
        rows = [*_of_runs(runs, together, every), *_of_baselines(together)]
        cells = [(name, [_top1(own, column) for column in titles]) for name, own in rows]
        found.append(Table(images, list(titles.values()), cells))
    return found


def markdown(runs: dict[str, RunFolder]) -> str:
    """The tables of runs, a dash where nothing was evaluated."""
    parts = []
    for table in tables(runs):
        lines = ["| features | " + " | ".join(table.columns) + " |", "|---|" + "---|" * len(table.columns)]
        lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in table.rows]
        parts.append(f"on {table.images}:\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, *damaged(runs.values())]) or NOTHING


def columns(found: list[Outcome]) -> dict[Column | str, str]:
    """Titles of columns; settings are named where one evaluation was made with several."""
    made: dict[Column | str, str] = {}
    for evaluation in dict.fromkeys([*_TITLES, *(one.column[0] for one in found)]):
        variants = list(dict.fromkeys(one.column for one in found if one.column[0] == evaluation))
        title = f"{_TITLES.get(evaluation, evaluation)} top-1"
        same = set.intersection(*(set(settings) for _, settings in variants)) if variants else set()
        for column in variants:
            own = [f"{name} {text}" for name, text in column[1] if (name, text) not in same]
            made[column] = ", ".join([title, *own])
        if not variants:
            made[evaluation] = title
    return made


def _of_runs(
    runs: dict[str, RunFolder], together: list[Outcome], every: list[Outcome]
) -> Iterator[tuple[str, list[Outcome]]]:
    """(name, results) of each run and checkpoint, the newest first; a run without any result has none."""
    for name, run in runs.items():
        own = [one for one in together if one.run == name and one.baseline == "none"]
        label = "pre-trained" if len(runs) == 1 else name
        steps = sorted({one.step for one in own}, key=lambda step: -1 if step is None else step, reverse=True)
        newest = next((int(path.name[5:]) for path in reversed(checkpoint.existing(run.checkpoints))), None)
        for step in steps:
            known = step is None or step == newest or (newest is None and len(steps) == 1)
            title = label if known else f"{label}, step {step}"
            first, *others = by_weights(run, [one for one in own if one.step == step])
            yield title, first
            yield from ((f"{title}, {_other(group[0], first)}", group) for group in others)
        if not any(one.run == name and one.baseline == "none" for one in every):
            yield label, []


def _other(one: Outcome, first: list[Outcome]) -> str:
    """What has other weights than the first ones: by its path where that tells them apart, always by its digest."""
    path = one.result.get("checkpoint")
    named = path and path not in [other.result.get("checkpoint") for other in first]
    return f"{path if named else 'other weights'} ({one.weights})"


def _of_baselines(found: list[Outcome]) -> Iterator[tuple[str, list[Outcome]]]:
    given = [one.baseline for one in found if one.baseline != "none"]
    for baseline in sorted(dict.fromkeys(given), key=lambda name: [*BASELINES, *given].index(name)):
        own = [one for one in found if one.baseline == baseline]
        subjects = list(dict.fromkeys(one.subject for one in own))
        for subject in subjects:
            yield own[0].title if len(subjects) == 1 else subject, [one for one in own if one.subject == subject]


def _top1(found: Iterable[Outcome], column: Column | str) -> str:
    """The accuracy of the first one in a column."""
    shares = (one.result["top1"] for one in found if one.column == column)
    return next((f"{100 * share:.2f}" for share in shares), "-")
