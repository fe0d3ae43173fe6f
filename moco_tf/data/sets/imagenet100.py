"""ImageNet-100: the images of ImageNet-2012 in 100 of its classes (about 126,700 to train on, 5,000 to validate).

The classes are those of Contrastive Multiview Coding (Tian et al., 2020), drawn at random there; the list is the file
imagenet100.txt of HobbitLong/CMC, sorted. They are labelled 0 to 99 in this order, as class folders would be.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib

import numpy as np
import tensorflow as tf

from moco_tf.config.types import cache_folder
from moco_tf.data.sets import tfds
from moco_tf.data.sources import RecordSource
from moco_tf.errors import UserError

_WORDNET_IDS = """
n01558993 n01692333 n01729322 n01735189 n01749939 n01773797 n01820546 n01855672 n01978455 n01980166
n01983481 n02009229 n02018207 n02085620 n02086240 n02086910 n02087046 n02089867 n02089973 n02090622
n02091831 n02093428 n02099849 n02100583 n02104029 n02105505 n02106550 n02107142 n02108089 n02109047
n02113799 n02113978 n02114855 n02116738 n02119022 n02123045 n02138441 n02172182 n02231487 n02259212
n02326432 n02396427 n02483362 n02488291 n02701002 n02788148 n02804414 n02859443 n02869837 n02877765
n02974003 n03017168 n03032252 n03062245 n03085013 n03259280 n03379051 n03424325 n03492542 n03494278
n03530642 n03584829 n03594734 n03637318 n03642806 n03764736 n03775546 n03777754 n03785016 n03787032
n03794056 n03837869 n03891251 n03903868 n03930630 n03947888 n04026417 n04067472 n04099969 n04111531
n04127249 n04136333 n04229816 n04238763 n04336792 n04418357 n04429376 n04435653 n04485082 n04493381
n04517823 n04589890 n04592741 n07714571 n07715103 n07753275 n07831146 n07836838 n13037406 n13040303
"""
CLASS_NAMES = tuple(_WORDNET_IDS.split())
NORMALISATION = tfds.IMAGENET


def load(split: str, data_dir: str | None = None) -> RecordSource:
    """The "train" or "test" (ImageNet's validation) split, from TFDS's imagenet2012. Raises UserError.

    The first time all of imagenet2012's records are read for their labels; see `_labels`.
    """
    try:
        whole = tfds.load("imagenet2012", split, data_dir)
    except UserError as error:
        raise UserError(f"--dataset=imagenet100 is taken from imagenet2012: {error}") from error
    if not isinstance(whole, RecordSource):
        raise UserError("imagenet2012 has images of one size, expected ImageNet's own; prepare it again")
    return select(whole, _labels(whole, split), CLASS_NAMES, "imagenet100")


def is_here(data_dir: str | None) -> bool:
    """Whether TFDS has prepared ImageNet."""
    return tfds.is_here("imagenet2012", data_dir)


def select(source: RecordSource, labels: np.ndarray, class_names: tuple[str, ...], name: str) -> RecordSource:
    """The examples of some classes, labelled by their place in class_names.

    Args:
        labels: those of the source, int32 N; examples with -1 are left out.
        class_names: WordNet ids or other names, all of them among the source's.
        name: of the new source.
    """
    table = np.full(source.num_classes, -1, np.int32)
    table[[source.class_names.index(class_name) for class_name in class_names]] = np.arange(len(class_names))
    new_labels = np.where(labels < 0, -1, table[labels])
    chosen = np.flatnonzero(new_labels >= 0)
    return dataclasses.replace(
        source.subset(chosen).labelled(new_labels[chosen], class_names), name=name, read_span=None
    )


def _labels(source: RecordSource, split: str) -> np.ndarray:
    """The labels of all records, int32 N, -1 where one is damaged; kept in the user's cache folder.

    TFDS keeps them in the records, mixed at random, so that all of ImageNet (147 GB) is read once for them: two to six
    minutes where the disk gives 0.4 GB/s or more (70 to 270 us a record of 110 kB on two CPU cores). The cache goes by
    the records' places, hence holds for copies of the data as well.
    """
    digest = hashlib.sha256(b"".join(column.tobytes() for column in source.entries(np.arange(source.num_examples))))
    cache = cache_folder() / f"{source.name}-{split}-labels-{digest.hexdigest()[:16]}.npy"
    labels = _read_cache(cache)
    if labels is None or labels.shape != (source.num_examples,):
        print(f"reading {source.num_examples} records of {source.name} once, for their labels", flush=True)
        labels = _read_labels(source)
        _write_cache(cache, labels)
    return labels


def _read_labels(source: RecordSource) -> np.ndarray:
    indices = np.arange(source.num_examples)
    labels = np.full(source.num_examples, -1, np.int32)
    with tf.device("/CPU:0"):
        dataset = tf.data.Dataset.from_tensor_slices((indices, *source.entries(indices)))
        dataset = dataset.map(
            lambda index, *entries: (index, source.read(*entries)[1]),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        for index, label in dataset.ignore_errors(log_warning=False).batch(1024).as_numpy_iterator():
            labels[index] = label
    return labels


def _read_cache(path: pathlib.Path) -> np.ndarray | None:
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError):  # not there, or damaged
        return None


def _write_cache(path: pathlib.Path, labels: np.ndarray) -> None:
    draft = path.with_name(f"{path.stem}.{os.getpid()}.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(draft, labels)
        os.replace(draft, path)
    except OSError:  # a home that cannot be written to: read the labels again next time
        with contextlib.suppress(OSError):
            draft.unlink()
