"""An encoder that was trained before, from any source: features, evaluations, exports.

N images, D pooled features, C the head's output.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf

from moco_tf.api import recipes
from moco_tf.config import define
from moco_tf.config.options import Export, Knn, Lincls
from moco_tf.config.types import absolute
from moco_tf.data.decoding import of_pillow
from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.data.sets import folder
from moco_tf.data.sources import ArraySource
from moco_tf.errors import UserError
from moco_tf.evaluation import features, subject
from moco_tf.evaluation.subject import Subject
from moco_tf.formats import export as exports
from moco_tf.formats import origin
from moco_tf.formats.base import Loaded, used_with
from moco_tf.formats.load import announced
from moco_tf.networks.encoder import Encoder
from moco_tf.run import defaults, knn_evaluation, probing
from moco_tf.run.folder import RunFolder
from moco_tf.training import checkpoint, collectives, device, launcher
from moco_tf.training.files import make_folder, one_line

OneImage = np.ndarray | str | os.PathLike | PIL.Image.Image
Images = np.ndarray | str | os.PathLike | Iterable[OneImage]


@dataclasses.dataclass(frozen=True)
class Pretrained(Loaded):
    """An encoder and what is known about it. Made by `load`.

    Attributes:
        encoder: the keras.Model, which may be fine-tuned.
        path: the checkpoint or file that it comes from.
        source: what that is, in words.
        step: steps it was trained for; None when unknown.
        image_size: side of its images in pixels; 0 when unknown: the size of the images at hand.
        mean, std: of RGB in [0, 1], what its images are normalised with.
        test_resize: short side before the centre crop; 0: 256/224 of the size.
    """

    _flags: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)  # what `load` was told

    def embed(self, images: Images, feature: str = "backbone", batch_size: int = 256) -> np.ndarray:
        """Features of images, resized and cropped as in the evaluations: NxD float32, or NxC.

        `moco_tf.embed` writes them to a file, with the paths, and leaves unreadable images out.

        Args:
            images: uint8 NxHxWx3 (or NxHxW, NxHxWx1: gray); a sequence or generator of such images of any sizes, of
                Pillow's images or of paths; or the path of an image or of a folder, of which all images are taken in
                the order of their paths.
            feature: "backbone", the pooled features, or "head", the head's output; neither is normalised.
            batch_size: images computed at a time.

        Raises:
            UserError: the images are no such images, one cannot be read, or another argument is not as said.
        """
        if feature not in ("backbone", "head"):
            raise UserError(f"feature is {feature!r}, expected 'backbone' or 'head'")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, expected 1 or more")
        embed = features.embedder(self.encoder, feature, self.mean, self.std)
        parts = [np.zeros((0, self._width(feature)), np.float32)]
        for batch in _batches(images, batch_size):
            geometry = features.test_geometry(ArraySource("images", batch), self.image_size, self.test_resize)
            parts.append(embed(features.prepare_batch(tf.constant(batch), geometry)).numpy())
        return np.concatenate(parts)

    def knn(self, flagfile: str | os.PathLike | None = None, **flags: Any) -> dict[str, Any]:
        """Weighted kNN accuracy on a data set, as `python -m moco_tf.knn`: {"top1": share, "top5": share, ...}.

        What is evaluated is the encoder as it is in memory, in its own precision. The result is written, too, under
        the name of `path`: into the run folder, or to workdir. `save` an encoder first that was changed.

        Args:
            flagfile: see `recipe`.
            **flags: dataset, k, knn_temperature ...

        Raises:
            UserError: as the program.
        """
        o: Knn = self._recipe("knn", flagfile, flags).options
        with recipes.whole():
            return knn_evaluation.evaluate(o, self._subject(o, self, o.knn.feature))

    def linear_probe(self, flagfile: str | os.PathLike | None = None, **flags: Any) -> dict[str, Any]:
        """Accuracy of a linear classifier on the frozen backbone, as `python -m moco_tf.lincls`. See `knn`.

        Without a flagfile and a learning_rate it is chosen from a grid, on held-out training images. With finetune=True
        a copy is tuned: the checkpoints in the result's folder hold it.
        """
        given = self._recipe("lincls", flagfile, flags).arguments
        o = define.parse(Lincls, defaults.words(Lincls, ["lincls", *given]))
        with recipes.whole():
            return probing.evaluate(o, self._subject(o, self._copy() if o.probe.finetune else self))

    def export(self, output: str | os.PathLike, **flags: Any) -> pathlib.Path:
        """Writes the encoder for use elsewhere, as `python -m moco_tf.export` does.

        Args:
            output: the folder or file to write.
            **flags: format ("savedmodel", "pth" ...), dataset ...

        Returns:
            output.

        Raises:
            UserError: as the program.
        """
        o: Export = self._recipe("export", None, {**flags, "output": output}).options
        with recipes.whole():
            if launcher.is_first_rank():  # one process does it all
                exports.check(o.export.format, o.export.output)
                with tf.device("/CPU:0"):
                    encoder = exports.prepared(
                        self._copy("float32"), o.data.image_size, o.data.test_resize, o.data.normalise
                    )
                exports.export(encoder, o.export.format, o.export.output, o.data.dataset, o.data.data_dir)
        return pathlib.Path(output)

    def save(self, folder: str | os.PathLike) -> "Pretrained":
        """Writes the encoder as it is now, fine-tuned for instance, to a new run folder, and loads it from there.

        The folder is what every program's --load takes, with the data set, its place and the held-out images of the run
        that the encoder is from; training cannot go on in it.

        Raises:
            UserError: the folder holds checkpoints already or cannot be written.
        """
        about = {name: getattr(self, name) for name in ("image_size", "test_resize", "mean", "std")}
        if own := origin.trained_on(self.path):
            about |= {"dataset": own.dataset, "flags": {name: getattr(own, name) for name in origin.NAMES}}
        return write(folder, self.encoder, self.step or 0, about)

    def _width(self, feature: str) -> int:
        config = self.encoder.config
        return self.encoder.backbone.features if "backbone" in (feature, config["head"]) else config["feature_dim"]

    def _recipe(self, program: str, flagfile: str | os.PathLike | None, flags: dict[str, Any]) -> recipes.Recipe:
        """A program's flags; of the encoder it has what `load` was told, and the precision where the flag is there."""
        own = {**self._flags, **flags, "load": self.path}
        if program != "export":
            precision = self.encoder.compute_dtype
            if flags.get("precision", "auto") not in ("auto", precision):
                raise UserError(
                    f"precision={flags['precision']} came, and the encoder computes in {precision}; give it to load"
                )
            own["precision"] = precision
        return recipes.recipe(flagfile, program, **own)

    def _subject(self, o: Knn | Lincls, loaded: Loaded, feature: str = "backbone") -> Subject | None:
        """What is evaluated; None for a baseline, which is made from the options."""
        if o.encoder.baseline != "none":
            return None
        found = subject.of_encoder(loaded, o.data, feature)
        told = [name for name, value in self._flags.items() if value is not None]  # not its own: a result names them
        return dataclasses.replace(found, own={name: v for name, v in found.own.items() if name not in told})

    def _copy(self, dtype: str | None = None) -> Loaded:
        return dataclasses.replace(self, encoder=self.encoder.copied(dtype))


