"""Recipes: a program's flags, read from a flagfile and from keywords; and what runs them."""

import contextlib
import dataclasses
import difflib
import importlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import flags as absl_flags

from moco_tf.config import define, options
from moco_tf.config.recipes import find
from moco_tf.data import records
from moco_tf.errors import UserError
from moco_tf.run.folder import RunFolder
from moco_tf.run.pretraining import pretrain
from moco_tf.training import collectives, runlog


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A program's flags, parsed and checked as on its command line. Made by `recipe`.

    Attributes:
        program: what they are flags of: "pretrain", "lincls", "knn" ...
        options: every flag by its name, frozen.
        arguments: the command line that gives these options.
        flagfile: every flag as text that --flagfile reads back.
    """

    program: str
    options: Any
    arguments: tuple[str, ...]
    flagfile: str

    def replace(self, **flags: Any) -> "Recipe":
        """The same recipe with other values of these flags. Raises UserError, as `recipe` does."""
        return _parse(self.program, (*self.arguments, *_arguments(self.program, flags)))

    def run(self) -> None:
        """Runs the program in this process, on the ranks that it was started with: all of them call this.

        Raises:
            UserError: as the program, which would print it and exit with status 1.
        """
        with whole():
            importlib.import_module(f"moco_tf.{self.program}").main(self.options)


def recipe(flagfile: str | os.PathLike | None = None, program: str = "pretrain", **flags: Any) -> Recipe:
    """Reads a recipe.

    Args:
        flagfile: its path, or the name of one of moco_tf's recipes: "demo" is flags/pretrain/demo.cfg, or
            flags/lincls/demo.cfg for the program lincls. None: the flags' defaults.
        program: the program whose flags these are, as in `python -m moco_tf.<program>`.
        **flags: values that override the flagfile's; lists may be given as such, None overrides nothing.

    Raises:
        UserError: there is no such file, program or flag, or a value is refused.
    """
    files = () if flagfile is None else (f"--flagfile={_path(flagfile, program)}",)
    return _parse(program, (*files, *_arguments(program, flags)))


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Ends a program's work: what rank 0 writes last is there for all ranks, and no log stays open."""
    try:
        yield
        for line in records.left_out():
            print(line, flush=True)
        collectives.connect().barrier()
    finally:
        runlog.close_all()  # of work that failed or was interrupted


def train(recipe: Recipe, **flags: Any) -> list[dict[str, float]]:
    """Pre-trains in a run folder, or goes on in it, and returns `metrics` of it.

    Args:
        recipe: of the program pretrain.
        **flags: values that override the recipe's; workdir, the run folder, is needed here or there.

    Raises:
        UserError: as python -m moco_tf.pretrain.
    """
    if recipe.program != "pretrain":
        raise UserError(f"a recipe of moco_tf.{recipe.program} came, expected one of moco_tf.pretrain")
    recipe = recipe.replace(**flags)
    with whole():
        pretrain(recipe.options)
    return metrics(recipe.options.run.workdir)


def metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """The numbers of a run folder's metrics.jsonl, by step: step, epoch, loss, contrast_top1, learning_rate ...

    A line that a crash cut off is left out. Raises UserError when there is no such file.
    """
    return RunFolder.of(workdir).read_metrics().lines


def _path(flagfile: str | os.PathLike, program: str) -> pathlib.Path:
    return find(flagfile, define.programs(_options(program))).absolute()


def _arguments(program: str, flags: dict[str, Any]) -> tuple[str, ...]:
    """Keywords as command-line flags."""
    defined = absl_flags.FlagValues()
    define.define(_options(program), [], defined)
    known = list(defined)
    for name in flags:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            guess = f"; did you mean {close[0]}?" if close else f", see python -m moco_tf.{program} --help"
            raise UserError(f"{name!r} is no flag of moco_tf.{program}{guess}")
    return tuple(f"--{name}={_word(value)}" for name, value in flags.items() if value is not None)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _parse(program: str, arguments: tuple[str, ...]) -> Recipe:
    try:
        parsed = define.parse(_options(program), [program, *arguments])
    except absl_flags.UnrecognizedFlagError as error:
        raise UserError(
            f"{error.flagname!r} is no flag of moco_tf.{program}; is it another program's? see program="
        ) from None
    except absl_flags.Error as error:
        raise UserError(f"flags of moco_tf.{program}: {' '.join(str(error).split())}") from None
    return Recipe(program, parsed, arguments, define.flagfile(parsed))


def _options(program: str) -> Any:
    if program not in options.PROGRAMS:
        known = ", ".join(options.PROGRAMS)
        raise UserError(f"{program!r} is no program of moco_tf; expected one of {known}")
    return options.PROGRAMS[program]
