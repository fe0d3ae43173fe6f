"""What every program does around its main function: flags, one-line errors, exit status."""

import os
import sys
from collections.abc import Callable

import tensorflow as tf
from absl import app, flags, logging

from moco_tf import options
from moco_tf.errors import RankError, UserError
from moco_tf.training import runlog
from moco_tf.training.stop import INTERRUPTED, Stopped

# What needs less memory, of the flags that a program has.
_SMALLER = ("batch_size", "accumulate", "recompute", "precision", "image_size", "queue_size")


def run(main: Callable[[object, str], None]) -> None:
    """Parses the flags, calls main(options, flagfile text) and turns errors that a user can mend into one line.

    The exit status is 1 after a UserError, a file that cannot be read or written and memory that is not enough; 2 after
    a flag that does not parse; 130 after Ctrl-C; 75 after another request to stop (see training/stop.py). Of several
    ranks the first one speaks, unless an error is another rank's own.
    """
    name = "moco_tf." + os.path.splitext(os.path.basename(sys.argv[0]))[0]

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv, known_only=False)
            if rest[1:]:
                raise flags.Error(f"{rest[1]!r} is no flag; flags look like --name=value")
            return [argv[0], options.parsed(flags.FLAGS)]
        except flags.Error as error:
            _stop(name, error, 2)

    def call(argv: list) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            main(argv[1], options.flagfile(flags.FLAGS))
        except UserError as error:
            _stop(name, error, 1)
        except Stopped as stop:
            _stop(name, stop, stop.status)
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            _stop(name, RankError(out_of_memory(error, argv[1])), 1)
        except OSError as error:
            if error.filename is None:
                raise
            _stop(name, RankError(f"{error.filename}: {error.strerror}; mend the disk or give another path"), 1)
        except KeyboardInterrupt:
            _stop(name, "interrupted", INTERRUPTED)

    app.run(call, flags_parser=parse)


def out_of_memory(error: Exception, o: object) -> str:
    """Which flags help, with their values."""
    what = str(error).strip().split("\n")[0].split("} ")[-1][:160]
    shown = ", ".join(f"--{name}={getattr(o, name)}" for name in _SMALLER if hasattr(o, name))
    return f"the memory is not enough ({what or 'allocation failed'}); change what needs less of it, of {shown}"


def _stop(name: str, error: object, status: int) -> None:
    runlog.close_all()
    if isinstance(error, RankError) or int(os.environ.get("HOROVOD_RANK", "0")) == 0:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    # Not sys.exit: Horovod's threads and tf.data's would have to be unwound, and one that waits for a rank that is
    # gone never ends. Everything that matters is written by now.
    sys.stdout.flush()
    os._exit(status)
