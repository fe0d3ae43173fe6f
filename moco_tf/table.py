"""Prints the evaluations of a run folder as a table.

python -m moco_tf.table --workdir=runs/demo
"""

import json
import pathlib

from absl import flags

from moco_tf import options, program
from moco_tf.errors import UserError

ROWS = {"": "pre-trained", "_untrained": "untrained encoder", "_raw_pixels": "raw pixels"}
COLUMNS = {"knn": "kNN top-1", "lincls": "linear top-1"}


def define_flags() -> None:
    """Defines this program's flags."""
    options.define_workdir()


def main(o: object, flagfile: str) -> None:
    """Prints the table of --workdir."""
    if not o.workdir or not pathlib.Path(o.workdir).is_dir():
        raise UserError(f"--workdir={o.workdir or ''} is no folder; give a run folder")
    print(table(pathlib.Path(o.workdir)))


def table(workdir: pathlib.Path) -> str:
    """The run's accuracies beside its baselines', as Markdown; what was not evaluated is a dash."""
    lines = ["| features | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    for suffix, name in ROWS.items():
        cells = [_top1(workdir / f"{column}{suffix}" / "result.json") for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _top1(path: pathlib.Path) -> str:
    try:
        return f"{100 * json.loads(path.read_text())['top1']:.2f}"
    except (OSError, ValueError, KeyError, TypeError):
        return "-"


if __name__ == "__main__":
    define_flags()
    flags.adopt_module_key_flags(options)
    program.run(main)
