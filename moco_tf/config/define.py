"""From typed options to flags and back: absl parses the command line and flagfiles, groups of options come out."""

import dataclasses
import math
import pathlib
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from absl import flags

from moco_tf.config import find, recipes
from moco_tf.config.types import Kind, Value, absolute, kind_of
from moco_tf.errors import UserError

Options = TypeVar("Options")

# Flags of earlier versions that flags.cfg of old run folders may hold: what says the same as today's default.
_RETIRED = {"--exact_blur", "--antialias", "--nouniform_ratio"}
_ADVICE = "moco.tensorflow's crops and blur are views of their own now: --views=moco_v1_s3 or moco_v2_s3"
_REPLACED = dict.fromkeys(("exact_blur", "antialias", "uniform_ratio"), _ADVICE) | {
    "shuffle_bn": "give --bn=shuffle, or --bn=split in place of --noshuffle_bn"
}
_PLACES = ("--workdir", "--data_dir")  # that a run folder's flags.cfg of an earlier version has relative


def parse(program: type[Options], argv: Sequence[str], values: flags.FlagValues | None = None) -> Options:
    """The options of a program.

    Args:
        program: a dataclass of groups, see moco_tf.config.options.
        argv: the program's name, then flags; a flagfile is given by its path or by its recipe's name.
        values: where the flags are defined; default: a place of their own.

    Raises:
        flags.Error: a flag is unknown, a value is refused, values do not fit together, or a flagfile is not there.
    """
    values = flags.FlagValues() if values is None else values
    try:
        words = words_of(program, argv, values)
        define(program, words, values)
        rest = values([argv[0], *words], known_only=False)
        if rest[1:]:
            raise flags.Error(f"{rest[1]!r} is no flag; flags look like --name=value")
        return _built(program, values)
    except flags.UnrecognizedFlagError as error:
        known = _REPLACED.get(error.flagname) or _REPLACED.get(error.flagname.removeprefix("no"))
        raise flags.Error(f"--{error.flagname} is gone: {known}") if known else error from None
    except UserError as error:
        raise flags.IllegalFlagValueError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag as a program has it.

    Args:
        name: without dashes.
        annotation: its type.
        default: its value when nothing is given; of a method's or backbone's own flag None, its text says it.
        help: a sentence.
        kind: "method" or "arch", of a flag that such a one brings.
        asked: whether the command line names the method or the backbone that brings it.
    """

    name: str
    annotation: Any
    default: Value
    help: str
    kind: str = ""
    asked: bool = False


def sections(program: type, words: Sequence[str]) -> dict[str, list[Flag]]:
    """{what they are about: the flags} of a program.

    Args:
        program: a dataclass of groups.
        words: the command line, flagfiles already read: says which method and backbone.
    """
    found: dict[str, list[Flag]] = {}
    for group in _groups(program).values():
        hints = typing.get_type_hints(type(group), include_extras=True)
        found[(type(group).__doc__ or "").strip()] = [
            Flag(field.name, hints[field.name], getattr(group, field.name), field.metadata["help"])
            for field in dataclasses.fields(group)
            if "help" in field.metadata
        ]
    for kind, default in _kinds(program).items():
        named = given(kind, words)
        asked = {argument.name for argument in find.arguments(kind, named)} if named else set()
        found[f"Flags of one --{kind} or another."] = [
            Flag(name, annotation, None, text, kind, name in asked)
            for name, (annotation, text) in _union(kind, named or default).items()
        ]
    return found


def define(program: type, words: Sequence[str], values: flags.FlagValues) -> None:
    """Defines the flags of a program's options, and of the modules that the command line names, in `values`.

    Args:
        program: a dataclass of groups.
        words: the command line, flagfiles already read.
        values: where to define them.
    """
    for flag in (flag for found in sections(program, words).values() for flag in found):
        if flag.kind and flag.name in values:
            raise UserError(
                f"--{flag.kind}: an argument is called {flag.name}, which is a flag already; rename the argument"
            )
        _define(values, flag)


def words_of(program: type, argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """The words of a command line behind the program's name, flagfiles read.

    Args:
        program: a dataclass of groups.
        argv: the program's name, then flags.
        values: read the flagfiles.

    Raises:
        UserError: a flagfile is not there or cannot be read.
    """
    return _expanded(values, recipes.with_paths(argv[1:], programs(program)))


def values_of(options: Any) -> dict[str, Value]:
    """Every option by its flag's name, those of method and backbone included."""
    found: dict[str, Value] = {}
    for group in _parts(options).values():
        for field in _flag_fields(group):
            value = getattr(group, field.name)
            found |= value if "kind" in field.metadata else {field.name: value}
    return found


def flagfile(options: Any) -> str:
    """Every option as text that --flagfile reads back; those that are None are left out."""
    lines = [word(name, value) for name, value in values_of(options).items() if value is not None]
    return "".join(f"{line}\n" for line in sorted(lines))


