"""Images in folders: train/<class>/ and val/<class>/ (or test/), or images alone, without labels."""

import os

import numpy as np
import tensorflow as tf

from moco_tf.data.sources import RecordSource
from moco_tf.errors import UserError

# The last row cannot be decoded: these are listed as unreadable instead of being passed over in silence.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".heic", ".avif", ".jp2", ".jxl", ".ppm", ".pgm"),
)
_LAYOUT = "expected train/<class>/ and val/<class>/ with images, or only images"


def load(split: str, data_dir: str | None) -> RecordSource:
    """The images below data_dir/train, or below data_dir/val or test; without train/, all images below data_dir.

    Classes are the folders in train/, in sorted order. Images directly in train/ or data_dir have label -1. Hidden
    files and folders are not read. Raises UserError.
    """
    if not data_dir:
        raise UserError(f"--dataset=folder came without --data_dir; {_LAYOUT}")
    if not os.path.isdir(data_dir):
        raise UserError(f"--data_dir={data_dir} is not a folder; {_LAYOUT}")
    train_dir = os.path.join(data_dir, "train")
    split_dir = _split_dir(data_dir, train_dir, split)
    class_names = tuple(_subfolders(train_dir)) if os.path.isdir(train_dir) else ()
    paths, labels = _labelled(split_dir, train_dir, class_names) if class_names else _unlabelled(split_dir)

    def read(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.io.read_file(path), label

    encoded = np.array([os.fsencode(path) for path in paths], object)
    return RecordSource("folder", (encoded, labels), read, paths.__getitem__, labels, class_names)


def is_here(data_dir: str | None) -> bool:
    """Whether the folder is there."""
    return bool(data_dir) and os.path.isdir(data_dir or "")


def _split_dir(data_dir: str, train_dir: str, split: str) -> str:
    held_out = [os.path.join(data_dir, name) for name in ("val", "test")]
    held_out = [path for path in held_out if os.path.isdir(path)]
    if not os.path.isdir(train_dir) and held_out:
        raise UserError(f"{data_dir} has {os.path.basename(held_out[0])}/ but no train/; {_LAYOUT}")
    if split == "train":
        return train_dir if os.path.isdir(train_dir) else data_dir
    if not held_out:
        raise UserError(
            f"{data_dir} has neither val/ nor test/, expected one of them to evaluate on; put images with the class "
            "folders of train/ there"
        )
    return held_out[0]


def _labelled(split_dir: str, train_dir: str, class_names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Paths, sorted within each class, and labels, int32 N."""
    loose = [entry.name for entry in os.scandir(split_dir) if entry.is_file() and _is_image(entry.name)]
    if loose:
        raise UserError(
            f"{split_dir} has {len(loose)} images beside the class folders (such as {min(loose)!r}), expected "
            "images in class folders only; move them into one"
        )
    class_dirs = _subfolders(split_dir)
    unknown = sorted(set(class_dirs) - set(class_names))
    if unknown:
        raise UserError(
            f"{split_dir} has the class {unknown[0]!r} ({len(unknown)} such), expected only classes of {train_dir}; "
            "rename or remove it"
        )
    if not class_dirs:
        raise UserError(f"{split_dir} has no class folders, expected those of {train_dir}; {_LAYOUT}")
    paths: list[str] = []
    counts = []
    for name in class_dirs:
        found = _images_below(os.path.join(split_dir, name))
        if not found:
            raise UserError(
                f"{os.path.join(split_dir, name)} has no images, expected some ({', '.join(EXTENSIONS[:6])}); "
                "add them or remove the folder"
            )
        paths += found
        counts.append(len(found))
    labels = np.repeat([class_names.index(name) for name in class_dirs], counts).astype(np.int32)
    return paths, labels


def _unlabelled(split_dir: str) -> tuple[list[str], np.ndarray]:
    paths = _images_below(split_dir)
    if not paths:
        raise UserError(f"{split_dir} has no images ({', '.join(EXTENSIONS[:6])}); {_LAYOUT}")
    return paths, np.full(len(paths), -1, np.int32)


def _subfolders(path: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _images_below(folder: str) -> list[str]:
    """All images below folder, sorted. Follows links, each folder once."""
    paths, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            paths += [os.path.join(parent, name) for name in files if _is_image(name)]
        seen.add(real)
    return sorted(paths)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")
