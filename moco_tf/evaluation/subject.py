"""What is evaluated: an encoder from any source, the same untrained, or raw pixels."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from moco_tf.config.options import BASELINES, DataOptions, EncoderToEvaluate
from moco_tf.data.normalisation import normalisation
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import features
from moco_tf.formats.base import Loaded, used_with
from moco_tf.formats.load import SOURCES, announced
from moco_tf.networks.cost import cost
from moco_tf.networks.encoder import Encoder
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint, device
from moco_tf.training.files import digest

_FILES = (".tar", ".pth", ".pt", ".safetensors", ".npz")  # of other programs, as --load takes them


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated: images in [0, 1] to features.

    Args:
        name: what it is, for people.
        embed: float32 images BxSxSx3 in [0, 1] to features.
        encoder: None for raw pixels.
        image_size: side of its images; 0: the data set's own.
        test_resize: short side before the centre crop; 0: in proportion.
        mean, std: of RGB in [0, 1].
        path: the checkpoint or file that the encoder is from, or its architecture; "": none.
        step: steps that the encoder was trained for; None if unknown.
        own: the encoder's own of the options image_size, test_resize and normalise.
    """

    name: str
    embed: Callable[[tf.Tensor], tf.Tensor]
    encoder: Encoder | None
    image_size: int
    test_resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    path: str = ""
    step: int | None = None
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def fingerprint(self) -> dict[str, bytes]:
        """Every variable of the encoder, bit for bit."""
        return _contents(self.encoder) if self.encoder else {}

    @functools.cached_property
    def weights(self) -> str:
        """A short name of the encoder's variables, as they are now."""
        return digest(self.fingerprint().values())[:16]

    def geometry(self, images: Source) -> tuple[int, int]:
        """Resize and centre crop of test images; raw pixels of images of one size stay as they are stored."""
        if self.encoder is None and images.image_shape:
            return (min(images.image_shape),) * 2
        return features.test_geometry(images, self.image_size, self.test_resize)

    def cost(self, images: Source, classifier: Callable[[tf.Tensor], tf.Tensor] = tf.identity) -> dict[str, Any]:
        """Parameters and multiply-adds of the backbone (and a classifier on it), for a result; none for raw pixels."""
        if self.encoder is None:
            return {}
        encoder = self.encoder
        counted = cost(lambda x: classifier(encoder.features(x)), self.geometry(images)[1])
        return {"parameters": counted.parameters, "multiply_adds": counted.multiply_adds, "thop_flops": counted.thop}


def weights_of(encoder: Encoder) -> str:
    """What `Subject.weights` is of this encoder."""
    return digest(_contents(encoder).values())[:16]


def _contents(encoder: Encoder) -> dict[str, bytes]:
    return {name: np.asarray(v.value).tobytes() for name, v in encoder.named_variables().items()}


def load(encoder: EncoderToEvaluate, data: DataOptions, precision: str, feature: str = "backbone") -> Subject:
    """The encoder that --load holds, or the baseline asked for, on the same images.

    Args:
        encoder: what to load.
        data: of image size and normalisation, where they are not the encoder's own.
        precision: of its computations.
        feature: "head" or "backbone".

    Raises:
        UserError: --load is missing or holds no encoder.
    """
    pixels, untrained = (encoder.baseline == name for name in ("raw_pixels", "untrained"))
    if pixels and not encoder.load:
        mean, std = normalisation(data.normalise, data.dataset)
        return Subject("raw pixels", features.raw_pixels, None, data.image_size, data.test_resize or 0, mean, std)
    if not encoder.load:
        raise UserError(f"--load is missing, and runs/ has no run; give {SOURCES}")
    found = of_encoder(announced(encoder.load, device.dtype_policy(precision), untrained), data, feature)
    if pixels:
        return dataclasses.replace(found, name="raw pixels", embed=features.raw_pixels, encoder=None, step=None)
    if encoder.baseline not in BASELINES:
        return _beside(found, announced(encoder.baseline, device.dtype_policy(precision)), data, feature)
    if untrained and found.encoder:
        return dataclasses.replace(found, name=f"untrained {found.encoder.config['arch']}", step=None)
    return found


def _beside(run: Subject, loaded: Loaded, data: DataOptions, feature: str) -> Subject:
    """Another encoder; one that does not say the size of its images gets those of the run."""
    if not loaded.image_size:
        loaded = dataclasses.replace(loaded, image_size=run.image_size, test_resize=run.test_resize)
    return of_encoder(loaded, data, feature)


def of_encoder(loaded: Loaded, data: DataOptions, feature: str = "backbone") -> Subject:
    """An encoder in memory; its path is the subject's name.

    Args:
        loaded: the encoder.
        data: of image size, test geometry and normalisation, where they are not the encoder's own.
        feature: "head" or "backbone".
    """
    used = used_with(loaded, data.image_size, data.test_resize, data.normalise)
    embed = features.embedder(used.encoder, feature, used.mean, used.std)
    own = {"image_size": loaded.image_size, "test_resize": loaded.test_resize, "normalise": "auto"}
    sizes = used.image_size, used.test_resize
    return Subject(used.path, embed, used.encoder, *sizes, used.mean, used.std, used.path, used.step, own)


def checkpoints(folder: str | None) -> list[str]:
    """What a run folder, a folder of checkpoints or one of files holds to be loaded, oldest or first name first.

    Raises:
        UserError: there is nothing to be loaded.
    """
    found: list[pathlib.Path] = []
    if folder:
        place = pathlib.Path(folder)
        files = [path for path in sorted(place.glob("*")) if path.suffix.lower() in _FILES]
        found = checkpoint.existing(RunFolder(place).checkpoints) or checkpoint.existing(place) or files
    if not found:
        raise UserError(
            f"--all_checkpoints came with --load={folder}, expected a run folder with checkpoints/, or a folder of "
            f"{', '.join(_FILES)} files"
        )
    return [str(path) for path in found]
