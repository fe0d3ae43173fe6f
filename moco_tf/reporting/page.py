"""The page itself: a template, a style sheet and a script, all inside one file that asks for nothing else."""

import os
import pathlib
from importlib import resources

import jinja2
from markupsafe import Markup

from moco_tf.errors import UserError
from moco_tf.reporting import curves


def render(**sections: object) -> str:
    """The page as text. The template escapes whatever came from outside."""
    files = resources.files(__package__)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters["svg"] = Markup  # of matplotlib, which escapes its text
    environment.filters["shown"] = curves.shown
    own = {name: Markup((files / f"page.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}  # noqa: S704 - files of the package
    template = environment.from_string((files / "page.html").read_text(encoding="utf-8"))
    return template.render(**own, **sections)


def write(path: pathlib.Path, text: str) -> None:
    """Writes the page, whole or not at all. Raises UserError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", errors="replace")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}); give another --output") from None
