"""Parts of a training set: a balanced share of the labels, or the images that a list names."""

import os
import pathlib

import numpy as np

from moco_tf.data.sources import RecordSource, Source
from moco_tf.errors import UserError

_OTHERWISE = (
    "TensorFlow Datasets has ImageNet's official subsets as --dataset=imagenet2012_subset/1pct and /10pct; or pack the "
    "images, or give them as --dataset=folder"
)


def balanced(source: Source, share: float, seed: int) -> Source:
    """The same share of the images of each class, rounded, one at least.

    One seed's smaller share is part of its larger ones. Images without a label are left out.

    Args:
        source: labelled images.
        share: in (0, 1].
        seed: of the choice.

    Raises:
        UserError: the labels are not known before the images are read.
    """
    if source.labels is None:
        raise UserError(
            f"--train_fraction={share:g} came with {source.name}, expected labels that are known before the images are "
            f"read; {_OTHERWISE}"
        )
    order = np.random.default_rng([seed, 1]).permutation(source.num_examples)
    labels = source.labels[order]
    of_each = [order[labels == label] for label in range(source.num_classes)]
    chosen = [rows[: max(1, round(share * len(rows)))] for rows in of_each]
    return source.subset(np.sort(np.concatenate(chosen)))


def listed(source: Source, path: str) -> Source:
    """The images whose files a list names, one a line, alone or with the folders above: n01440764/n01440764_18.JPEG.

    SimCLR's lists of 1 % and 10 % of ImageNet (imagenet_subsets/1percent.txt) are such.

    Raises:
        UserError: the list cannot be read, or names what is not there, or not there once.
    """
    try:
        names = pathlib.Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--train_list={path} cannot be read ({error}); give a text file, a name a line") from None
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UserError(f"--train_list={path} is empty, expected a name a line")
    if not isinstance(source, RecordSource) or source.name != "folder":
        raise UserError(
            f"--train_list={path} came with {source.name}, expected --dataset=folder, whose files have names"
        )
    files: dict[str, list[int]] = {}
    for index in range(source.num_examples):
        files.setdefault(os.path.basename(source.describe(index)), []).append(index)
    chosen = [_find(source, name, files, path) for name in names]
    twice = len(chosen) - len(set(chosen))
    if twice:
        raise UserError(f"--train_list={path} names {twice} images more than once, expected each once; remove them")
    return source.subset(np.sort(np.array(chosen)))


def _find(source: RecordSource, name: str, files: dict[str, list[int]], path: str) -> int:
    there = [i for i in files.get(os.path.basename(name), ()) if f"/{source.describe(i)}".endswith(f"/{name}")]
    if len(there) != 1:
        came = "is not among" if not there else f"fits {len(there)} of"
        raise UserError(
            f"--train_list={path}: {name!r} {came} the {source.num_examples} training images, expected it to name one; "
            "give file names, with the folders above where names repeat"
        )
    return there[0]
