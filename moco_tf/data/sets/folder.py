"""Images in folders: train/<class>/ and val/<class>/, <class>/ alone, or images without labels."""

import functools
import itertools
import mimetypes
import os
from collections import Counter
from collections.abc import Container
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from moco_tf.data import decoding
from moco_tf.data.sources import RecordSource
from moco_tf.errors import UserError
from moco_tf.training.launcher import note

HELD_OUT = ("val", "valid", "validation", "test")
_TRAINING = ("train", "training")  # in small letters, what is meant for train/
_LAYOUT = "expected train/<class>/ and val/<class>/ with images, <class>/ with images, or only images"
_TYPES = mimetypes.MimeTypes()  # Python's own table of what names say
_LOOKED_AT = 200  # images of a set, evenly spread, that are searched for what is unusual


class _Found(NamedTuple):
    """The images below a folder, sorted: those below each of its subfolders, and those in itself."""

    folder: str
    classes: dict[str, list[str]]
    loose: list[str]


def load(split: str, data_dir: str | None) -> RecordSource:
    """The images below data_dir/train, or below the first of data_dir/val, valid, validation and test.

    Classes are the folders in train/, in sorted order. Without train/ they are the folders in data_dir, where two or
    more have images and no images lie beside them; else all images below data_dir are read, with label -1. Hidden files
    and folders are not read. Images are recognised by their names or else by their contents. Raises UserError.
    """
    if not data_dir:
        raise UserError(f"--dataset=folder came without --data_dir; {_LAYOUT}")
    if not os.path.isdir(data_dir):
        raise UserError(f"--data_dir={data_dir} is not a folder; {_LAYOUT}")
    train_dir = _train_dir(data_dir)
    found = _find(train_dir if split == "train" else _held_out_dir(data_dir))
    class_names = tuple(_subfolders(train_dir) if train_dir != data_dir else _class_folders(found))
    paths, labels = _labelled(found, train_dir, class_names) if class_names else _unlabelled(found)
    white = _white(found.folder, paths)
    if white and split != "train":  # the same for both splits
        white = _white(train_dir, _unlabelled(_find(train_dir))[0]) or white
    return of_paths(paths, labels, class_names, white)


