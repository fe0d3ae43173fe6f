"""What --help and --helpfull print."""

import textwrap
from collections.abc import Sequence

from moco_tf.config import define
from moco_tf.config.types import kind_of

WORDS = ("--help", "-help", "-h", "--helpshort", "--helpfull", "-helpfull")
# A program with more flags shows the first of these that it has, and those of a method or backbone that is named.
_MANY = 15
_FIRST = (
    *("fake", "compare", "bench_steps", "load", "vectors", "image", "images", "output", "workdir"),
    *("dataset", "data_dir", "init", "method", "arch"),
    *("image_size", "batch_size", "epochs", "learning_rate", "queue_size", "temperature", "views", "knn_every"),
    *(
        "monitor",
        "precision",
        "baseline",
        "k",
        "knn_temperature",
        "feature",
        "shots",
        "draws",
        "exact",
        "all_checkpoints",
    ),
    *("measures", "cache_features", "learning_rates", "logistic_regression", "finetune", "train_fraction"),
)
_INDENT = 26


def text(about: str, program: type, words: Sequence[str], full: bool = False) -> str:
    """What a program does, and its flags with default, choices and meaning, in 80 columns.

    Args:
        about: what it does.
        program: its options, a dataclass of groups.
        words: the command line, flagfiles read: says which method and backbone.
        full: all flags by group, in place of those that people set first.
    """
    sections = define.sections(program, words)
    every = {flag.name: flag for found in sections.values() for flag in found}
    if not full:
        first = [every[name] for name in _FIRST if name in every][:_MANY]
        first += [flag for flag in every.values() if flag.asked and flag not in first]
        title = f"The flags that are set first, of {len(every)}; --helpfull shows all:"
        sections = {title: first} if len(every) > _MANY else {"Flags:": [*every.values()]}
    recipe = _entry("--flagfile=RECIPE", "A recipe by name, or a file of flags; flags behind it override it.")
    parts = [f"{title}\n" + "\n".join(map(_shown, found)) for title, found in sections.items() if found]
    return "\n\n".join([*map(_filled, about.strip().split("\n\n")), *parts, recipe])


def _filled(paragraph: str) -> str:
    """A paragraph in 80 columns; commands, which are indented, as they are."""
    return paragraph if paragraph.startswith("    ") else textwrap.fill(paragraph, 80)


def _shown(flag: define.Flag) -> str:
    kind = kind_of(flag.annotation)
    if kind.type is bool:
        name = f"--[no]{flag.name}"
    elif flag.default in (None, ""):
        name = f"--{flag.name}={'PATH' if kind.place else 'TEXT' if kind.type is str else 'NUMBER'}"
    else:
        name = f"--{flag.name}={define.shown(flag.default)}"
    choices = f" One of {', '.join(kind.choices)}." if kind.choices else ""
    on = " Default: yes." if flag.default is True else ""
    return _entry(name, flag.help + choices + on)


def _entry(name: str, meaning: str) -> str:
    """A flag and its meaning, wrapped, side by side where the name leaves room."""
    lines = textwrap.wrap(meaning, 80 - _INDENT - 2)
    start = f"  {name}"
    room = len(start) < _INDENT
    rows = ([start.ljust(_INDENT) + lines[0]] if room else [start, " " * _INDENT + lines[0]]) if lines else [start]
    return "\n".join([*rows, *(" " * _INDENT + line for line in lines[1:])])
