"""Image classification sets of TensorFlow Datasets (TFDS), prepared or downloaded and prepared here.

Small images of one size are loaded into memory. Of all others the places of the records in their TFRecord files are
noted, so that they can be read in any order, as files in folders are.
"""

import difflib
import glob
import os
import re
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from moco_tf.config import find
from moco_tf.data.decoding import decode_rgb, in_python
from moco_tf.data.order import span_reader
from moco_tf.data.sources import ArraySource, RecordSource, Source
from moco_tf.errors import UserError
from moco_tf.training.files import one_line
from moco_tf.training.launcher import note

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation, of R, G and B
MAX_ARRAY_BYTES = 4 << 30
_NAME = re.compile(r"\w+(/[\w.-]+)?(:[\d.*]+)?")
OWN = [name for name in find.names("dataset") if name != "tfds"]  # the sets that have a file in this folder
_EXPECTED = f"expected a TensorFlow Datasets name such as cifar10, {', '.join(OWN)}, or a module such as my.dataset"

# Mean and deviation of R, G and B in [0, 1]. ImageNet's are what all its models use; the deviation of all its pixels
# would be about 0.28.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISATIONS: dict[str, Normalisation] = {
    # Of its 50,000 training images; the deviations are means over the images, as contrastive recipes have them.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),  # of its 50,000 training images
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),  # of its 5,000 labelled training images
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),  # of its 73,257 training images
    "mnist": ((0.1307,) * 3, (0.3081,) * 3),  # of its 60,000 training images
}
_LIKE_IMAGENET = re.compile(r"imagenet2012\w*|imagenette|imagewang|imagenet_v2")  # other sets of ImageNet's own images


