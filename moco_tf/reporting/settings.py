"""The flags of a run that the report needs to load its images and its encoder, from its flags.cfg.

They are parsed and checked as the programs do it: a flags.cfg may have been edited, or come from elsewhere. Flags that
it lacks have the programs' defaults; those of other parts of a program are passed over.
"""

import pathlib
import types
from collections.abc import Callable, Mapping

from moco_tf.config import flagset, options
from moco_tf.data.views.recipes import VIEWS
from moco_tf.errors import UserError
from moco_tf.reporting.runs import Run, read_flags

Settings = types.SimpleNamespace
_TRAINED = (options.define_data, options.define_run, options.define_method, options.define_knn)
_EVALUATED = (options.define_data, options.define_knn, options.define_load)
# How the encoder is evaluated where moco_tf.knn did it; the rest is as it was trained.
_PROTOCOL = ("dataset", "data_dir", "holdout", "k", "knn_temperature", "weighting", "test_resize", "image_size")


def settings(run: Run, data_dir: str | None) -> Settings:
    """The run's flags, those that matter here in their types; data_dir replaces the run's own.

    Raises:
        UserError: the run folder has no flags, or broken ones.
    """
    path = run.folder / "flags.cfg"
    if "dataset" not in run.flags:
        raise UserError(f"{path} names no --dataset: the run's images are not known")
    values = _parsed(_TRAINED, run.flags, path)
    if values["views"] not in VIEWS:
        raise UserError(f"{path} has --views={values['views']}, expected one of {', '.join(VIEWS)}; mend it")
    return Settings(**values | {"data_dir": data_dir or values["data_dir"] or None, "workdir": run.folder})


def protocol(o: Settings, run: Run, data_dir: str | None) -> Settings:
    """The same for evaluation: as `moco_tf.knn` evaluated the run, where it did. Raises UserError for broken flags."""
    path = run.folder / "knn" / "flags.cfg"
    own = read_flags(path)
    evaluated = _parsed(_EVALUATED, own, path)
    values = vars(o) | {"image_size": 0, "test_resize": 0}
    values |= {name: evaluated[name] for name in _PROTOCOL if name in own}
    return Settings(**values | {"data_dir": data_dir or values["data_dir"] or None})


def _parsed(groups: tuple[Callable[[], None], ...], flags: Mapping[str, str], path: pathlib.Path) -> dict[str, object]:
    """The values of all flags of these groups."""
    with flagset.collected() as values:
        for define in groups:
            define()
    try:
        values(["", *(f"--{name}={text}" for name, text in flags.items() if name in values)])
        return vars(options.parsed(values))
    except flagset.flags.Error as error:
        raise UserError(f"{path} has {str(error).removeprefix('flag ')}; mend it") from None
