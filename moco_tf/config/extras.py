"""Packages that only some programs need: the extras of setup.py."""

import importlib

from moco_tf.errors import UserError

REPORT = ("matplotlib", "jinja2", "sklearn", "scipy")


def need(what: str, packages: tuple[str, ...], extra: str, instead: str = "") -> None:
    """Checks that packages can be imported.

    Args:
        what: the program or flag that needs them.
        packages: names of modules.
        extra: the extra of setup.py that brings them.
        instead: what else helps, for the end of the message.

    Raises:
        UserError: one of them cannot be imported; says which extra to install.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # not only ImportError: one that was built for another NumPy raises anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"{what} needs {', '.join(packages)}, and {package} cannot be imported ({reason}); install "
                f"{'it' if len(packages) == 1 else 'them'}: pip install 'moco_tf[{extra}]'{instead}"
            ) from None
