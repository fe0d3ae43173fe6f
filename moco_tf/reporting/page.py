"""The page itself: a template, a style sheet and a script, all inside one file that asks for nothing else."""

import os
import pathlib
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from moco_tf.errors import UserError
from moco_tf.reporting import charts
from moco_tf.training.files import replacing


def check_output(path: pathlib.Path) -> None:
    """Refuses a page that could not be written, before the work. Raises UserError."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"--output={path} is a folder; expected the file to write, such as {path / 'report.html'}")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{path} cannot be written: {folder} is no writable folder; give another --output")


def render(sections: dict[str, Any], template: str = "page.html") -> str:
    """The page as text. The template, a file of this folder, escapes whatever came from outside."""
    files = resources.files(__package__)
    loader = jinja2.FunctionLoader(lambda name: (files / name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=loader)
    environment.lstrip_blocks = True
    environment.filters["svg"] = Markup  # of matplotlib, which escapes its text
    environment.filters["shown"] = charts.shown
    own = {name: Markup((files / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}  # noqa: S704 - files of the package
    return environment.get_template(template).render(**own, **sections)


def write(path: pathlib.Path, text: str) -> int:
    """Writes the page, whole or not at all; returns its bytes. Raises UserError."""
    content = text.encode("utf-8", errors="replace")
    with replacing(path) as draft:
        draft.write_bytes(content)
    return len(content)
