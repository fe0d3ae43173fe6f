"""Finds methods, backbones, data sets and optimizers by name: a file of this package, or a module of the user's.

--method=moco is moco_tf/methods/moco.py, --method=my_package.byol is the user's module my_package.byol. What the flags
need to know of a module (its class' arguments with their types, defaults and help) is read from its source: TensorFlow
is not imported for --help.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
import re
import types
from collections.abc import Iterator
from typing import Any

from moco_tf.config.types import NAMES, Value, kind_of
from moco_tf.errors import UserError

# kind: (the package whose files are found by name, the class that they extend)
PACKAGES = {
    "method": ("moco_tf.methods", "Method"),
    "arch": ("moco_tf.networks.backbones", "Backbone"),
    "dataset": ("moco_tf.data.sets", ""),
    "optimizer": ("moco_tf.training.optimizers", "Optimizer"),
}
_VIEWS = "moco_tf.data.views.recipes"  # all views are entries of this module's table


# Arguments that the assembly gives, though they have defaults: no flags of their own.
GIVEN = {"arch": ("bn_splits",)}


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument of a constructor that a flag sets: it has a default."""

    name: str
    annotation: Any
    default: Value
    help: str


def names(kind: str) -> list[str]:
    """What the package has of a kind, as --method, --arch, --views ... take it."""
    if kind == "views":
        table = _assigned(_VIEWS, "VIEWS")
        return sorted(str(ast.literal_eval(key)) for key in table.keys if key) if isinstance(table, ast.Dict) else []
    found: list[str] = []
    for file in _files(kind):
        found += list(variants(_module_name(kind, file))) or [file]
    return sorted(found)


def variants(module: str) -> dict[str, dict[str, Value]]:
    """The architectures that a backbone's file defines, {name: constructor arguments}: its literal VARIANTS."""
    table = _assigned(module, "VARIANTS")
    return ast.literal_eval(table) if table else {}


def module_of(kind: str, name: str, flag: str = "") -> str:
    """The module that defines what is called name.

    Args:
        kind: "method", "arch", "views", "dataset" or "optimizer".
        name: as the flag has it.
        flag: which flag, where it is not called as its kind.

    Raises:
        UserError: there is none; says what there is and what is close.
    """
    flag = flag or kind
    if "." in name:
        if not all(part.isidentifier() for part in name.split(".")) or _spec(name) is None:
            raise UserError(f"--{flag}={name} is no module that Python finds; expected one here or in PYTHONPATH")
        return name
    if kind == "views" and name in names(kind):
        return _VIEWS
    for file in _files(kind):
        if name == file or name in variants(_module_name(kind, file)):
            return _module_name(kind, file)
    raise UserError(f"--{flag}={name} came, expected {listed(name, names(kind))}, or a Python module such as my.{kind}")


def listed(name: str, known: list[str]) -> str:
    """What there is, and what is close to a wrong name, in words."""
    close = difflib.get_close_matches(name, known, 1)
    return f"one of {', '.join(known)}" + (f" (did you mean {close[0]}?)" if close else "")


def imported(kind: str, name: str) -> types.ModuleType:
    """The module that defines what is called name.

    Raises:
        UserError: there is none, or a module of the user's cannot be imported.
    """
    module = module_of(kind, name)
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, UserError) or module.startswith("moco_tf."):
            raise
        raise _broken(module, error) from None


def _broken(module: str, error: Exception) -> UserError:
    return UserError(f"the module {module} cannot be imported ({type(error).__name__}: {error}); mend it")


def find(kind: str, name: str) -> Any:
    """The class of a method, backbone or optimizer; imports its module.

    Raises:
        UserError: there is no such name, or its module defines no such class.
    """
    module = imported(kind, name)
    wanted = PACKAGES[kind][1]
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    fitting = [c for c in own if wanted in [base.__name__ for base in c.__mro__[1:]]]
    fitting = [c for c in fitting if not any(c in other.__mro__[1:] for other in fitting)]
    if len(fitting) != 1:
        raise UserError(f"{module.__name__} defines {len(fitting)} classes that extend {wanted}, expected one")
    return fitting[0]


def arguments(kind: str, name: str) -> list[Argument]:
    """What flags can set of a method or backbone: its constructor's arguments that have a default.

    The arguments of the classes that it extends count too, as far as it passes **kwargs on; those of Method or Backbone
    itself do not.

    Raises:
        UserError: there is no such name, no such class, or an argument's type is none that a flag can have.
    """
    module = module_of(kind, name)
    found: dict[str, Argument] = {}
    fixed = {*variants(module).get(name, {}), *GIVEN.get(kind, ())}
    for place, node in _lineage(module, PACKAGES[kind][1]):
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is None:
            continue
        helps = _helps(ast.get_docstring(node) or "")
        for argument in _with_defaults(init, f"{place}.{node.name}", helps):
            if argument.name not in fixed:
                found.setdefault(argument.name, argument)
        if init.args.kwarg is None:
            break
    return list(found.values())