def default_dir() -> str:
    """Where TFDS keeps prepared data sets."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def is_here(name: str, data_dir: str | None) -> bool:
    """Whether a set seems to be prepared."""
    return os.path.isdir(os.path.join(data_dir or default_dir(), re.split("[/:]", name)[0]))


def is_known(name: str) -> bool:
    """Whether a set of this package or of TFDS has the name."""
    import tensorflow_datasets as tfds

    return name in OWN or name in tfds.list_builders(with_community_datasets=False)


def normalisation(name: str) -> Normalisation | None:
    """The published mean and deviation of a set; None where there are none."""
    name = re.split("[/:]", name)[0]  # without configuration and version
    return IMAGENET if _LIKE_IMAGENET.fullmatch(name) else NORMALISATIONS.get(name)


def load(name: str, split: str, data_dir: str | None = None) -> Source:
    """A TFDS image classification set; labels are -1 when it has no "label" of classes, integers or text.

    Raises:
        UserError: there is no such set, it cannot be had, or is of another kind.
    """
    builder = _builder(name, data_dir)
    image, class_names = _features(name, builder.info.features)
    _prepare(name, builder)
    split_name = _split_name(name, builder, split)
    if None in image.shape or builder.info.splits[split_name].num_examples * np.prod(image.shape) > MAX_ARRAY_BYTES:
        source: Source = _records(name, builder, split_name, class_names)
    else:
        source = _array(name, builder, split_name, class_names)
    if class_names or "label" not in builder.info.features:
        return source
    if np.dtype(builder.info.features["label"].np_dtype).kind not in "iuO":
        note(f"{name}: its labels are neither integers nor text, and are not read")
        return source
    return source.labelled(*_classes_of_values(name, builder, split_name))


def _builder(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds  # slow: not before it is needed

    if not _NAME.fullmatch(name):
        raise UserError(f"--dataset={name} came, {_EXPECTED}{_hint(name, data_dir)}")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"--dataset={name} came, {_EXPECTED}{_hint(name, data_dir)}") from error
    except Exception as error:  # wrong configurations and versions come as many kinds of errors
        raise UserError(f"--dataset={name}: TensorFlow Datasets cannot make it: {_one_line(error)}") from error


def _hint(name: str, data_dir: str | None) -> str:
    """What may have been meant by a wrong name, to end a message with."""
    import tensorflow_datasets as tfds

    if begun := glob.glob(os.path.join(glob.escape(data_dir or default_dir()), glob.escape(name), "*", "pack.json")):
        return f"; {os.path.dirname(begun[0])} is an unfinished pack: run the command again that began it"
    if os.path.isdir(os.path.expanduser(name)):
        return f"; {name} is a folder: give --dataset=folder --data_dir={name}"
    known, plain = OWN + tfds.list_builders(with_community_datasets=False), re.sub(r"\W|_", "", name.lower())
    begins = [other for other in known if other.replace("_", "").startswith(plain)]
    begins.sort(key=lambda other: (normalisation(other) is None, len(other)))  # those that people train on first
    close = list(dict.fromkeys(begins or difflib.get_close_matches(plain, known)))[:3]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _features(name: str, features: "tfds.features.FeatureConnector") -> tuple["tfds.features.Image", tuple[str, ...]]:
    """The image feature and the class names, none of them where labels are no numbers of known classes."""
    import tensorflow_datasets as tfds

    parts = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = parts.get("image"), parts.get("label", parts.get("labels"))
    if not isinstance(image, tfds.features.Image):
        raise UserError(
            f"--dataset={name} has the features {', '.join(parts) or type(features).__name__}, expected an image "
            "classification set with `image`; give another set, or its images as --dataset=folder"
        )
    if image.np_dtype != np.uint8 or image.shape[2] not in (1, 3, 4, None):
        raise UserError(
            f"--dataset={name} has images of {np.dtype(image.np_dtype).name} with {image.shape[2]} channels, expected "
            "uint8 grey or RGB; give another set, or its images as --dataset=folder"
        )
    if label is not None and label.shape != ():
        raise UserError(
            f"--dataset={name} is multi-label (an image has several in its feature {label!r}), expected one label an "
            "image; give another set, or its images as --dataset=folder"
        )
    if image.shape[2] == 4:
        note(f"{name}: the fourth channel of its images is taken for alpha and dropped")
    return image, tuple(getattr(parts.get("label"), "names", None) or ())


def _prepare(name: str, builder: "tfds.core.DatasetBuilder") -> None:
    if builder.is_prepared():
        return
    fix = f"prepare it where there is a network (tfds build {name}) and give the folder as --data_dir"
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS and _offline():
        raise UserError(f"--dataset={name} is not in {builder.data_dir}, and no host can be reached to get it; {fix}")
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"--dataset={name} is not in {builder.data_dir}, and getting it failed: {_one_line(error)}; {fix}"
        ) from error


def _offline() -> bool:
    """True when names do not resolve: TFDS would try again for minutes."""
    if any(os.environ.get(key) for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy")):
        return False
    try:
        socket.getaddrinfo("storage.googleapis.com", 443)
    except OSError:
        return True
    return False


def _split_name(name: str, builder: "tfds.core.DatasetBuilder", split: str) -> str:
    wanted = ("train",) if split == "train" else ("test", "validation", "val", "valid")
    there = [key for key in wanted if key in builder.info.splits and builder.info.splits[key].num_examples]
    if not there:
        raise UserError(
            f"--dataset={name} has the splits {', '.join(builder.info.splits)}, expected {' or '.join(wanted)}; "
            "give another set"
        )
    # Some test splits, as imagenet2012's, keep their labels secret: -1.
    if len(there) > 1 and "label" in builder.info.features:
        first = next(iter(_dataset(builder, there[0], ["label"]).take(1)))
        if np.all(first["label"] == -1):
            return there[1]
    return there[0]


def _dataset(builder: "tfds.core.DatasetBuilder", split: str, keys: list[str]) -> tf.data.Dataset:
    """The split in the order of its files, with the given features only; images stay encoded."""
    import tensorflow_datasets as tfds

    encoded = {"image": tfds.decode.SkipDecoding()} if "image" in keys else None
    return builder.as_dataset(
        split=split,
        decoders=tfds.decode.PartialDecoding(dict.fromkeys(keys, True), encoded),
        read_config=tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1),
        shuffle_files=False,
    )


def _classes_of_values(
    name: str, builder: "tfds.core.DatasetBuilder", split: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels, int32 N, and class names of a set whose labels are integers (negative: none) or text."""

    def values(split: str) -> np.ndarray:
        note(f"{name}: reading the split {split} once, for its labels")
        with tf.device("/CPU:0"):
            batches = _dataset(builder, split, ["label"]).batch(4096).as_numpy_iterator()
            return np.concatenate([batch["label"] for batch in batches])

    of_train = values("train")
    found = of_train if split == "train" else values(split)
    none = found < 0 if found.dtype.kind in "iu" else np.zeros(len(found), bool)
    classes = np.unique(of_train if of_train.dtype == object else of_train[of_train >= 0])
    if unknown := set(found[~none].tolist()) - set(classes.tolist()):
        raise UserError(
            f"--dataset={name}: split {split} has the label {min(unknown)!r} ({len(unknown)} such), expected only "
            "those of its training images; give another set"
        )
    labels = np.where(none, -1, np.searchsorted(classes, found)).astype(np.int32)
    return labels, tuple(x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in classes)