def word(name: str, value: Value) -> str:
    """An option as it stands on a command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={shown(value)}"


def shown(value: Value | list) -> str:
    """A value as it stands on a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def changes(options: Any) -> dict[str, str]:
    """What a run that goes on does with another value of each option: "refused", "said" or "silent"."""
    found: dict[str, str] = {}
    for group in _parts(options).values():
        for field in _flag_fields(group):
            own = getattr(group, field.name) if "kind" in field.metadata else {field.name: None}
            found |= dict.fromkeys(own, field.metadata.get("change", "refused"))
    return found


def replaced(options: Options, **values: Value) -> Options:
    """The same options with other values of these flags."""
    groups = {}
    for name, group in _parts(options).items():
        own = {field.name: values.pop(field.name) for field in dataclasses.fields(group) if field.name in values}
        groups[name] = dataclasses.replace(group, **own)
    if values:
        raise TypeError(f"{sorted(values)} are no options of {type(options).__name__}")
    return dataclasses.replace(options, **groups)  # type: ignore[type-var]


def programs(program: type) -> list[str]:
    """Whose recipes a program takes: its own, and those of the program that it extends (bench: those of pretrain)."""
    return [kind.__name__.lower() for kind in program.__mro__[:-1]]


def _groups(program: type) -> dict[str, Any]:
    """{name: the group with its defaults} of a program's options."""
    return {field.name: field.default for field in dataclasses.fields(program)}


def _parts(options: Any) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def _flag_fields(group: Any) -> list[dataclasses.Field]:
    """The fields that are flags, or hold some: all but one with the names of those that came."""
    return [field for field in dataclasses.fields(group) if field.metadata]


def _kinds(program: type) -> dict[str, str]:
    """{kind: default name} of what brings options of its own: a method, a backbone."""
    kinds = {}
    for group in _groups(program).values():
        for field in dataclasses.fields(group):
            if kind := field.metadata.get("kind"):
                kinds[kind] = getattr(group, kind)
    return kinds


def _expanded(values: flags.FlagValues, words: Sequence[str]) -> list[str]:
    """The command line with its flagfiles read, without retired flags that say what holds today."""
    found: list[str] = []
    try:
        for text in words:
            name, _, file = text.partition("=")
            own = values.read_flags_from_files([text], force_gnu=False) if name.lstrip("-") == "flagfile" else [text]
            found += own if own == [text] else _from_where_it_ran(own, pathlib.Path(file))
    except flags.CantOpenFlagFileError as error:
        raise UserError(f"the flagfile cannot be read: {' '.join(str(error).split())}") from None
    return _last_of_each([text for text in found if text not in _RETIRED])


def _last_of_each(words: list[str]) -> list[str]:
    """Without values that a later word overrides: another --method or --arch than a flagfile's may not take them."""
    last = {name: number for number, text in enumerate(words) for name, equals, _ in [text.partition("=")]}
    return [text for number, text in enumerate(words) if "=" not in text or last[text.partition("=")[0]] == number]


def _from_where_it_ran(words: list[str], file: pathlib.Path) -> list[str]:
    """A flagfile's words; relative paths of a run folder's own flags.cfg start where the run was started."""
    run = file.expanduser().resolve().parent
    parts = pathlib.Path(next((word for word in words if word.startswith("--workdir=")), "=").partition("=")[2]).parts
    if not parts or run.parts[-len(parts) :] != parts:
        return words
    base = str(pathlib.Path(*run.parts[: -len(parts)]))
    pairs = [word.partition("=") for word in words]
    return [
        f"{name}={absolute(value, base)}" if name in _PLACES else name + equals + value for name, equals, value in pairs
    ]


def given(name: str, words: Sequence[str]) -> str:
    """The last value of a flag on a command line; empty where it is not there."""
    found = ""
    for text, following in zip(words, [*words[1:], ""]):
        own, equals, value = text.lstrip("-").partition("=")
        if text.startswith("-") and own == name:
            found = value if equals else following
    return found


def _union(kind: str, chosen: str) -> dict[str, tuple[Any, str]]:
    """{argument: (annotation, help)} of everything of a kind in the package, and of what is chosen."""
    found: dict[str, tuple[Any, str]] = {}
    texts: dict[str, list[str]] = {}
    own = find.arguments(kind, chosen)  # first: its types count
    names = [chosen, *(name for name in _one_a_file(kind) if name != chosen)]
    for name in names:
        for argument in own if name == chosen else find.arguments(kind, name):
            found.setdefault(argument.name, (argument.annotation, argument.help))
            texts.setdefault(argument.name, []).append(f"{name}: {shown(argument.default)}")
    return {
        name: (annotation, f"{text} Default: {', '.join(dict.fromkeys(texts[name]))}.")
        for name, (annotation, text) in found.items()
    }


def _one_a_file(kind: str) -> Iterator[str]:
    """A name for each file of a kind: architectures of one file have the same arguments."""
    seen = set()
    for name in find.names(kind):
        module = find.module_of(kind, name)
        if module not in seen:
            seen.add(module)
            yield name