def of_paths(
    paths: list[str], labels: np.ndarray | None = None, class_names: tuple[str, ...] = (), white: int | None = None
) -> RecordSource:
    """The images of these files.

    Args:
        paths: N.
        labels: int32 N; default: none.
        class_names: of the labels.
        white: of RecordSource; default: looked up in the files.
    """
    white = _white("the images", paths) if white is None else white
    labels = np.full(len(paths), -1, np.int32) if labels is None else labels

    def read(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.io.read_file(path), label

    encoded = np.array([os.fsencode(path) for path in paths], object)
    return RecordSource("folder", (encoded, labels), read, paths.__getitem__, labels, class_names, white=white)


def images(place: str) -> list[str]:
    """Paths of all images below a folder, sorted. Raises UserError: there are none."""
    return _unlabelled(_find(place))[0]


def beside(data_dir: str, splits: Container[str]) -> list[str]:
    """Paths of the images below a folder with train/ that are of none of these of its splits, sorted."""
    if not has_splits(data_dir):
        return []
    taken = {os.path.realpath(_train_dir(data_dir))}
    taken |= {os.path.realpath(_held_out_dir(data_dir))} if "test" in splits else set()
    there = [os.path.join(data_dir, name) for name in _subfolders(data_dir)]
    passed_over = Counter[str]()
    paths = _images_among(data_dir, _files(data_dir), passed_over)
    for path in there:
        paths += _images_below(path, passed_over) if os.path.realpath(path) not in taken else []
    return sorted(paths)


def has_splits(data_dir: str | None) -> bool:
    """Whether it has train/: what else lies there are the images of one split."""
    return os.path.isdir(os.path.join(data_dir or "", "train"))


def is_here(data_dir: str | None) -> bool:
    """Whether the folder is there."""
    return bool(data_dir) and os.path.isdir(data_dir or "")


def _train_dir(data_dir: str) -> str:
    """data_dir/train, or data_dir where the classes or images lie in it."""
    there = _subfolders(data_dir)
    if "train" in there:
        return os.path.join(data_dir, "train")
    if spelt := [name for name in there if name.lower() in _TRAINING]:
        raise UserError(
            f"{data_dir} has {spelt[0]}/ but no train/ ({_contents(data_dir)}), expected train/ and val/ or another of "
            f"{', '.join(HELD_OUT)}; rename them"
        )
    if held_out := [name for name in HELD_OUT if name in there]:
        raise UserError(f"{data_dir} has {held_out[0]}/ but no train/ ({_contents(data_dir)}); {_LAYOUT}")
    for path in (os.path.join(data_dir, name) for name in there):
        below = _subfolders(path)
        if "train" in below and set(below) & set(HELD_OUT):
            raise UserError(f"{data_dir} has no train/, and {path} has one; give --data_dir={path}")
    return data_dir


def _held_out_dir(data_dir: str) -> str:
    there = _subfolders(data_dir)
    if held_out := [name for name in HELD_OUT if name in there]:
        if others := held_out[1:]:
            note(f"{data_dir}: the test images are those of {held_out[0]}/, none of {'/, '.join(others)}/")
        return os.path.join(data_dir, held_out[0])
    raise UserError(
        f"{data_dir} has neither val/ nor test/, nor valid/ or validation/ ({_contents(data_dir)}), expected one to "
        "evaluate on, with the class folders of train/; or give --holdout=N to keep N training images out for that"
    )


def _class_folders(found: _Found) -> list[str]:
    """The folders that are classes without being in train/."""
    names = [name for name, paths in found.classes.items() if paths]
    if len(names) < 2:
        return []
    if found.loose:
        note(
            f"{found.folder}: {len(found.loose)} images (such as {os.path.basename(found.loose[0])}) lie beside "
            f"{len(names)} folders with images: all are read without labels"
        )
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    empty = ", ".join(name for name, paths in found.classes.items() if not paths)
    without = f"; without images, and no classes: {empty}" if empty else ""
    note(f"{found.folder} has no train/: its {len(names)} folders with images are the classes ({shown}){without}")
    return names


def _labelled(found: _Found, train_dir: str, class_names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Paths, sorted within each class, and labels, int32 N."""
    folder, classes, loose = found
    if loose:
        raise UserError(
            f"{folder} has {len(loose)} images beside the class folders (such as {os.path.basename(loose[0])!r}), "
            "expected images in class folders only; move them into one"
        )
    if folder == train_dir:
        classes = {name: classes[name] for name in class_names}
    if unknown := sorted(set(classes) - set(class_names)):
        raise UserError(
            f"{folder} has the class {unknown[0]!r} ({len(unknown)} such), expected only classes of {train_dir}; "
            "rename or remove it"
        )
    if not classes:
        raise UserError(
            f"{folder} has no class folders ({_contents(folder)}), expected those of {train_dir}; {_LAYOUT}"
        )
    if empty := [name for name, paths in classes.items() if not paths]:
        path = os.path.join(folder, empty[0])
        raise UserError(f"{path} has no images ({_contents(path)}), expected some; add them or remove the folder")
    counts = [len(paths) for paths in classes.values()]
    labels = np.repeat([class_names.index(name) for name in classes], counts).astype(np.int32)
    return list(itertools.chain(*classes.values())), labels


def _unlabelled(found: _Found) -> tuple[list[str], np.ndarray]:
    """Paths, each real folder's once, and labels -1."""
    real, once = functools.cache(os.path.realpath), dict[tuple[str, str], str]()
    for path in sorted(itertools.chain(found.loose, *found.classes.values())):
        parent, name = os.path.split(path)
        once.setdefault((real(parent), name), path)
    if not once:
        raise UserError(f"{found.folder} has no images ({_contents(found.folder)}); {_LAYOUT}")
    return list(once.values()), np.full(len(once), -1, np.int32)


def _white(folder: str, paths: list[str]) -> int:
    """What is white in images of more than 8 bits: all bits of the brightest, as a camera has them; 0 without any.

    Says that, and what else is unusual in the images looked at.
    """
    chosen = np.unique(np.linspace(0, len(paths) - 1, _LOOKED_AT).astype(int))
    said, largest = Counter[str](), 0
    for index in chosen:
        try:
            with open(paths[index], "rb") as file:
                words, value = decoding.look(file)
        except (OSError, ValueError):  # the reader will list it
            continue
        said[words] += 1
        largest = max(largest, value)
    bits = min(31, max(8, largest.bit_length() + largest.bit_length() % 2))  # Pillow's widest integers have a sign
    white = 2**bits - 1 if said[decoding.DEEP] else 0
    for words, count in said.items():
        scaled = f": scaled from 0 to {white}, the {bits} bits that their values take" if words == decoding.DEEP else ""
        if words:
            note(f"{folder}: {count} of {len(chosen)} images looked at have {words}{scaled}")
    return white


def _subfolders(path: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _files(path: str) -> list[str]:
    return [entry.name for entry in os.scandir(path) if not entry.is_dir()]


def _contents(folder: str) -> str:
    """What is in a folder, for messages."""
    names = [f"{name}/" for name in _subfolders(folder)]
    files = Counter(_kind(entry.name) for entry in os.scandir(folder) if not entry.is_dir())
    names = names[:6] + ["..."] * (len(names) > 6) + [f"{count} {kind}" for kind, count in files.most_common(4)]
    return f"it holds {', '.join(names)}" if names else "it is empty"


def _find(folder: str) -> _Found:
    """Searches a folder for images and says which files are passed over."""
    passed_over: Counter[str] = Counter()
    classes = {name: _images_below(os.path.join(folder, name), passed_over) for name in _subfolders(folder)}
    found = _Found(folder, classes, _images_among(folder, _files(folder), passed_over))
    if passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in passed_over.most_common())
        note(f"{folder}: passed over, as no images: {kinds}")
    return found


def _images_below(folder: str, passed_over: Counter[str]) -> list[str]:
    """All images below folder, sorted. Follows links, each folder once."""
    paths, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            paths += _images_among(parent, files, passed_over)
        seen.add(real)
    return sorted(paths)


def _images_among(parent: str, files: list[str], passed_over: Counter[str]) -> list[str]:
    paths = []
    for name in sorted(files):
        if name.startswith("."):
            continue
        path = os.path.join(parent, name)
        if name.lower().endswith(decoding.extensions()) or _is_nameless_image(path):
            paths.append(path)
        else:
            passed_over[_kind(name)] += 1
    return paths


def _is_nameless_image(path: str) -> bool:
    """Whether a file, whose name says nothing, is an image."""
    says_nothing = _TYPES.guess_type(path)[0] in (None, "application/octet-stream")
    return says_nothing and os.path.isfile(path) and decoding.is_image(path)  # a pipe would never end


def _kind(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without extension"