def _array(name: str, builder: "tfds.core.DatasetBuilder", split: str, class_names: tuple[str, ...]) -> ArraySource:
    height, width, channels = builder.info.features["image"].shape
    count = builder.info.splits[split].num_examples
    images = np.empty((count, height, width, min(channels, 3)), np.uint8)
    labels = np.full(count, -1, np.int32)
    dataset = _dataset(builder, split, ["image", "label"] if class_names else ["image"])
    done = 0
    with tf.device("/CPU:0"):
        dataset = dataset.map(lambda example: {**example, "image": decode_rgb(example["image"])}, tf.data.AUTOTUNE)
        try:
            for batch in dataset.batch(1024).take(-(-count // 1024)).as_numpy_iterator():
                part = slice(done, done + len(batch["image"]))
                images[part] = batch["image"][..., : images.shape[-1]]
                labels[part] = batch.get("label", -1)
                done = part.stop
        except tf.errors.OpError as error:
            raise UserError(f"--dataset={name}: an image of {split} cannot be read ({one_line(error)})") from None
    return ArraySource(builder.name, images, labels, class_names)


def _records(name: str, builder: "tfds.core.DatasetBuilder", split: str, class_names: tuple[str, ...]) -> RecordSource:
    paths = _paths(name, builder, split)
    file, offset, length = columns = _places(builder, split, paths)
    labels = _kept_labels(paths, len(file), len(class_names))

    def read_bytes(file: np.ndarray, offset: np.ndarray, length: np.ndarray) -> bytes:
        with open(paths[file], "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), int(length), int(offset))

    features = {"image": tf.io.FixedLenFeature([], tf.string)}
    if class_names:
        features["label"] = tf.io.FixedLenFeature([], tf.int64)

    def read(file: tf.Tensor, offset: tf.Tensor, length: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        record = in_python(read_bytes, [file, offset, length], tf.string)
        example = tf.io.parse_single_example(tf.ensure_shape(record, []), features)
        return example["image"], tf.cast(example.get("label", -1), tf.int32)

    def describe(index: int) -> str:
        place = f"{paths[file[index]]} record at byte {offset[index]}"
        if labels is None:
            return place
        try:  # a pack has the names of the files that it was made of
            record = tf.train.Example.FromString(read_bytes(file[index], offset[index], length[index]))
            return os.fsdecode(record.features.feature["file_name"].bytes_list.value[0])
        except (OSError, DecodeError, IndexError):
            return place

    return RecordSource(builder.name, columns, read, describe, labels, class_names, span_reader(paths, *columns))


def _paths(name: str, builder: "tfds.core.DatasetBuilder", split: str) -> list[str]:
    paths = [instruction.filename for instruction in builder.info.splits[split].file_instructions]
    if builder.info.file_format.value != "tfrecord" or any("://" in path for path in paths):
        raise UserError(
            f"--dataset={name} in {builder.data_dir} came as {builder.info.file_format.value}, expected tfrecord "
            "files on a local disk, since its images are read in random order; prepare or copy it so"
        )
    return paths


def _places(builder: "tfds.core.DatasetBuilder", split: str, paths: list[str]) -> tuple[np.ndarray, ...]:
    """Of each record, the number of its file, and offset and length in it: int64 N each."""
    with ThreadPoolExecutor(16) as pool:  # hundreds of files on a disk with some latency
        places = list(pool.map(record_places, paths))
    counts = [len(place) for place in places]
    if sum(counts) != builder.info.splits[split].num_examples:
        raise UserError(
            f"{builder.data_dir}: {sum(counts)} records of split {split} came, expected "
            f"{builder.info.splits[split].num_examples} from dataset_info.json; prepare the data set again"
        )
    return np.repeat(np.arange(len(paths)), counts), *np.concatenate(places).T


def _kept_labels(paths: list[str], count: int, classes: int) -> np.ndarray | None:
    """The labels that moco_tf.pack wrote beside the files, int32 N; None where there are none or they do not fit."""
    try:
        labels = np.concatenate([np.load(f"{path}.npy", mmap_mode="r") for path in paths])  # mapped: sizes are checked
    except (OSError, ValueError, EOFError):
        return None
    labels = labels[labels >= -1]  # without the images that were left out
    fits = labels.dtype == np.int32 and labels.shape == (count,) and labels.max(initial=-1) < classes
    return labels if fits else None


def record_places(path: str) -> np.ndarray:
    """Offset and length in bytes of the data of each record in a TFRecord file, int64 Nx2. Reads the lengths only.

    A record is its length (8 bytes, little-endian), a checksum (4), the data, and a checksum (4).
    """
    places, position = [], 0
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while position + 16 <= size:
                (length,) = struct.unpack("<Q", os.pread(file.fileno(), 8, position))
                places.append((position + 12, length))
                position += 16 + length
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy or prepare the data set again") from None
    if position != size:
        raise UserError(f"{path}: {size} bytes came, expected {position} by its last record; copy or prepare it again")
    return np.array(places, np.int64).reshape(-1, 2)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
