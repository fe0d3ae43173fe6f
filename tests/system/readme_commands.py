"""The commands of README.md and docs/, as they stand there."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]


def of_programs(mention: str) -> list[list[str]]:
    """The words of every `python -m moco_tf...` in their code blocks that mentions something.

    Flags in a command's comment ("or --format=all") make a second command: flags of the same name, given later, count.
    """
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    python -m moco_tf.") and mention in line]
    commands = []
    for line in lines:
        command, _, comment = line.partition(" #")
        commands.append(shlex.split(command))
        instead = re.findall(r"--[\w=./]+", comment)
        if instead:
            commands.append(commands[-1] + instead)
    return commands
