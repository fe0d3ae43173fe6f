"""Fashion-MNIST: from TensorFlow Datasets when prepared, from the files of Debian's package, or by a download."""

import glob
import gzip
import os
import struct
import zlib

import numpy as np

from moco_tf.data.sets import tfds
from moco_tf.data.sources import ArraySource, Source
from moco_tf.errors import UserError

DEBIAN_DIR = "/usr/share/datasets/fashion-mnist"  # where the Debian package dataset-fashion-mnist puts its files
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
NORMALISATION = (0.2860,) * 3, (0.3530,) * 3  # of its 60,000 training images
_MAX_BYTES = 1 << 26  # the training images take 47,040,016
_PREFIX = {"train": "train", "test": "t10k"}


def load(split: str, data_dir: str | None = None) -> Source:
    """Fashion-MNIST, 28x28. Tries prepared TFDS data, the idx files in data_dir, Debian's, then a TFDS download."""
    version = _prepared_version(data_dir or tfds.default_dir())
    if version:
        return tfds.load(f"fashion_mnist:{version}", split, data_dir)
    for folder in (data_dir, DEBIAN_DIR):
        if folder and all(os.path.exists(path) for path in _paths(folder, split)):
            return load_idx(folder, split)
    try:
        return tfds.load("fashion_mnist", split, data_dir)
    except UserError as error:
        raise UserError(
            f"Fashion-MNIST: no prepared data in {data_dir or tfds.default_dir()}, no files in {DEBIAN_DIR} and "
            "no download; expected one of them: run `apt-get install dataset-fashion-mnist`, or give --data_dir with "
            "the prepared data"
        ) from error


def is_here(data_dir: str | None) -> bool:
    """Whether TFDS has prepared it, or the files are there."""
    return tfds.is_here("fashion_mnist", data_dir) or os.path.isdir(data_dir or DEBIAN_DIR)


def load_idx(folder: str, split: str) -> ArraySource:
    """Fashion-MNIST from the four *-ubyte.gz files in folder."""
    images_path, labels_path = _paths(folder, split)
    images = read_idx(images_path, dims=3)
    labels = read_idx(labels_path, dims=1)
    if len(images) != len(labels):
        raise UserError(
            f"{labels_path}: {len(labels)} labels came, expected {len(images)}, one for each image of {images_path}; "
            "take both files from the same place"
        )
    if images.shape[1:] != (28, 28) or len(labels) == 0 or labels.max() > 9:
        raise UserError(
            f"{folder}: {images.shape[0]} images of {images.shape[1]}x{images.shape[2]} with labels up to "
            f"{labels.max(initial=0)} came, expected 28x28 with labels 0 to 9; these are not Fashion-MNIST's files"
        )
    return ArraySource("fashion_mnist", images[..., None], labels.astype(np.int32), CLASS_NAMES)


def read_idx(path: str, dims: int) -> np.ndarray:
    """The uint8 array of a gzipped idx file (bytes 0 0 8 dims, big-endian sizes, then the data)."""
    fix = "get the file again (apt-get install --reinstall dataset-fashion-mnist)"
    try:
        with gzip.open(path) as file:
            data = file.read(_MAX_BYTES)  # more cannot be what is expected: a short file can promise terabytes
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}), expected a gzip file; {fix}") from error
    magic = bytes([0, 0, 8, dims])
    if data[:4] != magic or len(data) < 4 + 4 * dims:
        raise UserError(
            f"{path}: {len(data)} bytes beginning with {data[:4].hex()} came, expected an idx file beginning with "
            f"{magic.hex()}; {fix}"
        )
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
    size = int(np.prod(shape, dtype=np.uint64))
    if len(data) != 4 + 4 * dims + size:
        raise UserError(
            f"{path}: {len(data) - 4 - 4 * dims} bytes of data came, expected {size} for the shape "
            f"{'x'.join(map(str, shape))} of its header; {fix}"
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _paths(folder: str, split: str) -> tuple[str, str]:
    prefix = os.path.join(folder, _PREFIX[split])
    return f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"


def _prepared_version(tfds_dir: str) -> str | None:
    """The newest version that TFDS has prepared there. Looked up without TFDS, which is slow to import."""
    infos = glob.glob(os.path.join(glob.escape(tfds_dir), "fashion_mnist", "*.*.*", "dataset_info.json"))
    versions = [os.path.basename(os.path.dirname(info)) for info in infos]
    return max(versions, key=lambda version: [int(part) for part in version.split(".") if part.isdigit()], default=None)
