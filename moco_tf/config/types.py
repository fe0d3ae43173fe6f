"""Types of options: what a flag takes, said in the annotation of a dataclass' field or of a constructor's argument."""

import dataclasses
import os
import pathlib
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Numbers from least to most; None: no bound. Of a tuple, each number."""

    least: float | None = None
    most: float | None = None


@dataclasses.dataclass(frozen=True)
class Place:
    """The text is a path, which is kept absolute, or one of these names."""

    names: tuple[str, ...] = ()


Path = Annotated[str, Place()]
Count = Annotated[int, Bounds(1)]
CountOrZero = Annotated[int, Bounds(0)]
Share = Annotated[float, Bounds(0.0, 1.0)]
Positive = Annotated[float, Bounds(1e-6)]
PositiveOrZero = Annotated[float, Bounds(0.0)]

# What one option may hold.
Value = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Kind:
    """An annotation in parts: the plain type, its bounds, its choices, whether it is a tuple of such, or of paths."""

    type: type
    bounds: Bounds
    choices: tuple[str, ...] = ()
    many: bool = False
    place: Place | None = None

    def kept(self, text: str) -> str:
        """The text as it is kept: a path absolute."""
        return absolute(text) if self.place and text not in self.place.names else text


def kind_of(annotation: Any) -> Kind:
    """The parts of an annotation; `None` among its alternatives is left out.

    Raises:
        TypeError: it is no type that a flag can have.
    """
    bounds, place = Bounds(), None
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        annotation = rest[0] if len(rest) == 1 else annotation
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        bounds = next((note for note in notes if isinstance(note, Bounds)), bounds)
        place = next((note for note in notes if isinstance(note, Place)), None)
    if get_origin(annotation) is Literal:
        return Kind(str, bounds, get_args(annotation))
    many = get_origin(annotation) is tuple
    if many:
        inner = kind_of(get_args(annotation)[0])
        if inner.type is not bool and not inner.choices and not inner.many:
            return Kind(inner.type, bounds if bounds != Bounds() else inner.bounds, (), True, inner.place)
    plain = annotation
    if plain not in (bool, int, float, str):
        raise TypeError(f"{annotation} is no type of an option; expected bool, int, float, str, Literal or a tuple")
    return Kind(plain, bounds, (), many, place)


def absolute(path: str, base: str = "") -> str:
    """The path as it holds from anywhere, ~ expanded; nothing and an address (gs://...) stay as they are.

    Args:
        path: as it was given.
        base: the folder that it starts from; "": the working folder.
    """
    return path if not path or "://" in path else os.path.abspath(os.path.join(base, os.path.expanduser(path)))


def cache_folder() -> pathlib.Path:
    """Where this package keeps what it can make again, in the user's cache."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "moco_tf"


# The names that an annotation may use where it is read without running its module.
NAMES = {
    "Annotated": Annotated,
    "Bounds": Bounds,
    "Literal": Literal,
    "Path": Path,
    "Count": Count,
    "CountOrZero": CountOrZero,
    "Share": Share,
    "Positive": Positive,
    "PositiveOrZero": PositiveOrZero,
}