def _built(program: type[Options], values: flags.FlagValues) -> Options:
    groups: dict[str, Any] = {}
    for name, group in _groups(program).items():
        own: dict[str, Any] = {}
        for field in dataclasses.fields(group):
            if kind := field.metadata.get("kind"):
                own[field.name] = _resolved(kind, str(values[kind].value), values)
            elif not field.metadata:
                own[field.name] = tuple(name for name in values if values[name].present)
            else:
                own[field.name] = values[field.name].value
        groups[name] = dataclasses.replace(group, **own)
    return program(**groups)


def _resolved(kind: str, name: str, values: flags.FlagValues) -> dict[str, Value]:
    """The options of the method or backbone that is chosen: as given, or its own defaults."""
    own = {argument.name: argument.default for argument in find.arguments(kind, name)}
    for other in _union(kind, name):
        flag = values[other]
        if other not in own and flag.value is True:
            there = [n for n in find.names(kind) if other in [a.name for a in find.arguments(kind, n)]]
            raise UserError(
                f"--{other} came with --{kind}={name}, expected {' or '.join(there)}; "
                f"leave --{other} out, or give --no{other} behind a flagfile that has it"
            )
    return {other: default if values[other].value is None else values[other].value for other, default in own.items()}


def ignored(options: Any, values: flags.FlagValues) -> list[str]:
    """The given flags that only other methods or backbones than the chosen ones have, as they stand on a command line.

    Args:
        options: as `parse` returned them.
        values: where it defined the flags.
    """
    found = []
    for group in _parts(options).values():
        for field in dataclasses.fields(group):
            if kind := field.metadata.get("kind"):
                others = _union(kind, getattr(group, kind)).keys() - getattr(group, field.name).keys()
                came = [name for name in others if name in values and values[name].value is not None]
                found += [word(name, values[name].value) for name in came]
    return sorted(found)


def _define(values: flags.FlagValues, flag: Flag) -> None:
    kind, default = kind_of(flag.annotation), flag.default
    made: flags.Flag
    if kind.type is bool and not kind.many:
        made = flags.BooleanFlag(flag.name, None if default is None else bool(default), flag.help)
    elif kind.choices:
        made = flags.EnumFlag(flag.name, None if default is None else str(default), flag.help, list(kind.choices))
    else:
        made = flags.Flag(_Parser(kind), _Serializer(), flag.name, None, flag.help)
        made.default = made.value = default
    flags.DEFINE_flag(made, values, __name__)


class _Serializer(flags.ArgumentSerializer):
    def serialize(self, value: Value) -> str:
        return shown(value)


class _Parser(flags.ArgumentParser):
    """Text to a value of a kind; absl puts the flag's name before what is refused."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        bounds = kind.bounds
        parsers: dict[type, Callable[[], flags.ArgumentParser]] = {
            int: lambda: flags.IntegerParser(_whole(bounds.least), _whole(bounds.most)),
            float: lambda: flags.FloatParser(bounds.least, bounds.most),
            str: flags.ArgumentParser,
        }
        self._kind, self._one = kind, parsers[kind.type]()
        self.syntactic_help = self._one.syntactic_help + (" between commas" if kind.many else "")

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        if self._kind.many:
            return self._parse_many(argument)
        try:
            value = self._one.parse(self._kind.kept(argument))
        except ValueError as error:
            if str(error).startswith(("invalid literal", "could not convert")):  # Python's words
                raise ValueError(f"expected {self._one.syntactic_help}") from None
            raise
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("expected a finite number")
        return value

    def _parse_many(self, text: str) -> tuple[Any, ...]:
        try:
            values = tuple(self._kind.type(word.strip()) for word in text.split(",")) if text else ()
        except ValueError:
            raise ValueError("expected numbers between commas") from None
        values = tuple(map(self._kind.kept, values)) if self._kind.place else values
        least, most = self._kind.bounds.least, self._kind.bounds.most
        if any((least is not None and v < least) or (most is not None and v > most) for v in values):
            raise ValueError(f"expected numbers between commas, each {self._one.syntactic_help}")
        return values

    def flag_type(self) -> str:
        return self._kind.type.__name__ + (" list" if self._kind.many else "")


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def texts_of(flagfile: pathlib.Path) -> dict[str, str]:
    """The flags of a flagfile by name, as text, unchecked; none without the file: --noname is "false".

    Raises:
        UserError: the file cannot be read.
    """
    return texts(_expanded(flags.FlagValues(), [f"--flagfile={flagfile}"])) if flagfile.is_file() else {}


def texts(words: Iterable[str]) -> dict[str, str]:
    """The same of the words of a command line."""
    found = {}
    for text in words:
        name, equals, value = text.lstrip("-").partition("=")
        negated = not equals and name.startswith("no")  # only booleans come without a value
        found[name[2:] if negated else name] = value if equals else str(not negated).lower()
    return found
