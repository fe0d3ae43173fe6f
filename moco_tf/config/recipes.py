"""Finds recipes, the flagfiles of flags/, by name: "demo" is flags/pretrain/demo.cfg for the program pretrain."""

import os
import pathlib
from collections.abc import Sequence

from moco_tf.config.find import listed
from moco_tf.errors import UserError

_PACKAGE = pathlib.Path(__file__).parents[1]
# Inside the package where it is installed, beside it in a clone.
_FLAGS = next((folder for folder in (_PACKAGE / "flags", _PACKAGE.parent / "flags") if folder.is_dir()), _PACKAGE)


def find(flagfile: str | os.PathLike, programs: Sequence[str]) -> pathlib.Path:
    """The path of a flagfile that is given by its path or by a recipe's name.

    Args:
        flagfile: a path, also one from the folder that flags/ is in; or a recipe's name.
        programs: whose recipes to look through, the program itself first.

    Raises:
        UserError: there is no such file or recipe; says what there is and what is close.
    """
    path = pathlib.Path(flagfile).expanduser()
    named = [_FLAGS / folder / f"{flagfile}.cfg" for folder in (*programs, ".")]  # of ".": debug/pretrain
    for place in (path, *named, _FLAGS.parent / flagfile):
        if place.exists() and not place.is_dir():
            return place
    known = names(programs)
    expected = f"a path, or {listed(path.stem, known)}" if known else "a path"
    raise UserError(f"the flagfile {os.fspath(flagfile)!r} is not there; expected {expected}")


def names(programs: Sequence[str]) -> list[str]:
    """Names of all recipes of these programs."""
    return sorted({path.stem for program in programs for path in (_FLAGS / program).glob("*.cfg")})


def with_paths(words: Sequence[str], programs: Sequence[str]) -> list[str]:
    """A command line whose flagfiles are all --flagfile=PATH, in one word. Raises UserError, as `find` does."""
    found: list[str] = []
    for place, text in enumerate(words):
        if text == "--":
            return [*found, *words[place:]]
        name, equals, value = text.partition("=")
        if name in ("--flagfile", "-flagfile") and equals and value:
            text = f"{name}={find(value, programs)}"
        elif found and words[place - 1] in ("--flagfile", "-flagfile"):
            text = f"{found.pop()}={find(text, programs)}"
        found.append(text)
    return found
