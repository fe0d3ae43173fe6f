"""What every program does around its main function: flags, one-line errors, exit status, going on in elastic jobs.

Flags are parsed before TensorFlow is imported: --help and a typing error cost no time.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from absl import app, flags

from moco_tf.config import define, recipes, usage
from moco_tf.errors import FirstRankError, RankError, UserError
from moco_tf.run import defaults
from moco_tf.run.folder import RunFolder
from moco_tf.training import compiled, cuda, launcher

# What needs less memory, of the flags that a program has.
_SMALLER = ("batch_size", "accumulate", "recompute", "precision", "image_size", "queue_size")
_MOMENT = 5  # seconds in which a launcher that saw a rank end has ended the others
_PATIENCE = 30  # seconds that rank 0 may need more than another rank until it meets the same error
_INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it

# What TensorFlow says on every machine when it is loaded, and on those without an NVIDIA driver.
_LOADING = r"^WARNING: All log messages before absl::InitializeLog|^[IW][0-9]{4} "
_NO_GPU = "|failed call to cuInit"
# And on processors without AVX-512, at the first step: no error, another kernel computes it.
_NO_AVX512 = "|oneDNN supports DT_U?INT[0-9]+ only on platforms with AVX-512"
# And when it reads compiled code that was kept: it tries text first.
_KEPT_CODE = "|Error parsing text-format tensorflow.XlaSerializedCacheEntry"

# What libjpeg writes of damaged files while it reads them, besides its error; unreadable.txt names those.
_OF_JPEG = (
    "^(Corrupt JPEG data|Premature end of JPEG|Input file read error|Improper call to JPEG|Inconsistent progression|"
    "Invalid (JPEG|SOS|component|progressive|scan|crop)|Unsupported (JPEG|marker)|Not a JPEG|Bogus |Empty (input|JPEG)|"
    "JPEG datastream|Unknown (Adobe|APP)|Warning: unknown JFIF)|jpeg_mem\\.cc"
)

Options = TypeVar("Options")


def run(main: Callable[[Options], None], options: type[Options]) -> None:
    """Parses the flags, calls main(options) and turns errors that a user can mend into one line.

    The exit status is 1 after a UserError, a file that cannot be read or written and memory that is not enough; 2 after
    a flag that does not parse; 130 after Ctrl-C; 75 after another request to stop (see training/stop.py). Of several
    ranks the first one speaks, unless an error is another rank's own. Where another rank fails, this one ends with
    status 1; in an elastic job it calls main again.

    Args:
        main: the program.
        options: its options, a dataclass of moco_tf.config.options.
    """
    name = "moco_tf." + os.path.splitext(os.path.basename(sys.argv[0]))[0]
    sys.argv[0] = name  # what --help calls the program

    def parse(argv: list[str]) -> Options:
        try:
            argv = sys.argv[:] = defaults.words(options, argv)  # what ran, for environment.json
            if asked := set(argv) & set(usage.WORDS):
                words = define.words_of(options, argv, flags.FlagValues())
                full = any("full" in word for word in asked)
                with contextlib.suppress(BrokenPipeError):  # of `--help | head`
                    print(usage.text(sys.modules[main.__module__].__doc__ or "", options, words, full), flush=True)
                os._exit(0)
            parsed = define.parse(options, argv, flags.FLAGS)
            _check_folder(parsed, argv)
            if others := define.ignored(parsed, flags.FLAGS):
                launcher.note(f"not used, as other methods or backbones have these flags: {' '.join(others)}")
            return defaults.completed(parsed)
        except (flags.Error, UserError) as error:
            _stop(name, error, 2)

    def call(parsed: Options) -> None:
        try:
            _call(name, main, parsed)
        except KeyboardInterrupt:
            _stop(name, "interrupted", _INTERRUPTED)

    app.run(call, flags_parser=parse)


def _check_folder(options: Any, argv: Sequence[str]) -> None:
    """Refuses the flags.cfg of a copied or moved run: it names the folder where it was written."""
    words = recipes.with_paths(argv[1:], define.programs(type(options)))
    given, written = define.texts(words), define.values_of(options).get("workdir")
    file = pathlib.Path(given.get("flagfile", "")).resolve()
    own = RunFolder.of(file.parent)
    if "workdir" in given or not written or file != own.flags or not own.checkpoints.is_dir():
        return
    if own.path != pathlib.Path(str(written)).resolve():
        raise flags.Error(
            f"{own.flags} names another folder, --workdir={written}, as it was copied or moved; give "
            f"--workdir={own.path} to go on there, or --workdir={written}"
        )


def _call(name: str, main: Callable[[Options], None], options: Options) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors; a user's own setting stands
    compiled.start(bool(define.values_of(options).get("deterministic")))
    with _without(_LOADING + ("" if cuda.DRIVER.exists() else _NO_GPU)):
        import tensorflow as tf

        tf.config.list_physical_devices()
    from absl import logging

    from moco_tf.data import records
    from moco_tf.training import elastic, stop

    logging.set_verbosity(logging.WARNING)
    stop.Signals.in_program = True
    try:
        with _without(_OF_JPEG + _NO_AVX512 + _KEPT_CODE):
            elastic.run(lambda: main(options), int(str(define.values_of(options).get("threads", 0))))
        for line in records.left_out():
            print(line, flush=True)
    except compiled.UnusableCode as error:
        _begin_anew(name, error)
    except UserError as error:
        _stop(name, error, 1)
    except stop.Stopped as stopped:
        _stop(name, stopped, stopped.status)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        _stop(name, RankError(out_of_memory(error, options)), 1)
    except OSError as error:
        if error.filename is None:
            _unforeseen(name, error)
        _stop(name, RankError(f"{error.filename}: {error.strerror}; mend the disk or give another path"), 1)
    except Exception as error:
        _unforeseen(name, error)


@contextlib.contextmanager
def _without(lines: str) -> Iterator[None]:
    """Takes lines out of what C libraries write to stderr; errors pass, also those that end the process.

    What Python writes there goes past it: it must not be late, or lost when the process ends.

    Args:
        lines: an extended regular expression.
    """
    grep = shutil.which("grep")
    if not grep or sys.stderr is None:  # None: the user has closed it
        yield
        return
    command = [grep, "--line-buffered", "-avE", lines]
    # In a session of its own: Ctrl-C would end it before the program that it serves.
    passing = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
    assert passing.stdin is not None
    before, python = os.dup(2), sys.stderr
    with contextlib.suppress(OSError, AttributeError):  # not where stderr is no file
        if python.fileno() == 2:
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(passing.stdin.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr = python
        os.dup2(before, 2)
        os.close(before)
        passing.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process that TensorFlow has started may hold the pipe
            passing.wait(timeout=2)


def out_of_memory(error: Exception, options: Any) -> str:
    """Which flags help, with their values."""
    what = str(error).strip().split("\n")[0].split("} ")[-1][:160]
    values = define.values_of(options)
    shown = ", ".join(f"--{name}={values[name]}" for name in _SMALLER if name in values)
    return f"the memory is not enough ({what or 'allocation failed'}); change what needs less of it, of {shown}"


def _stop(name: str, error: BaseException | str, status: int) -> NoReturn:
    _close_logs()
    if not isinstance(error, RankError) and not launcher.is_first_rank():
        if not isinstance(error, UserError) or not _met_alone(error):
            _exit(status)
        error = f"{_this_rank()}: {error}"
    _say(name, error)
    _exit(status)


def _begin_anew(name: str, error: UserError) -> NoReturn:
    """Starts the same command in this process, where that ends no other rank's job."""
    if launcher.of_several_ranks():
        _stop(name, RankError(error), 1)
    _close_logs()
    _say(name, f"{error}: done")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell


