"""Writes an encoder for use elsewhere: as a SavedModel that serves and fine-tunes, or under torchvision's names.

    python -m moco_tf.export --load=runs/v2 --format=savedmodel --output=encoder/
    python -m moco_tf.export --load=runs/v2 --format=pth --output=encoder.pth

Everything is float32. What was written is loaded back and compared with the encoder on images, and only then appears
at --output, with a card that says what it is: README.md in the folder, or encoder.md beside encoder.pth.
"""

import dataclasses
import itertools
import os
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import flags

from moco_tf import options, program
from moco_tf.data.normalisation import NORMALISATIONS
from moco_tf.data.sources import ArraySource, Source
from moco_tf.data.sources import load as load_source
from moco_tf.errors import UserError
from moco_tf.evaluation import features
from moco_tf.networks.encoder import Encoder
from moco_tf.training import collectives, device
from moco_tf.weights import card, savedmodel
from moco_tf.weights.load import Loaded
from moco_tf.weights.load import load as load_encoder
from moco_tf.weights.torchvision import save_torch_file

TOLERANCE = 1e-5  # of the largest value: float32 sums in another order
COMPARED = 4  # images of the data set; two of noise besides


def define_flags() -> None:
    """Defines this program's flags."""
    options.define_load_path()
    options.define_export()
    options.define_data()


def main(o: object, flagfile: str) -> None:
    """Exports with the given options."""
    if not collectives.is_first_rank():
        return  # one process does it all
    target = check(o)
    configure()
    subject = load(o)
    images = few_images(o, subject.image_size)
    wanted = reference(subject, images)
    draft = target.parent / f".{target.name}.draft"
    try:
        made = write(o.format, subject, new_folder(draft) / target.name)
        difference = compare(found(o.format, made, subject, images), wanted)
        publish(made, target)
    except OSError as error:
        raise unwritable(o.output, error) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(
        f"done: {o.output} was loaded back and gives what {subject.path} gives on {len(images)} images (largest "
        f"difference {difference:.1g} of the largest value); {card.place(o.format, target)} says how to use it",
        flush=True,
    )


def check(o: object) -> pathlib.Path:
    """Where to write. Raises UserError when flags are missing or something else stands there."""
    if not o.load:
        raise UserError("--load is missing; give a run folder, a checkpoint, a .pth.tar, .pth or .npz")
    example = {"savedmodel": "the folder to write, for example --output=encoder/"}
    example |= {"pth": "the file to write, for example --output=encoder.pth"}
    if not o.output:
        raise UserError(f"--output is missing; give {example[o.format]}")
    target = pathlib.Path(os.path.realpath(o.output))
    if o.format == "pth" and target.suffix != ".pth":
        raise UserError(f"--output={o.output} came, expected a name that ends in .pth; give {example['pth']}")
    try:
        taken = in_the_way(o.format, target)
    except OSError as error:
        raise unwritable(o.output, error) from None
    if taken:
        raise UserError(f"--output={o.output}: {taken} exists and is no earlier export; give another or move it away")
    return target


def unwritable(output: str, error: OSError) -> UserError:
    """The error of a place that the system refuses."""
    return UserError(f"--output={output} cannot be written ({error.strerror}); give another place or mend this one")


def in_the_way(kind: str, target: pathlib.Path) -> pathlib.Path | None:
    """What stands where the export goes and is neither an earlier export nor an empty folder for a SavedModel."""
    about = card.place(kind, target)
    replaceable = card.is_card(about)
    if kind != "savedmodel":
        return next((p for p in (target, about) if p.exists() and not (replaceable and p.is_file())), None)
    if not target.exists():
        return None
    names = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    return target if names and not (replaceable and names <= savedmodel.CONTENTS) else None


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


