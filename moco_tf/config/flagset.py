"""absl's flags, whose definitions may go elsewhere than to the command line's: Python reads recipes of its own."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

from absl import flags as absl_flags

_target: contextvars.ContextVar[absl_flags.FlagValues] = contextvars.ContextVar("target", default=absl_flags.FLAGS)


class _Flags:
    """absl.flags with FLAGS and DEFINE_* bound to the FlagValues at hand: absl binds the global one when imported."""

    def __getattr__(self, name: str) -> object:
        if name == "FLAGS":
            return _target.get()
        attribute = getattr(absl_flags, name)
        # A partial has no frame of its own: absl still finds the module that defines the flag.
        return functools.partial(attribute, flag_values=_target.get()) if name.startswith("DEFINE_") else attribute


flags = _Flags()


@contextlib.contextmanager
def collected() -> Iterator[absl_flags.FlagValues]:
    """A new FlagValues; what is defined in this context goes there, and absl.flags.FLAGS stays as it is."""
    values = absl_flags.FlagValues()
    token = _target.set(values)
    try:
        yield values
    finally:
        _target.reset(token)


def values_of(flagfile: str) -> dict[str, str]:
    """The flags of a flagfile's text by name, unchecked: --name is "true" and --noname is "false"."""
    found = {}
    for line in flagfile.splitlines():
        name, equals, value = line.strip().removeprefix("--").partition("=")
        if not line.strip().startswith("--"):
            continue  # a comment
        if equals:
            found[name] = value
        elif name.startswith("no"):  # absl writes booleans, and nothing else, without a value
            found[name[2:]] = "false"
        else:
            found[name] = "true"
    return found
