"""Prints the evaluations of one run folder, or of several, as a table.

python -m moco_tf.table --workdir=runs/demo
python -m moco_tf.table --workdir=runs/moco,runs/simclr
"""

import json
import pathlib
import types
from collections.abc import Iterable, Iterator

from moco_tf.config import define
from moco_tf.config.options import Table
from moco_tf.errors import UserError
from moco_tf.run import program

BASELINES = {"_untrained": "untrained encoder", "_raw_pixels": "raw pixels"}
COLUMNS = {"knn": "kNN top-1", "lincls": "linear top-1"}


def main(options: Table) -> None:
    """Prints the table of --workdir."""
    o = types.SimpleNamespace(**define.values_of(options))
    print(table(folders(o.workdir or [])))


def folders(names: list[str]) -> dict[str, pathlib.Path]:
    """The folders of --workdir, each under a name of its own: its last part where that is enough.

    Raises:
        UserError: there are none, or one of them is no folder.
    """
    paths = [pathlib.Path(name) for name in dict.fromkeys(names) if name.strip()]
    if not paths:
        raise UserError("--workdir is missing; give a run folder, or several: a,b,c")
    for path in paths:
        if not path.is_dir():
            raise UserError(f"--workdir={path} is no folder; give a run folder, or several: a,b,c")
    short = [path.resolve().name for path in paths]
    return dict(zip(short if len(set(short)) == len(short) else map(str, paths), paths))


def table(runs: dict[str, pathlib.Path]) -> str:
    """The runs' accuracies beside their baselines', as Markdown; what was not evaluated is a dash."""
    lines = ["| features | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows(runs)]
    return "\n".join(lines)


def rows(runs: dict[str, pathlib.Path]) -> Iterator[tuple[str, list[str]]]:
    """(name, a cell for each of COLUMNS) of every run, folders by name, and of the baselines."""
    for name, run in runs.items():
        yield "pre-trained" if len(runs) == 1 else name, [_top1([run / column]) for column in COLUMNS]
    for suffix, name in BASELINES.items():
        yield name, [_top1(run / f"{column}{suffix}" for run in runs.values()) for column in COLUMNS]


def _top1(folders: Iterable[pathlib.Path]) -> str:
    """The accuracy in the first folder that has one."""
    for folder in folders:
        try:
            return f"{100 * json.loads((folder / 'result.json').read_text())['top1']:.2f}"
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return "-"


if __name__ == "__main__":
    program.run(main, Table)
