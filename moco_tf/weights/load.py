"""`--load`: an encoder from whatever holds one."""

import dataclasses
import inspect
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.errors import UserError
from moco_tf.networks import backbone
from moco_tf.networks.encoder import Encoder
from moco_tf.training import checkpoint
from moco_tf.weights import foreign
from moco_tf.weights.architecture import Architecture, describe
from moco_tf.weights.torchvision import set_weights, to_torch_layout

SOURCES = "a run folder, a checkpoint's folder, or a .pth.tar, .pth, .npz, .keras or Detectron2 .pkl file"
EXPECTED = f"expected {SOURCES}"
MAX_DESCRIPTION_BYTES = 16 * 2**20
MAX_IMAGE_SIZE = 16384


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An encoder and what is known about it.

    mean and std are what its images were normalised with; image_size is the side of its views, 0 when unknown.
    """

    encoder: Encoder
    path: str
    source: str
    step: int | None
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(path: str, dtype: str = "float32", untrained: bool = False) -> Loaded:
    """Loads an encoder from a run folder, one of its checkpoints, or a file of another program.

    Args:
        path: a run folder (its newest whole checkpoint is used), a checkpoint's folder, an official MoCo .pth.tar, a
            torchvision-named .pth, a moco.tensorflow .npz, a .keras or a Detectron2 .pkl as moco_tf.export writes them.
        dtype: Keras' dtype policy of the encoder.
        untrained: keeps the fresh initialisation of the same architecture.

    Raises:
        UserError: nothing there, no encoder in it, or it is damaged.
    """
    place = find(path)
    if place.is_dir():
        return _from_checkpoint(place, dtype, untrained)
    return _from_foreign(place, dtype, untrained)


def find(path: str) -> pathlib.Path:
    """The checkpoint's folder (a run folder's newest whole one, checked) or the file that --load means.

    Raises:
        UserError: nothing there, or a folder without a whole checkpoint.
    """
    place = pathlib.Path(path)
    try:
        if not place.exists():
            raise UserError(f"--load={path} does not exist; {EXPECTED}")
        if place.is_dir():
            return _checkpoint_in(place)
        with place.open("rb"):
            return place
    except OSError as error:
        raise UserError(f"--load={path} cannot be read ({error.strerror}); {EXPECTED}") from None


def _checkpoint_in(folder: pathlib.Path) -> pathlib.Path:
    for file in (folder / checkpoint.DESCRIPTION, *folder.glob(f"checkpoints/*/{checkpoint.DESCRIPTION}")):
        if file.is_file() and file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise UserError(
                f"{file} has {file.stat().st_size:,} bytes, expected a few thousand; remove that checkpoint"
            )
    if (folder / checkpoint.DESCRIPTION).is_file():
        checkpoint.check(folder)
        return folder
    if (folder / "saved_model.pb").is_file():
        raise UserError(f"--load={folder} is a SavedModel, which tf.saved_model.load opens; {EXPECTED}")
    newest, complaints = checkpoint.newest_sound(folder / "checkpoints")
    if newest is None:
        raise UserError(f"--load={folder} holds no encoder{'; ' + complaints[0] if complaints else ''}; {EXPECTED}")
    return newest


def _from_checkpoint(path: pathlib.Path, dtype: str, untrained: bool) -> Loaded:
    values = query_encoder(path)
    about = described(path, values)
    encoder = Encoder(**about["encoder"], dtype=dtype)
    if not untrained:
        try:
            set_weights(encoder, {name: to_torch_layout(value) for name, value in values.items()})
        except UserError as error:
            raise UserError(f"checkpoint {path}: {error}") from None
    mean, std = tuple(about["mean"]), tuple(about["std"])
    return Loaded(encoder, str(path), "moco_tf checkpoint", about["step"], about["image_size"], mean, std)


def query_encoder(path: pathlib.Path) -> dict[str, np.ndarray]:
    """A checkpoint's query encoder by torchvision's names, in Keras layout. Raises UserError when it is damaged."""
    try:
        return checkpoint.read_group(path, "query_encoder")
    except (ValueError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {path} cannot be read ({reason}); give an undamaged one") from None


def described(path: pathlib.Path, values: dict[str, np.ndarray]) -> dict:
    """What a checkpoint's description says, compared with its query encoder's values.

    A network as large as the description says is only built when the weights are there.

    Raises:
        UserError: it describes no encoder, or another one.
    """
    about = checkpoint.describe(path)
    try:
        _check_encoder(about["encoder"], describe({name: to_torch_layout(value) for name, value in values.items()}))
        check_numbers(about["mean"], about["std"], about["image_size"])
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"checkpoint {path}: {checkpoint.DESCRIPTION} describes no encoder ({error})") from None
    return about


def _check_encoder(config: dict, found: Architecture) -> None:
    unknown = set(config) - set(inspect.signature(Encoder).parameters) - set(backbone.options(config["arch"]))
    if unknown or not (type(config["bn_splits"]) is int and config["bn_splits"] > 0):
        raise ValueError(f"{', '.join(sorted(unknown)) or 'bn_splits'} cannot be used")
    wanted = {name: getattr(found, name) for name in ("arch", "width", "stem", "head")}
    if found.head != "none":
        wanted |= {"feature_dim": found.feature_dim}
    if found.hidden_dim and config["hidden_dim"] != 0:  # 0 is the width of the pooled features
        wanted |= {"hidden_dim": found.hidden_dim}
    for name, value in wanted.items():
        if config[name] != value:
            raise UserError(f"{name} is {config[name]} by its description and {value} by its weights; it is damaged")


def check_numbers(mean: Sequence[float], std: Sequence[float], image_size: int) -> None:
    """Refuses a normalisation or an image size that cannot be. Raises UserError or TypeError."""
    sound = len(mean) == len(std) == 3 and np.isfinite([*mean, *std]).all() and min(std) > 0
    if not sound or type(image_size) is not int or not 0 <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"mean {mean}, std {std} and image_size {image_size} came, expected three numbers each, std above 0, and a "
            f"side of at most {MAX_IMAGE_SIZE} pixels; give an undamaged file"
        )


def _from_foreign(path: pathlib.Path, dtype: str, untrained: bool) -> Loaded:
    state = foreign.read_state(path)
    try:
        found = describe(state.encoder)
        encoder = Encoder(
            found.arch,
            stem=found.stem,
            width=found.width,
            head=found.head,
            feature_dim=found.feature_dim,
            hidden_dim=found.hidden_dim,
            dtype=dtype,
        )
        if not untrained:
            set_weights(encoder, state.encoder)
        known = {"mean": NORMALISATIONS["imagenet"][0], "std": NORMALISATIONS["imagenet"][1], "image_size": 0}
        known |= {name: value for name, value in state.about.items() if value is not None}
        check_numbers(known["mean"], known["std"], known["image_size"])
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
    step, mean, std = known.get("step"), tuple(known["mean"]), tuple(known["std"])
    return Loaded(encoder, str(path), state.source, step, known["image_size"], mean, std)
