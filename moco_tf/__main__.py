"""moco-tf PROGRAM ... is python -m moco_tf.PROGRAM ...

    moco-tf                    lists the programs
    moco-tf recipes            lists the recipes, and what each reproduces
    moco-tf pretrain --help    says what a program takes
    moco-tf --version

The programs:
"""

import contextlib
import importlib
import runpy
import sys
import textwrap
from collections.abc import Iterator, Sequence

import moco_tf
from moco_tf.config import find, recipes
from moco_tf.config.options import PROGRAMS


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the command line says; exits with 2 where there is no such program.

    Args:
        argv: a program's name and its flags; default: those of the command line.
    """
    name, *flags = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in PROGRAMS:
        sys.argv[1:] = flags[:-1]
        runpy.run_module(f"moco_tf.{name}", run_name="__main__", alter_sys=True)
    elif name in ("", "--help", "-h", "help"):
        _print([*(__doc__ or "").splitlines(), *_programs()])
    elif name == "recipes":
        _print(_recipes())
    elif name == "--version":
        _print([f"moco_tf {moco_tf.__version__}"])
    else:
        print(f"moco-tf: {name!r} is no program; expected {find.listed(name, [*PROGRAMS, 'recipes'])}", file=sys.stderr)
        sys.exit(2)


def _print(lines: Sequence[str] | Iterator[str]) -> None:
    with contextlib.suppress(BrokenPipeError):  # of `moco-tf recipes | head`
        print("\n".join(lines), flush=True)


def _programs() -> Iterator[str]:
    for name in PROGRAMS:
        about = (importlib.import_module(f"moco_tf.{name}").__doc__ or "").splitlines()[0]
        yield from textwrap.wrap(about, 80, initial_indent=f"{name:11}", subsequent_indent=" " * 11)


def _recipes() -> Iterator[str]:
    for program in PROGRAMS:
        for recipe in recipes.names([program]):
            about = recipes.find(recipe, [program]).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            yield f"{program} --flagfile={recipe}"
            yield textwrap.indent(textwrap.fill(about, 76), "    ")


if __name__ == "__main__":
    main()
