"""Formats of an export, found by name: a format is a file here that begins with SUFFIX, ANY_SIZE and has

SUFFIX: what its file's name ends in; "" for a folder.
ANY_SIZE: whether it resizes images of any size itself, or takes them at the network's size.
write(subject, path): writes the encoder of a `base.Loaded` in float32. Raises base.UnfitEncoder if it cannot hold it,
    or if a package that it needs is not installed.
outputs(path, subject, images): loads what was written and returns what it gives: {where from: {"features": BxD, and
    "head" or "projection": BxC}}; images are a list of HxWx3 uint8, all SxS for a format that does not resize.
use(subject, name): Markdown that says how to use it.
"""

import importlib
import pathlib
from types import ModuleType

from moco_tf.config.find import listed
from moco_tf.errors import UserError

_FILES = pathlib.Path(__file__).parent.glob("*.py")
NAMES = sorted(path.stem for path in _FILES if "\nSUFFIX, " in path.read_text(encoding="utf-8"))


def find(name: str) -> ModuleType:
    """The format of a name. It may need packages that are not installed, so it is imported only here.

    Raises:
        UserError: there is no such format; says what there is and what is close.
    """
    if name not in NAMES:
        raise UserError(f"--format={name} came, expected {listed(name, [*NAMES, 'all'])}")
    return importlib.import_module(f"{__name__}.{name}")