def _files(kind: str) -> list[str]:
    if kind not in PACKAGES:
        return []
    place = _own_file(PACKAGES[kind][0]).with_suffix("")
    return sorted(m.name for m in pkgutil.iter_modules([str(place)]) if not m.name.startswith(("base", "find")))


def _module_name(kind: str, file: str) -> str:
    return f"{PACKAGES[kind][0]}.{file}"


def _spec(module: str) -> Any:
    try:
        return importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError) as error:
        if isinstance(error, ValueError) or module.startswith(error.name or ""):
            return None
        raise _broken(module, error) from None
    except Exception as error:  # of a package above it
        raise _broken(module, error) from None


def _own_file(module: str) -> pathlib.Path:
    """Where a module of this package is. Python's own search would import the packages above it, and TensorFlow."""
    return pathlib.Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")


@functools.cache
def _tree(module: str) -> ast.Module:
    if _own_file(module).is_file():
        return ast.parse(_own_file(module).read_text(encoding="utf-8"))
    spec = _spec(module)
    source = spec.origin if spec and spec.has_location else None  # modules inside of Python itself have none
    try:
        return ast.parse(pathlib.Path(source).read_text(encoding="utf-8") if source else "")
    except SyntaxError as error:
        raise _broken(module, error) from None


def _assigned(module: str, name: str) -> ast.expr | None:
    """What a module assigns to a name of its own."""
    for node in _tree(module).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(node, ast.Assign | ast.AnnAssign):
            return node.value
    return None


def _lineage(module: str, base: str) -> list[tuple[str, ast.ClassDef]]:
    """(module, class) of the class that extends base, and of those between the two, the lowest first."""
    classes = [node for node in _tree(module).body if isinstance(node, ast.ClassDef)]
    lines = [line for node in reversed(classes) if (line := _up(module, node, base))]
    if not lines:
        raise UserError(f"the module {module} defines no class that extends {base}, expected one")
    return lines[0]


def _up(module: str, node: ast.ClassDef, base: str) -> list[tuple[str, ast.ClassDef]]:
    for parent in node.bases:
        name = parent.attr if isinstance(parent, ast.Attribute) else getattr(parent, "id", "")
        if name == base:
            return [(module, node)]
        for place, above in _definitions(module, name):
            if rest := _up(place, above, base):
                return [(module, node), *rest]
    return []


def _definitions(module: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Where a class that a module names is defined: there, or where it imports it from."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    yield from _definitions(_imported(module, node), alias.name)


def _imported(module: str, node: ast.ImportFrom) -> str:
    """The module that an import names, which may be relative to its own."""
    spec = _spec(module)
    return importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent if spec else None)


def _with_defaults(init: ast.FunctionDef, where: str, helps: dict[str, str]) -> Iterator[Argument]:
    positional = init.args.args[len(init.args.args) - len(init.args.defaults) :]
    pairs = [*zip(positional, init.args.defaults), *zip(init.args.kwonlyargs, init.args.kw_defaults)]
    for argument, default in pairs:
        if default is None:
            continue
        try:
            value = ast.literal_eval(default)
            written = ast.unparse(argument.annotation) if argument.annotation else type(value).__name__
            annotation = eval(written, dict(NAMES))  # noqa: S307
            kind_of(annotation)
            yield Argument(argument.arg, annotation, value, helps.get(argument.arg, ""))
        except (NameError, TypeError, ValueError, SyntaxError) as error:
            raise UserError(
                f"the argument {argument.arg} of {where} cannot become a flag ({error}); expected a plain type such as "
                "float, or one of moco_tf.config.types, and a literal default"
            ) from None


def _helps(docstring: str) -> dict[str, str]:
    """{argument: text} of a docstring's Args section."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", docstring, re.MULTILINE)
    found, last = {}, ""
    for line in section.group(1).splitlines() if section else []:
        entry = re.match(r" {4}(\**\w+(?:, \**\w+)*): (.*)", line)
        if entry:
            last = entry.group(1)
            found[last] = entry.group(2)
        elif last and line.strip():
            found[last] += " " + line.strip()
    return {name: text for joined, text in found.items() for name in joined.split(", ")}
