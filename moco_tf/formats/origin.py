"""Which images a run was trained on: what its evaluations and exports take where nothing else is said."""

import dataclasses
import pathlib

from absl import flags

from moco_tf.config import define
from moco_tf.config.options import DataOptions, ViewOptions
from moco_tf.errors import UserError
from moco_tf.formats.load import find
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint

NAMES = ("dataset", "data_dir", "holdout")


@dataclasses.dataclass(frozen=True)
class _Images:
    data: DataOptions = DataOptions()


@dataclasses.dataclass(frozen=True)
class _Views:
    views: ViewOptions = ViewOptions()


def trained_on(load: str) -> DataOptions | None:
    """The images of the run that --load is, or is a checkpoint of; None where nothing says it.

    Raises:
        UserError: the run's flags.cfg has values that are refused.
    """
    place = pathlib.Path(load)
    folder = RunFolder.around(place)
    texts = define.texts_of(folder.flags)
    if "dataset" not in texts:
        places = [place, *reversed(checkpoint.existing(folder.checkpoints))]
        texts = {**next(filter(None, map(_of_checkpoint, places)), {}), **texts}
    if "dataset" not in texts:
        return None
    try:
        return define.parse(_Images, ["", *(f"--{name}={texts[name]}" for name in NAMES if name in texts)]).data
    except flags.Error as error:
        raise UserError(f"{folder.flags} has {str(error).removeprefix('flag ')}; mend it") from None


def views_of(load: str | None) -> ViewOptions:
    """The random views of the run that --load is, or is a checkpoint of; the default where nothing says them.

    Raises:
        UserError: the run's flags.cfg has values that are refused.
    """
    folder = RunFolder.around(pathlib.Path(load or ""))
    texts = define.texts_of(folder.flags)
    names = [field.name for field in dataclasses.fields(ViewOptions) if field.name in texts]
    try:
        return define.parse(_Views, ["", *(f"--{name}={texts[name]}" for name in names)]).views
    except flags.Error as error:
        raise UserError(f"{folder.flags} has {str(error).removeprefix('flag ')}; mend it") from None


def _of_checkpoint(place: pathlib.Path) -> dict[str, str]:
    """The flags that checkpoint.json holds, as text by name."""
    if not (place / checkpoint.DESCRIPTION).is_file():
        return {}
    about = checkpoint.describe(place)
    found = {"dataset": about.get("dataset"), **about.get("flags", {})}
    return {name: define.shown(value) for name, value in found.items() if value is not None}


def completed(data: DataOptions, load: str | None) -> DataOptions:
    """The options with data set, place and held-out images of the run that is loaded, where they say nothing.

    Args:
        data: as given; of another data set or place, the run's place and held-out images do not count.
        load: what is loaded.

    Raises:
        UserError: neither they nor a run says which data set.
    """
    own = trained_on(load) if load else None
    if not (data.dataset or own):
        if load and not pathlib.Path(load).exists():
            find(load)
        raise UserError(
            f"--dataset is missing, and --load={load or ''} does not say which images it was trained on; give it, and "
            "--data_dir where the set needs one"
        )
    if own is None or data.dataset not in ("", own.dataset):
        return dataclasses.replace(data, holdout=data.holdout or 0)
    same_place = data.data_dir in (None, own.data_dir)  # another one holds other images, none of them held out
    holdout = data.holdout if data.holdout is not None else own.holdout if same_place else 0
    return dataclasses.replace(data, dataset=own.dataset, data_dir=data.data_dir or own.data_dir, holdout=holdout)