def few_images(o: object, size: int) -> list[np.ndarray]:
    """Images to compare on, uint8 HxWx3: some of --dataset, and noise of the network's size."""
    noise = list(np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8))
    try:
        source = load_source(o.dataset, "train" if o.dataset == "folder" else "test", o.data_dir)
    except UserError:
        if o.dataset != "fashion_mnist" or o.data_dir:
            raise  # it was asked for
        print(f"{o.dataset} is not here: comparing on random images only", flush=True)
        return noise
    return [*itertools.islice(_readable(source), COMPARED), *noise]


def _readable(source: Source) -> Iterator[np.ndarray]:
    for index in range(source.num_examples):
        try:
            yield source.image(index)
        except (tf.errors.OpError, UnicodeDecodeError):  # the latter when a message quotes the image's bytes
            continue


def reference(subject: Loaded, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What the encoder gives by the evaluation's own path: {"features": NxD, "head": NxC}. Raises UserError on NaN."""
    outputs = _evaluate(subject.encoder, subject, images)
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise UserError(f"{subject.path}: features are not finite, expected numbers; export an earlier checkpoint")
    return outputs


def _evaluate(encoder: Encoder, subject: Loaded, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    outputs = {}
    for name, feature in (("features", "backbone"), ("head", "head")):
        embed = features.embedder(encoder, feature, subject.mean, subject.std)
        outputs[name] = np.concatenate([embed(_prepared(image[None], subject.image_size)) for image in images])
    return outputs


def _prepared(images: np.ndarray, size: int) -> tf.Tensor:
    return features.prepare_batch(tf.constant(images), features.test_geometry(ArraySource("", images), size))


def write(kind: str, subject: Loaded, path: pathlib.Path) -> pathlib.Path:
    """Writes the export and its card; returns path."""
    about = card.text(kind, subject, path.name)
    if kind == "savedmodel":
        savedmodel.save(subject.encoder, path, subject.image_size, subject.mean, subject.std, about)
    else:
        save_torch_file(subject.encoder, str(path))
        card.place(kind, path).write_text(about, encoding="utf-8")
    return path


def found(kind: str, path: pathlib.Path, subject: Loaded, images: list[np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """What the export gives once loaded back: {what gave it: {"features": NxD, "head": NxC or "projection": NxC}}."""
    if kind == "pth":
        return {"the file": _evaluate(load_encoder(str(path)).encoder, subject, images)}
    exported = tf.saved_model.load(str(path))
    served = exported.signatures["serving_default"](tf.stack([tf.io.encode_png(image) for image in images]))
    outputs = {"serving_default": {"features": served["features"].numpy()}}
    outputs["embed"] = {"features": np.concatenate([exported.embed(image[None]) for image in images])}
    if hasattr(exported, "project"):
        outputs["project"] = {"projection": np.concatenate([exported.project(image[None]) for image in images])}
    return outputs


def compare(found: dict[str, dict[str, np.ndarray]], wanted: dict[str, np.ndarray]) -> float:
    """The largest difference, as a share of the largest value. Raises UserError when it is above TOLERANCE."""
    wanted = {**wanted, "projection": features.normalised(wanted["head"])}
    largest = 0.0
    for what, outputs in found.items():
        for name, values in outputs.items():
            expected = wanted[name]
            same_shape = values.shape == expected.shape
            scale = max(np.abs(expected).max(), np.finfo(np.float32).tiny)
            difference = np.abs(values - expected).max() / scale if same_shape else np.inf
            if not difference <= TOLERANCE:  # NaN is not either
                raise UserError(
                    f"what was written does not give back the encoder: {name} of {what} differ by {difference:.2g} of "
                    f"the largest value, expected at most {TOLERANCE:g}; nothing was left; please report it"
                )
            largest = max(largest, float(difference))
    return largest


def new_folder(path: pathlib.Path) -> pathlib.Path:
    """A new folder for drafts, in place of one that a killed export left."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def publish(made: pathlib.Path, target: pathlib.Path) -> None:
    """Moves an export and its card out of the draft folder, in place of an earlier one."""
    if not made.is_dir():
        os.replace(card.place("pth", made), card.place("pth", target))  # first: without it the file would seem foreign
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
    define_flags()
    flags.adopt_module_key_flags(options)
    program.run(main)
