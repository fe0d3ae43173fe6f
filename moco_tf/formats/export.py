"""Exports: an encoder is written in a format, loaded back, compared, and only then put where it was to go.

A card that says what it is goes with it: README.md in a folder, or encoder.pth.md beside encoder.pth.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from moco_tf import formats
from moco_tf.errors import UserError
from moco_tf.formats import base, card, comparison, savedmodel
from moco_tf.formats.base import Loaded, UnfitEncoder

ALL = "all"  # the format that stands for all of them


def export(
    subject: Loaded, name: str, output: str | None, dataset: str | None = None, data_dir: str | None = None
) -> str:
    """Writes an encoder in a format, or in all, on the CPU (TensorFloat-32 of a GPU would blur the comparison).

    Args:
        subject: the encoder in float32, with the image size and normalisation to use it with, see `prepared`.
        name: of the format, or "all": those whose packages are installed and that can hold the encoder.
        output: the file to write, or the folder (of formats without a suffix, and of all).
        dataset: whose images to compare on; None: what the encoder was trained on, if it is on this machine.
        data_dir: where the data set is.

    Returns:
        What was written and how it compares, in words.

    Raises:
        UserError: output cannot be written or holds something else, a package is missing, a converter fails, or what
            was written does not give what the encoder gives. Nothing is left then, and an earlier export stands.
    """
    target = check(name, output)
    with tf.device("/CPU:0"):
        images, compared_on = comparison.images(dataset, data_dir, subject)
        with _draft_of(target, output) as made:
            differences = _write_all(subject, name, made, images)
            _publish(made, target)
    about = "a card beside each" if name == ALL else str(card.place(target, formats.find(name).SUFFIX))
    return (
        f"{output}{f' with {len(differences)} formats' if name == ALL else ''} was loaded back and gives what "
        f"{subject.path} gives on {len(images)} images ({compared_on}; largest difference "
        f"{max(differences.values()):.1g} of the largest value); {about} says how to use it"
    )


def prepared(loaded: Loaded, image_size: int = 0, test_resize: int | None = None, normalise: str = "auto") -> Loaded:
    """An encoder with the image size and normalisation that it will be used with.

    Other programs' files do not say them; if the arguments do not either, they are assumed, and `source` says so.

    Args:
        loaded: the encoder.
        image_size, test_resize, normalise: see `base.used_with`.
    """
    if not loaded.image_size:
        told = {"image size": image_size, "normalisation": normalise != "auto"}
        assumed = " and ".join(name for name, value in told.items() if not value)
        if assumed:
            loaded = dataclasses.replace(loaded, source=f"{loaded.source}, which does not say {assumed}: assumed")
            print(f"{loaded.path} is a {loaded.source}; --image_size and --normalise set others", flush=True)
    return base.used_with(loaded, image_size or loaded.image_size or 224, test_resize, normalise)


def check(name: str, output: str | None) -> pathlib.Path:
    """Where to write. Raises UserError if output is missing, has another suffix, or something else is there."""
    suffix = "" if name == ALL else formats.find(name).SUFFIX
    example = f"the file to write, for example --output=encoder{suffix}"
    if not suffix:
        example = f"the folder to write, for example --output={'exports' if name == ALL else 'encoder'}/"
    if not output:
        raise UserError(f"--output is missing; give {example}")
    target = pathlib.Path(os.path.realpath(output))
    if suffix and target.suffix != suffix:
        raise UserError(f"--output={output} came, expected a name that ends in {suffix}; give {example}")
    try:
        taken = _in_the_way(name, target, suffix)
    except OSError as error:
        raise _unwritable(output, error) from None
    if taken:
        raise UserError(f"--output={output}: {taken} exists and is no earlier export; give another or move it away")
    return target


def part(name: str) -> str:
    """What a format is called among all formats."""
    suffix = formats.find(name).SUFFIX
    return f"encoder{suffix}" if suffix else name


def _unwritable(output: str | None, error: OSError) -> UserError:
    return UserError(f"--output={output} cannot be written ({error.strerror}); give another place or mend this one")


def _in_the_way(name: str, target: pathlib.Path, suffix: str) -> pathlib.Path | None:
    """What is where the export goes and is neither an earlier export nor an empty folder for a folder."""
    if suffix:
        about = card.place(target, suffix)
        replaceable = card.is_card(about)
        return next((p for p in (target, about) if p.exists() and not (replaceable and p.is_file())), None)
    if not target.exists():
        return None
    names = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    cards, known = [card.place(target, "")], set(savedmodel.CONTENTS)
    if name == ALL:
        cards = [card.place(target / part(each), formats.find(each).SUFFIX) for each in formats.NAMES]
        known = {part(each) for each in formats.NAMES} | {path.name for path in cards if path.parent == target}
    return target if names and not (names <= known and any(map(card.is_card, cards))) else None


@contextlib.contextmanager
def _draft_of(target: pathlib.Path, output: str | None) -> Iterator[pathlib.Path]:
    """A path to write to first, in a folder that is removed, as are new folders above it if the export fails."""
    draft = target.parent / f".{target.name}.draft"
    new = [folder for folder in target.parents if not folder.exists()]
    try:
        shutil.rmtree(draft, ignore_errors=True)  # one that a killed export left
        draft.mkdir(parents=True)
        yield draft / target.name
    except OSError as error:
        raise _unwritable(output, error) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for folder in new:
            with contextlib.suppress(OSError):  # the export is in it
                folder.rmdir()


def _write_all(subject: Loaded, name: str, made: pathlib.Path, images: list[np.ndarray]) -> dict[str, float]:
    """Writes and compares each format: {name: largest difference}. Of all formats those that do not fit are left out.

    Args:
        subject: the encoder.
        name: what was asked for.
        made: the file or folder to write.
        images: what to compare on, uint8 HxWx3 each.
    """
    differences: dict[str, float] = {}
    for each in formats.NAMES if name == ALL else [name]:
        try:
            path = _write(each, subject, made / part(each) if name == ALL else made)
        except UnfitEncoder as error:
            if name != ALL:
                raise
            print(f"left out: {error}", flush=True)
            continue
        differences[each] = _compare(each, subject, path, images)
    return differences


def _write(name: str, subject: Loaded, path: pathlib.Path) -> pathlib.Path:
    """Writes an export of one format and its card; returns path."""
    kind = formats.find(name)
    path.parent.mkdir(exist_ok=True)
    kind.write(subject, path)
    about = card.text(subject, path.name, kind.use(subject, path.name))
    card.place(path, kind.SUFFIX).write_text(about, encoding="utf-8")
    return path


def _compare(name: str, subject: Loaded, path: pathlib.Path, images: list[np.ndarray]) -> float:
    kind = formats.find(name)
    given = images
    if not kind.ANY_SIZE:  # their size is the network's then, and test_resize would resize them once more
        given = [comparison.at_network_size(image, subject) for image in images]
        subject = dataclasses.replace(subject, test_resize=subject.image_size)
    return comparison.compare(kind.outputs(path, subject, given), comparison.reference(subject, given))


def _publish(made: pathlib.Path, target: pathlib.Path) -> None:
    """Moves an export and its card out of the draft folder, in place of an earlier one."""
    if not made.is_dir():
        # The card first: without it the file would seem foreign.
        os.replace(card.place(made, made.suffix), card.place(target, target.suffix))
        os.replace(made, target)
        return
    earlier = made.with_name(f"{made.name}.earlier")  # is removed with the draft folder
    if target.exists():
        os.replace(target, earlier)
    try:
        os.replace(made, target)
    except OSError:
        if earlier.exists():
            os.replace(earlier, target)
        raise
