"""`--load`: an encoder from whatever holds one."""

import dataclasses
import pathlib

from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.errors import UserError
from moco_tf.networks.encoder import Encoder
from moco_tf.training import checkpoint
from moco_tf.weights import foreign
from moco_tf.weights.torchvision import set_weights


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
            torchvision-named .pth or a moco.tensorflow .npz.
        dtype: Keras' dtype policy of the encoder.
        untrained: keeps the fresh initialisation of the same architecture.

    Raises:
        UserError: nothing there, no encoder in it, or it is damaged.
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise UserError(f"--load={path} does not exist; expected a run folder, a checkpoint, a .pth.tar, .pth or .npz")
    if place.is_dir():
        return _from_checkpoint(_checkpoint_in(place), dtype, untrained)
    return _from_foreign(place, dtype, untrained)


def _checkpoint_in(folder: pathlib.Path) -> pathlib.Path:
    if (folder / checkpoint.DESCRIPTION).is_file():
        checkpoint.check(folder)
        return folder
    newest, complaints = checkpoint.newest_sound(folder / "checkpoints")
    if newest is None:
        raise UserError(
            f"--load={folder} holds no encoder{'; ' + complaints[0] if complaints else ''}; expected a run folder with "
            "checkpoints/, a checkpoint's folder, a .pth.tar, .pth or .npz"
        )
    return newest


def _from_checkpoint(path: pathlib.Path, dtype: str, untrained: bool) -> Loaded:
    about = checkpoint.describe(path)
    try:
        encoder = Encoder(**about["encoder"], dtype=dtype)
        mean, std, image_size = tuple(about["mean"]), tuple(about["std"]), int(about["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"checkpoint {path}: {checkpoint.DESCRIPTION} describes no encoder ({error})") from None
    if not untrained:
        values, variables = checkpoint.read_group(path, "query_encoder"), encoder.named_variables()
        if values.keys() != variables.keys():
            raise UserError(f"checkpoint {path} holds other variables than its description says; it is damaged")
        for name, variable in variables.items():
            variable.assign(values[name])
    return Loaded(encoder, str(path), "moco_tf checkpoint", about["step"], image_size, mean, std)


def _from_foreign(path: pathlib.Path, dtype: str, untrained: bool) -> Loaded:
    state = foreign.read_state(path)
    about = foreign.describe(state.encoder)
    encoder = Encoder(
        about.arch,
        about.stem,
        about.width,
        head=about.head,
        feature_dim=about.feature_dim,
        hidden_dim=about.hidden_dim,
        dtype=dtype,
    )
    if not untrained:
        set_weights(encoder, state.encoder)
    return Loaded(encoder, str(path), state.source, None, 0, *NORMALISATIONS["imagenet"])