def load(
    path: str | os.PathLike, precision: str = "float32", image_size: int = 0, normalise: str = "auto"
) -> Pretrained:
    """Loads an encoder from whatever holds one.

    Args:
        path: a run folder (its newest whole checkpoint is used), a checkpoint's folder, or a .pth, .pth.tar,
            .safetensors or moco.tensorflow .npz that holds a ResNet by torchvision's names, whatever their prefix.
        precision: of its computations: "float32", "bfloat16", "float16", or "auto" (bfloat16 where it is fast).
        image_size: side of its images in pixels; 0: what the path says, which other programs' files do not.
        normalise: name of the mean and deviation for its images, see `moco_tf.data.normalisation`; "auto": what the
            path says, or ImageNet's.

    Raises:
        UserError: nothing there, no encoder in it, it is damaged, or an argument is not one of these.
    """
    names = {"precision": ["auto", "float32", "bfloat16", "float16"], "normalise": ["auto", *NORMALISATIONS]}
    for name, value in (("precision", precision), ("normalise", normalise)):
        if value not in names[name]:
            raise UserError(f"{name} is {value!r}, expected one of {', '.join(names[name])}")
    if image_size < 0:
        raise UserError(f"image_size is {image_size}, expected pixels, or 0 for what the path says")
    device.configure(0, collectives.connect().local_size)
    loaded = used_with(
        announced(absolute(os.fspath(path)), device.dtype_policy(precision)), image_size, normalise=normalise
    )
    known = {field.name: getattr(loaded, field.name) for field in dataclasses.fields(loaded)}
    given = {"image_size": image_size or None, "normalise": None if normalise == "auto" else normalise}
    return Pretrained(**known, _flags=given)


