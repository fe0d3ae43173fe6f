"""The card beside an export, in Markdown: what the encoder is, how it was trained and measured, how to use it."""

import importlib.metadata
import os
import pathlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from moco_tf.config import define
from moco_tf.errors import UserError
from moco_tf.evaluation.subject import weights_of
from moco_tf.formats.base import Loaded, backbone_options
from moco_tf.networks.encoder import Encoder
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint

_MARK = "<!-- written by moco_tf.export -->"  # the first line of a card
_TITLES = {"kNN": "kNN", "lincls": "linear"}
_TRAINED = {"method": "method", "dataset": "data set", "batch_size": "batch", "ranks": "ranks"}
_PLACES = ("--workdir=", "--data_dir=", "--init=")  # of no use on another machine
_SETTINGS = ("k", "temperature", "weighting", "feature", "epochs")


def place(export: pathlib.Path, suffix: str) -> pathlib.Path:
    """Path of an export's card: in its folder (a format without a suffix), or beside its file."""
    return export.with_name(f"{export.name}.md") if suffix else export / "README.md"


def is_card(path: pathlib.Path) -> bool:
    """Whether a file is a card of an export, so that what it describes may be replaced. Raises OSError."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(_MARK)) == _MARK


def text(subject: Loaded, name: str, use: str) -> str:
    """What the card of an export of this name says, with Markdown on how to use it; what is not known is left out."""
    size, path = subject.image_size, pathlib.Path(os.path.realpath(subject.path))
    ours = (path / checkpoint.DESCRIPTION).is_file()
    about, run = checkpoint.describe(path) if ours else {}, RunFolder.around(path)
    # The run folder's name and the checkpoint's, or the file's: their place is of no use on another machine.
    rows = {"source": "/".join(path.parts[-3:]) if ours else path.name}
    rows["source"] += f" ({subject.source}{f', step {subject.step}' if subject.step else ''})"
    rows |= {title: about[name] for name, title in _TRAINED.items() if name in about}
    rows |= _architecture(subject.encoder)
    rows["input"] = (
        f"RGB, {size} x {size}; images of other sizes are resized until the short side is "
        f"{subject.resize} (antialiased), then the centre is cut out"
    )
    rows["normalisation"] = f"of RGB in [0, 1]: mean {_numbers(subject.mean)}, deviation {_numbers(subject.std)}"
    rows["written by"] = (
        f"moco_tf {_version()}, TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {np.__version__}"
    )
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    parts = [f"{_MARK}\n# {name}: an image encoder\n\n| | |\n|---|---|\n{table}", f"## Use\n\n{use}"]
    return "\n".join([*parts, *(_of_run(run, path.name, weights_of(subject.encoder)) if ours else ())])


def _version() -> str:
    try:
        return importlib.metadata.version("moco_tf")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _architecture(encoder: Encoder) -> dict[str, str]:
    config, pooled = encoder.config, encoder.backbone.features
    words = {name: f"{name.replace('_', ' ')} {value}" for name, value in backbone_options(encoder).items()}
    words |= {"arch": config["arch"], "bn_splits": ""}
    words |= {"stem": f"{config['stem']} stem"} if "stem" in config else {}
    rows = {"architecture": ", ".join(filter(None, words.values()))}
    rows["parameters"] = f"{sum(int(np.prod(v.shape)) for v in encoder.parameters()):,}, float32"
    rows["pooled features"] = f"D = {pooled}"
    if config["head"] != "none":
        hidden = "" if config["head"] == "linear" else f", hidden width {config['hidden_dim'] or pooled}"
        rows["head"] = f"{config['head']}{hidden}, C = {config['feature_dim']}"
    if config["bn_splits"] > 1:
        rows["batch norm"] = f"in {config['bn_splits']} splits, of which a training batch must be a multiple"
    return rows


def _of_run(run: RunFolder, name: str, weights: str) -> Iterator[str]:
    """The evaluations in the run folder that were made of this very checkpoint, and the run's flags."""
    if rows := "".join(_row(folder, name, weights) for folder in run.all_results()):
        yield f"## Accuracy\n\n| evaluation | data set | top-1 | top-5 | settings |\n|---|---|---|---|---|\n{rows}"
    if flags := "".join(f"    {line}\n" for line in run.flag_lines() if not line.startswith(_PLACES)):
        yield f"## Recipe\n\nFlags of `python -m moco_tf.pretrain`:\n\n{flags}"


def _row(folder: RunFolder, checkpoint_name: str, weights: str) -> str:
    """A result as a row; empty when it is another checkpoint's, or of other weights. Folders may have moved since."""
    result = folder.read_result()
    try:
        found = os.path.basename(result["subject"].rstrip("/")), result.get("weights", weights)
        if found != (checkpoint_name, weights):
            return ""
        title = _TITLES.get(result["evaluation"], result["evaluation"])
        title += "" if folder.path.name == result["evaluation"].lower() else f" ({folder.path.name})"
        top5 = f"{100 * result['top5']:.2f}" if "top5" in result else "-"
        told = {name: result[name] for name in _SETTINGS if name in result}
        # How the images were cut, if a flag said it: nobody can repeat the evaluation without that.
        flags = define.texts_of(folder.flags)
        told |= {name: flags[name] for name in ("image_size", "test_resize") if flags.get(name, "0") != "0"}
        settings = ", ".join(f"{name} {value}" for name, value in told.items())
        return f"| {title} | {result['dataset']} | {100 * result['top1']:.2f} | {top5} | {settings} |\n"
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
