"""TensorFlow's SavedModel: serves images of any size and JPEG or PNG files, and can be fine-tuned without this package.

    encoder = tf.saved_model.load(folder)
    encoder.embed(images)                                     # uint8 BxHxWx3 -> BxD, inference
    encoder.features(encoder.prepare(images), training=True)  # BxD, to fine-tune encoder.trainable_variables

Legend: B batch, H and W any image size, S the network's, D pooled features, C the head's output.
"""

import pathlib
import shutil
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from moco_tf.data.decoding import decode_exact
from moco_tf.errors import UserError
from moco_tf.evaluation import features
from moco_tf.formats import base
from moco_tf.formats.architecture import HEAD
from moco_tf.formats.base import Loaded
from moco_tf.networks import naming
from moco_tf.networks.encoder import Encoder

SUFFIX, ANY_SIZE = "", True
CONTENTS = frozenset({"README.md", "saved_model.pb", "fingerprint.pb", "variables", "assets"})

_SHAPE = [None, None, None, 3]
_IMAGES = tf.TensorSpec(_SHAPE, tf.uint8, "images")
_FLOATS = (
    "images came as floating point, expected uint8 from 0 to 255: of values from 0 to 1 these are "
    "np.uint8(np.round(255 * images))"
)
_FILES = tf.TensorSpec([None], tf.string, "image_bytes")
_USE = """\
    encoder = tf.saved_model.load("{name}")  # needs TensorFlow only
    features = encoder.embed(images)  # uint8 BxHxWx3 of any size -> Bx{D} float32
    tuned = encoder.features(encoder.prepare(images), training=True)  # to learn encoder.trainable_variables

| signature | in | out |
|---|---|---|
| serving_default | image_bytes: B files, JPEG (grey or RGB) or PNG of up to 8 bits a channel | features: Bx{D} |
| embed | images: uint8 BxHxWx3 from 0 to 255 | features: Bx{D} |
"""
_PROJECT = "| project | images: as of embed | projection: Bx{C}, of length one, as the contrastive loss compares |\n"
_SAYS = """\

The functions `embed`, `project` and `prepare` refuse floating point. Give signatures tensors, as TensorFlow would make
uint8 of NumPy's arrays, of floats from 0 to 1 only zeros and ones.
"""


def write(subject: Loaded, path: pathlib.Path) -> None:
    """Writes the folder."""
    save(subject.encoder, path, subject.image_size, subject.mean, subject.std, subject.test_resize)


