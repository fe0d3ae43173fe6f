"""`--load`: an encoder, and what stands beside it, from whatever holds one."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.errors import UserError
from moco_tf.formats import foreign
from moco_tf.formats.architecture import configuration
from moco_tf.formats.base import Loaded
from moco_tf.formats.foreign import Foreign
from moco_tf.formats.torchvision import check_weights, set_weights, to_torch_layout
from moco_tf.networks.encoder import Encoder
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint, launcher
from moco_tf.training.files import one_line

SOURCES = "a run folder, a checkpoint's folder, or a .pth.tar, .pth, .safetensors or .npz file"
EXPECTED = f"expected {SOURCES}"
MAX_DESCRIPTION_BYTES = 16 * 2**20
MAX_IMAGE_SIZE = 16384
_UNBUILDABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, tf.errors.OpError)


def load(path: str, dtype: str = "float32", untrained: bool = False) -> Loaded:
    """Loads an encoder from a run folder, one of its checkpoints, or a file of another program.

    Args:
        path: a run folder (its newest whole checkpoint is used), a checkpoint's folder, or a file of PyTorch,
            a .safetensors or a moco.tensorflow .npz that holds a ResNet by torchvision's names, or a ViT by timm's,
            whatever their prefix.
        dtype: Keras' dtype policy of the encoder.
        untrained: keeps the fresh initialisation of the same architecture.

    Raises:
        UserError: nothing there, no encoder in it, or it is damaged.
    """
    place = find(path)
    return build(place, read_state(place), dtype, untrained)


def announced(path: str, dtype: str = "float32", untrained: bool = False) -> Loaded:
    """The same; the first rank prints what was chosen in the file, and what left out."""
    loaded = load(path, dtype, untrained)
    if loaded.notes and launcher.is_first_rank():
        print("\n".join(f"{path}: {note}" for note in loaded.notes), flush=True)
    return loaded


def find(path: str, flag: str = "load") -> pathlib.Path:
    """The checkpoint's folder (a run folder's newest whole one, checked) or the file that --load, or a flag, means.

    Raises:
        UserError: nothing there, or a folder without a whole checkpoint.
    """
    place = pathlib.Path(path)
    try:
        if not place.exists():
            raise UserError(f"--{flag}={path} does not exist; {EXPECTED}")
        if place.is_dir():
            return _checkpoint_in(place, flag)
        with place.open("rb"):
            return place
    except OSError as error:
        raise UserError(f"--{flag}={path} cannot be read ({error.strerror}); {EXPECTED}") from None


def _checkpoint_in(folder: pathlib.Path, flag: str) -> pathlib.Path:
    for file in (folder / checkpoint.DESCRIPTION, *RunFolder(folder).checkpoints.glob(f"*/{checkpoint.DESCRIPTION}")):
        if file.is_file() and file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise UserError(
                f"{file} has {file.stat().st_size:,} bytes, expected a few thousand; remove that checkpoint"
            )
    if (folder / checkpoint.DESCRIPTION).is_file():
        checkpoint.check(folder)
        return folder
    if (folder / "saved_model.pb").is_file():
        raise UserError(f"--{flag}={folder} is a SavedModel, which tf.saved_model.load opens; {EXPECTED}")
    newest, complaints = checkpoint.newest_sound(RunFolder(folder).checkpoints)
    if newest is None:
        raise UserError(f"--{flag}={folder} holds no encoder{'; ' + complaints[0] if complaints else ''}; {EXPECTED}")
    return newest


def read_state(place: pathlib.Path) -> Foreign:
    """All that a checkpoint's folder or another program's file holds of encoders and queue. Raises UserError."""
    if not place.is_dir():
        return foreign.read_state(place)
    try:
        return _of_checkpoint(place)
    except UserError as error:
        raise UserError(f"checkpoint {place}: {error}") from None


def _of_checkpoint(place: pathlib.Path) -> Foreign:
    groups = {name: checkpoint.read_group(place, name) for name in ("query_encoder", "key_encoder", "queue")}
    query, key = ({name: to_torch_layout(value) for name, value in groups[g].items()} for g in list(groups)[:2])
    pointer = checkpoint.read_group(place, "queue_pointer").get("")
    return Foreign(
        encoder=query,
        key_encoder=key or None,
        queue=groups["queue"].get(""),
        queue_pointer=None if pointer is None else int(pointer),
        source="moco_tf checkpoint",
    )


def build(place: pathlib.Path, state: Foreign, dtype: str = "float32", untrained: bool = False) -> Loaded:
    """The query encoder of what `find` and `read_state` give.

    Args:
        place: where it is.
        state: what it holds.
        dtype: Keras' dtype policy.
        untrained: whether only the architecture is taken.

    Raises:
        UserError: it is damaged, or of no architecture that is known here.
    """
    if not place.is_dir():
        try:
            encoder = _build(configuration(state.encoder), state.encoder, dtype, untrained)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        size, imagenet = state.image_size, NORMALISATIONS["imagenet"]
        return Loaded(encoder, str(place), state.source, None, size, *imagenet, state.notes)
    about = checkpoint.describe(place)
    try:
        _check(about)
        encoder = _build(about["encoder"], state.encoder, dtype, untrained)
    except UserError as error:
        raise UserError(f"checkpoint {place}: {error}") from None
    except _UNBUILDABLE as error:
        raise UserError(
            f"checkpoint {place}: {checkpoint.DESCRIPTION} or the weights hold no encoder ({one_line(error)}); give an "
            "undamaged one"
        ) from None
    sizes = {"image_size": about["image_size"], "test_resize": about.get("test_resize") or 0}
    known = {"step": about["step"], "mean": tuple(about["mean"]), "std": tuple(about["std"]), **sizes}
    return Loaded(encoder, str(place), state.source, **known)


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


def _check(about: Mapping[str, Any]) -> None:
    """Refuses a description without an encoder, or whose normalisation, image size or splits cannot be.

    Raises:
        UserError, LookupError, TypeError, ValueError: it is so.
    """
    if "classes" in about and "encoder" not in about:
        raise UserError(
            "a linear probe's, which holds a classifier and no encoder; expected a pre-training's; give the run folder "
            "that was probed"
        )
    mean, std, size, splits = (about[name] for name in ("mean", "std", "image_size", "encoder"))
    if type(splits["bn_splits"]) is not int or splits["bn_splits"] < 1:  # only a training pass would meet it
        raise ValueError(f"bn_splits {splits['bn_splits']!r} cannot be used")
    sound, sizes = len(mean) == len(std) == 3 and np.isfinite([*mean, *std]).all() and min(std) > 0, [size]
    sizes.append(about.get("test_resize") or 0)
    if not sound or any(type(side) is not int or not 0 <= side <= MAX_IMAGE_SIZE for side in sizes):
        raise UserError(
            f"mean {mean}, std {std}, image_size and test_resize {sizes} came, expected three numbers each, std above "
            f"0, and at most {MAX_IMAGE_SIZE} pixels; give an undamaged file"
        )
