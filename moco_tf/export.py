"""Writes an encoder for use elsewhere: to serve and fine-tune in TensorFlow or Keras, for PyTorch, Detectron2, ONNX.

    python -m moco_tf.export --load=runs/v2 --format=savedmodel --output=encoder/
    python -m moco_tf.export --load=runs/v2 --format=pth --output=encoder.pth       # or keras, detectron2, onnx, tflite
    python -m moco_tf.export --load=runs/v2 --format=all --output=exports/

Everything is float32. What was written is loaded back and compared with the encoder on images, and only then appears
at --output, with a card that says what it is: README.md in a folder, or encoder.pth.md beside encoder.pth.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import types
from collections.abc import Iterator

import tensorflow as tf

from moco_tf import formats
from moco_tf.config import define
from moco_tf.config.options import Export
from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.errors import UserError
from moco_tf.formats import base_comparison as comparison
from moco_tf.run import program
from moco_tf.training import collectives, device
from moco_tf.weights import card, savedmodel
from moco_tf.weights.load import SOURCES, Loaded
from moco_tf.weights.load import load as load_encoder


def main(options: Export) -> None:
    """Exports with the given options."""
    o = types.SimpleNamespace(**define.values_of(options))
    if not collectives.is_first_rank():
        return  # one process does it all
    target, names = check(o), available(o.format)
    configure()
    subject = load(o)
    images, source = comparison.images(o.dataset, o.data_dir, subject)
    squares = [comparison.at_network_size(image, subject.image_size) for image in images]
    differences = []
    with draft_of(target, o.output) as made:
        for name in names:
            kind = formats.find(name)
            given = images if kind.ANY_SIZE else squares
            wanted = comparison.reference(subject, given)
            path = write(name, subject, made / part(name) if o.format == "all" else made)
            differences.append(comparison.compare(kind.outputs(path, subject, given), wanted))
        publish(made, target)
    about = card.place(target, formats.find(names[0]).SUFFIX) if o.format != "all" else "a card beside each"
    print(
        f"done: {o.output}{f' with {len(names)} formats' if o.format == 'all' else ''} was loaded back and gives what "
        f"{subject.path} gives on {len(images)} images ({source}; largest difference {max(differences):.1g} of the "
        f"largest value); {about} says how to use it",
        flush=True,
    )


def part(name: str) -> str:
    """What a format is called among all formats."""
    suffix = formats.find(name).SUFFIX
    return f"encoder{suffix}" if suffix else name


def check(o: object) -> pathlib.Path:
    """Where to write. Raises UserError when flags are missing or something else stands there."""
    if not o.load:
        raise UserError(f"--load is missing; give {SOURCES}")
    suffix = "" if o.format == "all" else formats.find(o.format).SUFFIX
    example = f"the file to write, for example --output=encoder{suffix}"
    if not suffix:
        example = f"the folder to write, for example --output={'exports' if o.format == 'all' else 'encoder'}/"
    if not o.output:
        raise UserError(f"--output is missing; give {example}")
    target = pathlib.Path(os.path.realpath(o.output))
    if suffix and target.suffix != suffix:
        raise UserError(f"--output={o.output} came, expected a name that ends in {suffix}; give {example}")
    try:
        taken = in_the_way(o.format, target, suffix)
    except OSError as error:
        raise unwritable(o.output, error) from None
    if taken:
        raise UserError(f"--output={o.output}: {taken} exists and is no earlier export; give another or move it away")
    return target


def unwritable(output: str, error: OSError) -> UserError:
    """The error of a place that the system refuses."""
    return UserError(f"--output={output} cannot be written ({error.strerror}); give another place or mend this one")


def in_the_way(kind: str, target: pathlib.Path, suffix: str) -> pathlib.Path | None:
    """What stands where the export goes and is neither an earlier export nor an empty folder for a folder."""
    if suffix:
        about = card.place(target, suffix)
        replaceable = card.is_card(about)
        return next((p for p in (target, about) if p.exists() and not (replaceable and p.is_file())), None)
    if not target.exists():
        return None
    names = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    cards, known = [card.place(target, "")], savedmodel.CONTENTS
    if kind == "all":
        cards = [card.place(target / part(name), formats.find(name).SUFFIX) for name in formats.NAMES]
        known = {part(name) for name in formats.NAMES} | {path.name for path in cards if path.parent == target}
    return target if names and not (names <= known and any(map(card.is_card, cards))) else None


def available(name: str) -> list[str]:
    """The formats to write. Raises UserError when what one needs is missing; of all formats it is left out."""
    if name != "all":
        formats.find(name).check()
        return [name]
    names = []
    for each in formats.NAMES:
        try:
            formats.find(each).check()
            names.append(each)
        except UserError as error:
            print(f"left out: {error}", flush=True)
    return names


def configure() -> None:
    """Hides GPUs: they are not needed, and TensorFloat-32 would make the comparison coarser than its tolerance."""
    if tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
    device.configure(0, 1)


def load(o: object) -> Loaded:
    """The encoder in float32, with the image size and normalisation that it will be used with.

    Other programs' files do not say them; where the flags do not either, they are assumed, and `source` says so.

    Raises:
        UserError: there is no encoder.
    """
    loaded = load_encoder(o.load)
    if not loaded.image_size:
        told = {"image size": o.image_size, "normalisation": o.normalise != "auto"}
        assumed = " and ".join(name for name, value in told.items() if not value)
        if assumed:
            loaded = dataclasses.replace(loaded, source=f"{loaded.source}, which does not say {assumed}: assumed")
            print(f"{o.load} is a {loaded.source}; --image_size and --normalise set others", flush=True)
    mean, std = (loaded.mean, loaded.std) if o.normalise == "auto" else NORMALISATIONS[o.normalise]
    return dataclasses.replace(loaded, image_size=o.image_size or loaded.image_size or 224, mean=mean, std=std)


@contextlib.contextmanager
def draft_of(target: pathlib.Path, output: str) -> Iterator[pathlib.Path]:
    """Where to write first: in a folder that goes, and so do new folders above it when the export did not succeed."""
    draft = target.parent / f".{target.name}.draft"
    new = [folder for folder in target.parents if not folder.exists()]
    try:
        shutil.rmtree(draft, ignore_errors=True)  # one that a killed export left
        draft.mkdir(parents=True)
        yield draft / target.name
    except OSError as error:
        raise unwritable(output, error) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for folder in new:
            with contextlib.suppress(OSError):  # the export is in it
                folder.rmdir()


def write(name: str, subject: Loaded, path: pathlib.Path) -> pathlib.Path:
    """Writes an export of one format and its card; returns path."""
    kind = formats.find(name)
    path.parent.mkdir(exist_ok=True)
    kind.write(subject, path)
    about = card.text(subject, path.name, kind.use(subject, path.name))
    card.place(path, kind.SUFFIX).write_text(about, encoding="utf-8")
    return path


def publish(made: pathlib.Path, target: pathlib.Path) -> None:
    """Moves an export and its card out of the draft folder, in place of an earlier one."""
    if not made.is_dir():
        # The card first: without it the file would seem foreign.
        os.replace(card.place(made, made.suffix), card.place(target, target.suffix))
        os.replace(made, target)
        return
    earlier = made.with_name(f"{made.name}.earlier")  # goes with the draft folder
    if target.exists():
        os.replace(target, earlier)
    try:
        os.replace(made, target)
    except OSError:
        if earlier.exists():
            os.replace(earlier, target)
        raise


if __name__ == "__main__":
    program.run(main, Export)