def write(folder: str | os.PathLike, encoder: Encoder, step: int, about: Mapping[str, Any]) -> Pretrained:
    """Writes an encoder as the only checkpoint of a new run folder, on rank 0, and loads it from there, in float32.

    Args:
        folder: a path.
        encoder: what to write.
        step: steps it was trained for.
        about: image_size, mean, std, and whatever else is known; see moco_tf.training.checkpoint.

    Raises:
        UserError: the folder holds checkpoints already or cannot be written.
    """
    place, ranks = RunFolder.of(folder), collectives.connect()
    if checkpoint.existing(place.checkpoints):
        raise UserError(f"{place.path} holds checkpoints already; give a new folder")
    ranks.barrier()  # all have looked
    if ranks.rank == 0:
        make_folder(place.path)
        state = {"query_encoder": {name: v.value for name, v in encoder.named_variables().items()}}
        checkpoint.save(place.checkpoints, step, state, {"encoder": dict(encoder.config), **about}, keep=1)
    ranks.barrier()
    return load(place.path)


def _batches(images: Images, batch_size: int) -> Iterator[np.ndarray]:
    """Batches uint8 BxHxWx3 of neighbouring images of one size."""
    if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[-1] in (1, 3):
        raise UserError(f"one image of shape {images.shape} came, expected several; give images[None]")
    if isinstance(images, str | os.PathLike):
        images = folder.images(os.fspath(images)) if os.path.isdir(images) else [images]
    paths = [os.fspath(one) for one in images if isinstance(one, str | os.PathLike)] if isinstance(images, list) else []
    white = folder.of_paths(paths).white if paths else None  # one for all, as the programs have it
    for _, group in itertools.groupby((_image(image, white) for image in images), key=np.shape):
        while batch := list(itertools.islice(group, batch_size)):
            yield np.stack(batch)


def _image(image: OneImage, white: int | None) -> np.ndarray:
    """One image uint8 HxWx3; white: of `folder.of_paths`. Raises UserError when it is none, or cannot be read."""
    try:
        if isinstance(image, str | os.PathLike):
            return folder.of_paths([os.fspath(image)], white=white).image(0)
        return as_rgb(of_pillow(image.copy()) if isinstance(image, PIL.Image.Image) else image)
    except (tf.errors.OpError, ValueError) as error:
        reason = one_line(error) if isinstance(error, tf.errors.OpError) else error
        raise UserError(f"{image} cannot be read ({reason}); mend it or leave it out") from None


def as_rgb(image: np.ndarray) -> np.ndarray:
    """One image uint8 HxWx3, from such a one or a gray one, HxW or HxWx1. Raises UserError when it is no image."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or 0 in image.shape:
        raise UserError(
            f"an image of shape {image.shape} and {image.dtype} came, expected uint8 in 0..255 of HxWx3 (or HxW, gray) "
            "each; give a list or NxHxWx3, and convert others"
        )
    return np.broadcast_to(image, (*image.shape[:2], 3))
