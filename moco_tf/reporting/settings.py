"""The flags of a run that the report needs to load its images and its encoder, from its flags.cfg.

They are parsed and checked as the programs do it: a flags.cfg may have been edited, or come from elsewhere. Flags that
it lacks have the programs' defaults; those of other parts of a program are passed over.
"""

import dataclasses
from typing import Any

from absl import flags

from moco_tf.config import define
from moco_tf.config.options import Knn, Pretrain
from moco_tf.data.views import recipes
from moco_tf.errors import UserError
from moco_tf.run.folder import RunFolder

# How the encoder is evaluated where moco_tf.knn did it; the rest is as it was trained.
_PROTOCOL = ("dataset", "data_dir", "holdout", "k", "knn_temperature", "weighting", "test_resize", "image_size")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run was trained, and how its encoder is evaluated."""

    trained: Pretrain
    evaluated: Knn


def settings(folder: RunFolder, data_dir: str | None) -> Settings:
    """The run's options; data_dir replaces the run's own.

    Raises:
        UserError: the run folder has no flags, or broken ones.
    """
    texts = define.texts_of(folder.flags)
    if "dataset" not in texts:
        raise UserError(f"{folder.flags} names no --dataset: the run's images are not known")
    trained = _parsed(Pretrain, folder, [])
    try:
        recipes.find(trained.views.views)
    except UserError as error:
        raise UserError(f"{folder.flags}: {error}; mend it") from None
    own = {name: value for name, value in define.values_of(trained).items() if name in _PROTOCOL}
    evaluated = define.replaced(Knn(), **(own | {"image_size": 0, "test_resize": 0}))
    results = folder.results("knn")
    given = define.texts_of(results.flags)
    found = define.values_of(_parsed(Knn, results, [])) if given else {}
    evaluated = define.replaced(evaluated, **{name: found[name] for name in _PROTOCOL if name in given})
    return Settings(_at(trained, data_dir), _at(evaluated, data_dir))


def _at(options: Any, data_dir: str | None) -> Any:
    return define.replaced(options, data_dir=data_dir) if data_dir else options


def _parsed(program: Any, folder: RunFolder, more: list[str]) -> Any:
    try:
        return define.parse(program, ["", f"--flagfile={folder.flags}", *more])
    except flags.Error as error:
        raise UserError(f"{folder.flags} has {str(error).removeprefix('flag ')}; mend it") from None
