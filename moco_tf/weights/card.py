"""The card beside an export, in Markdown: what the encoder is, how it was trained, how to use it."""

import json
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf

from moco_tf import __version__
from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.networks.encoder import Encoder
from moco_tf.training import checkpoint
from moco_tf.weights import savedmodel
from moco_tf.weights.load import Loaded

_MARK = "<!-- written by moco_tf.export -->"  # the first line of a card

_USE = {
    "savedmodel": """\
    encoder = tf.saved_model.load("{name}")  # needs TensorFlow only
    features = encoder.embed(images)  # uint8 BxHxWx3 of any size -> Bx{D} float32
    tuned = encoder.features(encoder.prepare(images), training=True)  # to learn encoder.trainable_variables

| signature | in | out |
|---|---|---|
| serving_default | image_bytes: B JPEG or PNG files | features: Bx{D} |
| embed | images: uint8 BxHxWx3 | features: Bx{D} |
""",
    "pth": """\
    python -m moco_tf.knn --load={name} --image_size={size}{normalise}

    state = torch.load("{name}", weights_only=True)  # torchvision's names; the head's begin with fc
""",
}
_TORCHVISION = """\
    network = torchvision.models.{arch}()
    network.fc = torch.nn.Identity()  # Bx{D} comes out
    network.load_state_dict({{name: value for name, value in state.items() if not name.startswith("fc.")}})
"""
_PROJECT = "| project | images: uint8 BxHxWx3 | projection: Bx{C}, of length one, as the contrastive loss compares |\n"


def place(kind: str, export: pathlib.Path) -> pathlib.Path:
    """Where the card of an export stands: in the folder of a "savedmodel", beside the file of a "pth"."""
    return export / savedmodel.CARD if kind == "savedmodel" else export.with_suffix(".md")


def is_card(path: pathlib.Path) -> bool:
    """Whether a file is a card of an export: what it describes may be replaced. Raises OSError."""
    return path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(_MARK)


def text(kind: str, subject: Loaded, name: str) -> str:
    """What the card says. What is not known is left out.

    Args:
        kind: "savedmodel" or "pth".
        subject: the encoder, with the image size and normalisation that it is used with.
        name: of the folder or file that is exported.
    """
    size = subject.image_size
    rows = {"source": f"{subject.path} ({subject.source}{f', step {subject.step}' if subject.step else ''})"}
    rows |= _training(subject) | _architecture(subject.encoder)
    rows["input"] = (
        f"RGB, {size} x {size}; other sizes are resized (short side to {round(size * 256 / 224)}, antialiased) and "
        "centre-cropped"
    )
    rows["normalisation"] = f"of RGB in [0, 1]: mean {_numbers(subject.mean)}, deviation {_numbers(subject.std)}"
    rows["written by"] = f"moco_tf {__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}"
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    return f"{_MARK}\n# {name}: an image encoder\n\n| | |\n|---|---|\n{table}\n## Use\n\n{_use(kind, subject, name)}"


def _use(kind: str, subject: Loaded, name: str) -> str:
    config, template = subject.encoder.config, _USE[kind]
    if kind == "savedmodel":
        template += _PROJECT if config["head"] != "none" else ""
    elif (config["stem"], config["width"]) == ("imagenet", 64) and config["arch"] != "resnet10":
        template += _TORCHVISION  # torchvision has this network
    given = subject.mean, subject.std
    return template.format(
        name=name,
        arch=config["arch"],
        size=subject.image_size,
        normalise=next((f" --normalise={key}" for key, known in NORMALISATIONS.items() if known == given), ""),
        D=subject.encoder.backbone.features,
        C=config["feature_dim"],
    )


def _architecture(encoder: Encoder) -> dict[str, str]:
    config, pooled = encoder.config, encoder.backbone.features
    rows = {"architecture": f"{config['arch']}, {config['stem']} stem, width {config['width']}"}
    rows["parameters"] = f"{sum(int(np.prod(v.shape)) for v in encoder.parameters()):,}, float32"
    rows["pooled features"] = f"D = {pooled}"
    if config["head"] != "none":
        hidden = "" if config["head"] == "linear" else f", hidden width {config['hidden_dim'] or pooled}"
        rows["head"] = f"{config['head']}{hidden}, C = {config['feature_dim']}"
    if config["bn_splits"] > 1:
        rows["batch norm"] = f"in {config['bn_splits']} splits: a training batch must be a multiple of it"
    return rows


def _training(subject: Loaded) -> dict[str, str]:
    """What the run folder knows: how it was trained and what was measured on this very checkpoint."""
    path = pathlib.Path(subject.path)
    if not (path / checkpoint.DESCRIPTION).is_file():
        return {}
    about = checkpoint.describe(path)
    names = {"method": "method", "dataset": "data set", "batch_size": "batch", "ranks": "ranks"}
    rows = {title: about[name] for name, title in names.items() if name in about}
    for evaluation, title in (("knn", "kNN top-1"), ("lincls", "linear top-1")):
        try:
            result = json.loads((path.parent.parent / evaluation / "result.json").read_text())
            if os.path.realpath(result["subject"]) == os.path.realpath(path):
                rows[title] = f"{100 * result['top1']:.2f} on {result['dataset']}"
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return rows


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