def _met_alone(error: UserError) -> bool:
    """Whether rank 0, which says what all ranks meet, does not end though it had the time to."""
    from moco_tf.training import collectives

    if isinstance(error, FirstRankError) or collectives.first_rank_ends(_PATIENCE):
        _wait_for_the_end()
        return False
    return True


def _unforeseen(name: str, error: Exception) -> None:
    """Raises the error in a single process; ends one of several ranks, of which another may have failed."""
    from moco_tf.training import collectives

    if not launcher.of_several_ranks():
        raise error
    _close_logs()
    if not collectives.is_rank_failure(error):
        what = "".join(traceback.format_exception_only(error)).strip()
        _say(name, f"{_this_rank()} failed: {what}\n{''.join(traceback.format_exception(error))}", one_line=False)
        _exit(1)
    if launcher.is_first_rank():
        _say(
            name,
            "another rank ended, hangs or cannot be reached, so the job stops; the launcher names the rank that ended "
            f"first. The same command goes on from the newest checkpoint ({_reason(error)})",
        )
    _wait_for_the_end()  # were this rank quicker than the launcher's look at the failed one, it would be blamed
    _exit(1)


def _close_logs() -> None:
    """Finishes the logs of a program that stops early, where there can be any."""
    if "moco_tf.training.runlog" in sys.modules:
        sys.modules["moco_tf.training.runlog"].close_all()


def _reason(error: Exception) -> str:
    """What Horovod's transport said, without source files and TensorFlow's way to the node."""
    lines = [line.strip() for line in str(error).splitlines() if "orovod" in line]
    lines = [line for line in lines if not line.startswith(("Detected at node", 'File "'))]
    return (lines or [type(error).__name__])[0].rpartition("}} ")[2].rpartition("] ")[2][:200]


def _this_rank() -> str:
    return f"rank {os.environ.get('HOROVOD_RANK', '?')} on {socket.gethostname()}"


def _wait_for_the_end() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_MOMENT)


def _say(name: str, message: BaseException | str, one_line: bool = True) -> None:
    message = " ".join(str(message).split()) if one_line else message
    if sys.stderr is None:  # closed by the user
        return
    sys.stderr.write(f"{name}: {message}\n")  # in one piece: a launcher passes pieces on as lines of their own
    sys.stderr.flush()


def _exit(status: int) -> NoReturn:
    # Not sys.exit: Horovod's threads and tf.data's would have to be unwound, and one that waits for a rank that is
    # gone never ends. Everything that matters is written by now.
    sys.stdout.flush()
    os._exit(status)
