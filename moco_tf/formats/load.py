"""`--load`: an encoder from whatever holds one."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.errors import UserError
from moco_tf.formats import foreign
from moco_tf.formats.architecture import describe
from moco_tf.formats.base import Loaded
from moco_tf.formats.foreign import Foreign
from moco_tf.formats.torchvision import check_weights, set_weights, to_torch_layout
from moco_tf.networks.encoder import Encoder
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint
from moco_tf.training.files import one_line

SOURCES = "a run folder, a checkpoint's folder, or a .pth.tar, .pth or .npz file"
EXPECTED = f"expected {SOURCES}"
MAX_DESCRIPTION_BYTES = 16 * 2**20
MAX_IMAGE_SIZE = 16384
_UNBUILDABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, tf.errors.OpError)


def load(path: str, dtype: str = "float32", untrained: bool = False) -> Loaded:
    """Loads an encoder from a run folder, one of its checkpoints, or a file of another program.

    Args:
        path: a run folder (its newest whole checkpoint is used), a checkpoint's folder, an official MoCo .pth.tar, a
            torchvision-named .pth, or a moco.tensorflow .npz.
        dtype: Keras' dtype policy of the encoder.
        untrained: keeps the fresh initialisation of the same architecture.

    Raises:
        UserError: nothing there, no encoder in it, or it is damaged.
    """
    place = find(path)
    if place.is_dir():
        return from_checkpoint(place, dtype, untrained)
    return from_foreign(place, foreign.read_state(place), dtype, untrained)


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
    for file in (folder / checkpoint.DESCRIPTION, *RunFolder(folder).checkpoints.glob(f"*/{checkpoint.DESCRIPTION}")):
        if file.is_file() and file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise UserError(
                f"{file} has {file.stat().st_size:,} bytes, expected a few thousand; remove that checkpoint"
            )
    if (folder / checkpoint.DESCRIPTION).is_file():
        checkpoint.check(folder)
        return folder
    if (folder / "saved_model.pb").is_file():
        raise UserError(f"--load={folder} is a SavedModel, which tf.saved_model.load opens; {EXPECTED}")
    newest, complaints = checkpoint.newest_sound(RunFolder(folder).checkpoints)
    if newest is None:
        raise UserError(f"--load={folder} holds no encoder{'; ' + complaints[0] if complaints else ''}; {EXPECTED}")
    return newest


def from_checkpoint(path: pathlib.Path, dtype: str = "float32", untrained: bool = False) -> Loaded:
    """The query encoder of a checkpoint's folder. Raises UserError if it is damaged."""
    about = checkpoint.describe(path)
    try:
        values = checkpoint.read_group(path, "query_encoder")
        weights = {name: to_torch_layout(value) for name, value in values.items()}
        _check_numbers(about["mean"], about["std"], about["image_size"])
        _check_splits(about["encoder"])
        encoder = _build(about["encoder"], weights, dtype, untrained)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from None
    except _UNBUILDABLE as error:
        raise UserError(
            f"checkpoint {path}: {checkpoint.DESCRIPTION} or the weights hold no encoder ({one_line(error)}); give an "
            "undamaged one"
        ) from None
    mean, std = tuple(about["mean"]), tuple(about["std"])
    return Loaded(encoder, str(path), "moco_tf checkpoint", about["step"], about["image_size"], mean, std)


def from_foreign(path: pathlib.Path, state: Foreign, dtype: str = "float32", untrained: bool = False) -> Loaded:
    """The encoder of another program's file.

    Args:
        path: of the file.
        state: what it holds.
        dtype: Keras' dtype policy.
        untrained: whether only the architecture is taken.

    Raises:
        UserError: it is of no architecture that is known here.
    """
    try:
        encoder = _build(vars(describe(state.encoder)), state.encoder, dtype, untrained)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Loaded(encoder, str(path), state.source, None, 0, *NORMALISATIONS["imagenet"])


def _build(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], dtype: str, untrained: bool) -> Encoder:
    """An encoder of a configuration, with the weights unless untrained, which fit it by names and shapes.

    A network larger than the weights is not built: a damaged configuration could ask for any amount of memory.

    Args:
        config: arguments of `Encoder`.
        weights: {torchvision name: array in PyTorch's layout}.
        dtype: Keras' dtype policy of the encoder.
        untrained: keeps the fresh initialisation.

    Raises:
        UserError: the weights are of another network.
    """
    left = sum(value.size for value in weights.values())

    def create(next_creator: Callable[..., tf.Variable], **given: Any) -> tf.Variable:
        nonlocal left
        initial = given["initial_value"]
        with tf.Graph().as_default():  # computes shapes only
            left -= initial().shape.num_elements() if callable(initial) else np.size(initial)
        if left < 0:
            raise ValueError("a larger network")
        return next_creator(**given)

    try:
        with tf.variable_creator_scope(create):
            encoder = Encoder(**config, dtype=dtype)
    except ValueError:
        if left >= 0:
            raise
        said = ", ".join(f"{name} {value}" for name, value in config.items())
        raise UserError(f"the network ({said}) is larger than its weights; give an undamaged file") from None
    check_weights(encoder, weights)
    if not untrained:
        set_weights(encoder, weights)
    return encoder


def _check_splits(config: Mapping[str, Any]) -> None:
    """Refuses what only a training pass would meet. Raises ValueError."""
    splits = config["bn_splits"]
    if type(splits) is not int or splits < 1:
        raise ValueError(f"bn_splits {splits!r} cannot be used")


def _check_numbers(mean: Sequence[float], std: Sequence[float], image_size: int) -> None:
    """Refuses a normalisation or an image size that cannot be. Raises UserError or TypeError."""
    sound = len(mean) == len(std) == 3 and np.isfinite([*mean, *std]).all() and min(std) > 0
    if not sound or type(image_size) is not int or not 0 <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"mean {mean}, std {std} and image_size {image_size} came, expected three numbers each, std above 0, and a "
            f"side of at most {MAX_IMAGE_SIZE} pixels; give an undamaged file"
        )
