"""Finds a data set by name: a file of this folder, a Python module of the user's, or a name of TensorFlow Datasets.

--dataset=folder is data/sets/folder.py, --dataset=my_package.birds is the user's module my_package.birds. Such a module
has

    load(split, data_dir) -> Source     the "train" or the "test" images, see data/sources.py; it may raise UserError
    NORMALISATION = (mean, std)         of R, G and B in [0, 1]; optional, else they are measured
    is_here(data_dir) -> bool           whether `load` would download nothing; optional, else no
"""

import re
from types import ModuleType

from moco_tf.config import find
from moco_tf.data.sets import tfds
from moco_tf.data.sources import Source
from moco_tf.errors import UserError

SPLITS = ("train", "test")


def load(dataset: str, split: str, data_dir: str | None = None) -> Source:
    """The "train" or "test" split of a data set.

    "test" is the test split, or the validation split where there is no other. Raises UserError.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} came, expected one of {', '.join(SPLITS)}")
    own = module(dataset)
    return own.load(split, data_dir) if own else tfds.load(dataset, split, data_dir)


def module(dataset: str) -> ModuleType | None:
    """The module of a set; None when TensorFlow Datasets has to know it. Raises UserError."""
    if dataset == "packed":
        raise UserError(
            "--dataset=packed is gone: pack the images again, with --output=DIR/NAME, and read them with "
            "--dataset=NAME --data_dir=DIR"
        )
    if dataset not in tfds.OWN and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", dataset):
        return None
    found = find.imported("dataset", dataset)
    if not callable(getattr(found, "load", None)):
        raise UserError(f"--dataset={dataset} has no function load, expected load(split, data_dir) -> Source; add it")
    return found
