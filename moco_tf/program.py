"""What every program does around its main function: flags, one-line errors, exit status."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from moco_tf import options
from moco_tf.errors import RankError, UserError
from moco_tf.training import runlog

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def run(main: Callable[[object, str], None]) -> None:
    """Parses the flags, calls main(options, flagfile text) and turns a UserError into one line and exit status 1.

    A flag that does not parse is one line and exit status 2. Of several ranks the first one speaks, unless an error is
    another rank's own.
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
        except KeyboardInterrupt:
            _stop(name, "interrupted", INTERRUPTED)

    app.run(call, flags_parser=parse)


def _stop(name: str, error: object, status: int) -> None:
    runlog.close_all()
    if isinstance(error, RankError) or int(os.environ.get("HOROVOD_RANK", "0")) == 0:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    # Not sys.exit: Horovod's threads and tf.data's would have to be unwound, and one that waits for a rank that is
    # gone never ends. Everything that matters is written by now.
    sys.stdout.flush()
    os._exit(status)
