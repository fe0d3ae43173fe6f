"""Prints what a file or folder holds: architecture, head, queue, step and more.

    python -m moco_tf.show --load=runs/v2
    python -m moco_tf.show --load=moco_v2_800ep_pretrain.pth.tar --json

Nothing is written, and no weight is computed with.
"""

import json
from typing import Any

from moco_tf.config.options import Show
from moco_tf.errors import UserError
from moco_tf.run import program
from moco_tf.training import launcher


def main(options: Show) -> None:
    """Prints what --load holds."""
    from moco_tf.formats.contents import contents
    from moco_tf.formats.load import SOURCES

    if not launcher.is_first_rank():
        return
    path = options.encoder.load
    if not path:
        raise UserError(f"--load is missing; give {SOURCES}")
    found = contents(path)
    print(json.dumps(found, indent=1) if options.show.json else table(found), flush=True)


def table(found: dict[str, Any]) -> str:
    """What is known, a line each."""
    rows = [
        (name.replace("_", " "), _shown(name, value)) for name, value in found.items() if value not in (None, [], {})
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {text}".rstrip() for name, text in rows)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "queue":
        return f"{value['size']} keys of {value['dim']} numbers, next row {value['pointer']}"
    if name == "bank":
        return f"{value['size']} rows of {value['dim']} numbers"
    if name == "normalisation":
        from moco_tf.data.normalisation import NORMALISATIONS

        mean, std = (", ".join(f"{number:.4g}" for number in value[part]) for part in ("mean", "std"))
        known = next((key for key, pair in NORMALISATIONS.items() if pair == (value["mean"], value["std"])), None)
        return f"mean {mean}, deviation {std}{f' ({known})' if known else ''}"
    if name == "flags":
        return " ".join(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if name == "parameters" else str(value)


if __name__ == "__main__":
    program.run(main, Show)