def outputs(path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Of every signature and function that serves."""
    exported = tf.saved_model.load(str(path))
    served = exported.signatures["serving_default"](tf.stack([tf.io.encode_png(image) for image in images]))
    found = {"serving_default": {"features": served["features"].numpy()}}
    found["embed"] = {"features": np.concatenate([exported.embed(image[None]) for image in images])}
    if hasattr(exported, "project"):
        found["project"] = {"projection": np.concatenate([exported.project(image[None]) for image in images])}
    return found


def use(subject: Loaded, name: str) -> str:
    """How to serve and tune it."""
    template = _USE + (_PROJECT if subject.encoder.head else "")
    return (template + _SAYS).format(name=name, **base.sizes(subject))


class Exported(tf.Module):
    """What is saved; the same attributes are there after tf.saved_model.load.

    prepare(images): uint8 BxHxWx3 -> BxSxSx3 float32, resized as in tests and normalised: what `features` takes.
    features(images, training=False): prepared images -> BxD. With training=True batch norms use the batch and move
        their running statistics, as in pre-training; B must then be a multiple of the encoder's bn_splits.
    head(features, training=False): BxD -> BxC, not normalised. Absent when the encoder has no head, as is `project`.
    embed(images): uint8 BxHxWx3 -> BxD, inference.
    embed_files(image_bytes): a vector of B files, JPEG or PNG of 8 bits, -> BxD, inference. It fails on other files.
    project(images): uint8 BxHxWx3 -> BxC of length one, what the contrastive loss compares, inference.
    trainable_variables: what `features` learns; head_variables: what `head` learns.
    variables: all of them; named_variables: the same by torchvision's names (values in Keras layout).

    All is float32. Images of floating point are refused, since TensorFlow would cut those from 0 to 1 to black.
    """

    # A loaded object has attributes only; tf.Module's properties of these names would be lost.
    variables: Sequence[tf.Variable] = ()
    trainable_variables: Sequence[tf.Variable] = ()

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        test_resize: int = 0,
    ) -> None:
        super().__init__(name="encoder")
        network = encoder.copied("float32")  # tracked are its variables, not the Keras objects around them
        self._define_variables(network)
        self._define_functions(network, (image_size, test_resize), tf.constant(mean), tf.constant(std))

    def _define_variables(self, network: Encoder) -> None:
        self.named_variables = {name: v.value for name, v in network.named_variables().items()}
        self.variables = list(self.named_variables.values())
        # What pre-training froze may be learnt, too.
        learnt = {name: v.value for name, v in naming.learnt(network.named_variables()).items()}
        self.trainable_variables = [v for name, v in learnt.items() if not name.startswith(HEAD)]
        self.head_variables = [v for name, v in learnt.items() if name.startswith(HEAD)]

    def _define_functions(self, network: Encoder, sizes: tuple[int, int], mean: tf.Tensor, std: tf.Tensor) -> None:
        size, test_resize = sizes

        def prepare(images: tf.Tensor) -> tf.Tensor:
            count = tf.shape(images)[0]
            one_if_none = [[0, tf.cast(count == 0, tf.int32)], [0, 0], [0, 0], [0, 0]]  # no resize of an empty batch
            return ((features.prepare_batch(tf.pad(images, one_if_none), (test_resize, size)) - mean) / std)[:count]

        def inferred(prepared: tf.Tensor) -> tf.Tensor:
            count = tf.shape(prepared)[0]  # TensorFlow's fused convolutions take no empty batch
            some = tf.cond(count > 0, lambda: prepared, lambda: tf.zeros([1, size, size, 3]))
            return network.features(some)[:count]

        def embed(images: tf.Tensor) -> tf.Tensor:
            return inferred(prepare(images))

        def project(images: tf.Tensor) -> tf.Tensor:
            return tf.math.l2_normalize(network.project(embed(images)), axis=1, epsilon=1e-24)  # length >= 1e-12

        def embed_files(image_bytes: tf.Tensor) -> tf.Tensor:
            one = tf.TensorSpec([size, size, 3], tf.float32)
            images = tf.map_fn(lambda data: prepare(decode_exact(data)[None])[0], image_bytes, fn_output_signature=one)
            return inferred(images)

        self.prepare, self.embed = _of_pixels(prepare), _of_pixels(embed)
        self.features = _traced(network.features, tf.TensorSpec(_SHAPE, tf.float32, "images"))
        self.embed_files = tf.function(embed_files, [_FILES], autograph=False)
        if network.head:
            self.project = _of_pixels(project)
            self.head = _traced(network.project, tf.TensorSpec([None, network.backbone.features], name="features"))

    def signatures(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """What serving calls by name: outputs have names there."""
        made = {
            "serving_default": tf.function(lambda image_bytes: {"features": self.embed_files(image_bytes)}, [_FILES])
        }
        made["embed"] = tf.function(lambda images: {"features": self.embed(images)}, [_IMAGES])
        if hasattr(self, "project"):
            made["project"] = tf.function(lambda images: {"projection": self.project(images)}, [_IMAGES])
        return made


def save(
    encoder: Encoder,
    folder: str | pathlib.Path,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    test_resize: int = 0,
) -> None:
    """Writes an encoder as a SavedModel: `Exported`, with the signatures serving_default, embed and project.

    Args:
        encoder: of any precision; it is copied, and saved in float32.
        folder: is created; must not hold anything.
        image_size: S, the side that images are cropped to.
        mean, std: what images in [0, 1] are normalised with, three numbers each.
        test_resize: short side before the centre crop; 0: 256/224 of the size, and images of its size as they are.

    Raises:
        UserError: the folder holds something, or cannot be written; nothing is left then.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; expected a new folder; give another or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)  # where this fails tracing would be in vain
        exported = Exported(encoder, image_size, mean, std, test_resize)
        tf.saved_model.save(exported, str(folder), signatures=exported.signatures())
    except (OSError, tf.errors.OpError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{folder} cannot be written ({reason}); give another folder or mend the disk") from None


def _of_pixels(function: Callable[[tf.Tensor], tf.Tensor]) -> tf.types.experimental.PolymorphicFunction:
    """A function of images, traced for uint8, and for floats to refuse them."""

    @tf.function(autograph=False)
    def traced(images: tf.Tensor) -> tf.Tensor:
        if images.dtype == tf.uint8:
            return function(images)
        with tf.control_dependencies([tf.debugging.Assert(False, [_FLOATS])]):
            return tf.zeros([0])

    for dtype in (tf.uint8, tf.float32, tf.float64, tf.float16, tf.bfloat16):
        traced.get_concrete_function(tf.TensorSpec(_SHAPE, dtype, "images"))
    return traced


def _traced(function: Callable[..., tf.Tensor], spec: tf.TensorSpec) -> tf.types.experimental.PolymorphicFunction:
    """A function (x, training=False), traced for both values: what is not traced is not saved."""
    traced = tf.function(function, autograph=False)
    for training in (False, True):
        traced.get_concrete_function(spec, training=training)
    return traced
