"""Formats of an export, found by name: each file here but base*.py is one. A format has

SUFFIX: what its file's name ends in; "" for a folder.
ANY_SIZE: whether it resizes images of any size itself, or takes them at the network's.
check(): raises UserError where what it needs is not installed.
write(subject, path): writes the encoder of a weights.load.Loaded, in float32.
outputs(path, subject, images): what the written one gives once loaded back, {what gave it: {"features": BxD and "head"
    or "projection": BxC}}; images are a list of HxWx3 uint8, all SxS for a format that does not resize.
use(subject, name): Markdown that says how to use it.
"""

import importlib
import pkgutil
from types import ModuleType

NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("base"))


def find(name: str) -> ModuleType:
    """The format of a name. It may need packages that are not always there: only now is it imported."""
    return importlib.import_module(f"{__name__}.{name}")
