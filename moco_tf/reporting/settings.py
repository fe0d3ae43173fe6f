"""The flags of a run that the report needs to load its images and its encoder, from its flags.cfg."""

import math
import pathlib
import types

from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.data.views import VIEWS
from moco_tf.errors import UserError
from moco_tf.evaluation.neighbours import WEIGHTINGS
from moco_tf.options import METHODS
from moco_tf.reporting.runs import Run, read_flags


def _any(value: object) -> bool:
    return True


def _natural(value: int) -> bool:
    return value >= 0


def _areas(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


# Flags that are read here: the programs' defaults, which stand in where an older run folder lacks one, and what is
# accepted. A flags.cfg may have been edited, or come from elsewhere.
_TYPICAL = {
    "dataset": ("", _any),
    "data_dir": (None, _any),
    "holdout": (0, _natural),
    "image_size": (0, _natural),
    "normalise": ("auto", ("auto", *NORMALISATIONS).__contains__),
    "max_bad_images": (100, _natural),
    "method": ("moco", METHODS.__contains__),
    "views": ("moco_v2", VIEWS.__contains__),
    "crop_scale": (None, lambda areas: len(areas) == 2 and 0 < areas[0] <= areas[1] <= 1),
    "exact_blur": (True, _any),
    "antialias": (True, _any),
    "uniform_ratio": (False, _any),
    "seed": (0, lambda seed: 0 <= seed <= 2**26),
    "precision": ("auto", ("auto", "float32", "bfloat16", "float16").__contains__),
    "k": (200, lambda k: k >= 1),
    "knn_temperature": (0.1, lambda temperature: 1e-6 <= temperature < math.inf),
    "weighting": ("weighted", WEIGHTINGS.__contains__),
    "test_resize": (0, _natural),
}
_KINDS = {"data_dir": str, "crop_scale": _areas}
_KINDS |= dict.fromkeys(("exact_blur", "antialias", "uniform_ratio"), lambda text: text.lower() == "true")


class Settings(types.SimpleNamespace):
    """A run's flags as attributes; one that the run folder does not have is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def settings(run: Run, data_dir: str | None) -> Settings:
    """The run's flags, those that matter here checked and in their types; data_dir replaces the run's own.

    Raises:
        UserError: the run folder has no flags, or broken ones.
    """
    path = run.folder / "flags.cfg"
    if "dataset" not in run.flags:
        raise UserError(f"{path} names no --dataset: the run's images are not known")
    switches = {name: text == "true" for name, text in run.flags.items() if text in ("true", "false")}
    values = switches | {name: _typed(name, run.flags.get(name), path) for name in _TYPICAL}
    return Settings(**values | {"data_dir": data_dir or values["data_dir"], "workdir": run.folder})


def protocol(o: Settings, run: Run, data_dir: str | None) -> Settings:
    """The same for evaluation: as `moco_tf.knn` evaluated the run, where it did."""
    path = run.folder / "knn" / "flags.cfg"
    own = read_flags(path)
    for name in {"k", "knn_temperature"} & own.keys():
        own[name] = own[name].split(",")[0]  # of several values the first counts
    names = ("dataset", "data_dir", "holdout", "k", "knn_temperature", "weighting", "test_resize", "image_size")
    values = {name: _typed(name, own[name], path) for name in names if name in own}
    values = vars(o) | {"image_size": 0} | values
    return Settings(**values | {"data_dir": data_dir or values["data_dir"]})


def _typed(name: str, text: str | None, path: pathlib.Path) -> object:
    """A flag's value, the program's default where there is none; what the program would refuse is refused."""
    default, accepts = _TYPICAL[name]
    if not text:
        return default
    try:
        value = _KINDS.get(name, type(default))(text)
        if accepts(value):
            return value
    except ValueError:
        pass
    raise UserError(f"{path} has --{name}={text}, which the program that writes it would refuse; mend it")
