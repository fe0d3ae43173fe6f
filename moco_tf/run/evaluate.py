"""What the evaluating programs share: the subject to evaluate and the result that is left."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from moco_tf.data.normalisation import normalisation
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import features, scores
from moco_tf.networks.cost import cost
from moco_tf.networks.encoder import Encoder
from moco_tf.training import checkpoint, device
from moco_tf.training.collectives import Collectives
from moco_tf.training.runlog import make_folder
from moco_tf.weights.load import SOURCES
from moco_tf.weights.load import load as load_encoder

_FILES = (".tar", ".pth", ".npz", ".keras", ".pkl")  # of other programs, as --load takes them


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated: images in [0, 1] to features.

    encoder is None for raw pixels. image_size is the side of its images, 0 for the data set's own.
    """

    name: str
    embed: Callable[[tf.Tensor], tf.Tensor]
    encoder: Encoder | None
    image_size: int
    test_resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def geometry(self, images: Source) -> tuple[int, int]:
        """Resize and centre crop of test images; raw pixels of images of one size stay as they are stored."""
        if self.encoder is None and images.image_shape:
            return (min(images.image_shape),) * 2
        return features.test_geometry(images, self.image_size, self.test_resize)


def load(o: object) -> Subject:
    """The encoder that --load holds, or the baseline asked for.

    Raises:
        UserError: --load is missing or holds no encoder.
    """
    if o.baseline == "raw_pixels":
        mean, std = normalisation(o.normalise, o.dataset)
        return Subject("raw pixels", features.raw_pixels, None, o.image_size, o.test_resize, mean, std)
    if not o.load:
        raise UserError(f"--load is missing; give {SOURCES}")
    untrained = o.baseline == "untrained"
    loaded = load_encoder(o.load, device.dtype_policy(o.precision), untrained)
    mean, std = (loaded.mean, loaded.std) if o.normalise == "auto" else normalisation(o.normalise, o.dataset)
    embed = features.embedder(loaded.encoder, getattr(o, "feature", "backbone"), mean, std)
    name = f"untrained {loaded.encoder.config['arch']}" if untrained else loaded.path
    return Subject(name, embed, loaded.encoder, o.image_size or loaded.image_size, o.test_resize, mean, std)


def check_labels(train: Source, test: Source) -> None:
    """Refuses sets without classes, and sets of which some images are known to have none."""
    if train.num_classes < 2 or test.num_classes < 2:
        raise UserError(
            f"{train.name} has {train.num_classes} classes, expected labels of two or more to evaluate with; give a "
            "set with labels (for --dataset=folder: train/<class>/ and val/<class>/)"
        )
    for images in (train, test):
        without = 0 if images.labels is None else int((images.labels < 0).sum())
        if without:
            raise UserError(
                f"{without} of {images.num_examples} images in {images.name} have no label, expected one for each to "
                "evaluate with; leave them out of the set"
            )


def checkpoints(folder: str | None) -> list[str]:
    """What a run folder, a folder of checkpoints or one of files holds to be loaded, oldest or first name first.

    Raises:
        UserError: there is nothing to be loaded.
    """
    found: list[pathlib.Path] = []
    if folder:
        place = pathlib.Path(folder)
        files = [path for path in sorted(place.glob("*")) if path.suffix in _FILES]
        found = checkpoint.existing(place / "checkpoints") or checkpoint.existing(place) or files
    if not found:
        raise UserError(
            f"--all_checkpoints came with --load={folder}, expected a run folder with checkpoints/, or a folder of "
            f"{', '.join(_FILES)} files"
        )
    return [str(path) for path in found]


def check_neighbours(k: int, train: Source) -> None:
    """Refuses more neighbours than there are images."""
    if k > train.num_examples:
        raise UserError(
            f"--k={k} came, expected at most {train.num_examples}, the number of training images in {train.name}; give "
            "a smaller one"
        )


def check_folder(folder: pathlib.Path) -> None:
    """Refuses a folder of results that holds a training's checkpoints: its metrics and flags would be overwritten."""
    if checkpoint.existing(folder / "checkpoints"):
        raise UserError(
            f"{folder} holds the checkpoints of a training, expected a folder for the results alone; give another "
            "--workdir"
        )


def report(
    o: object,
    flagfile: str,
    ranks: Collectives,
    what: str,
    subject: Subject,
    result: dict,
    test: Source,
    predictions: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Prints the accuracy and writes result.json, confusion.csv and flags.cfg on rank 0.

    Args:
        result: top1, top5 and what else is to be kept.
        test: the images tested.
        predictions, labels: of these images, Q each; per_class is added to the result from them.
    """
    if ranks.rank != 0:
        return
    folder = output_folder(o, what)
    make_folder(folder)
    counts = scores.confusion(predictions, labels, test.num_classes)
    result = {**result, "evaluation": what, "subject": subject.name, "dataset": o.dataset, "test_images": len(labels)}
    result["per_class"] = scores.per_class(counts, test.class_names)
    scores.write_confusion(folder / "confusion.csv", counts, test.class_names)
    (folder / "flags.cfg").write_text(flagfile)
    draft = folder / ".result.json"
    draft.write_text(json.dumps(result, indent=1) + "\n")
    draft.replace(folder / "result.json")
    if len(labels) < test.num_examples:
        print(
            f"{test.num_examples - len(labels)} of {test.num_examples} test images could not be read and do not count"
        )
    print(f"{what} of {subject.name} on {o.dataset}: top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}")
    print(f"written to {folder / 'result.json'}", flush=True)


def network_cost(subject: Subject, images: Source, classifier: Callable = tf.identity) -> dict[str, int]:
    """Parameters and multiply-adds of the backbone (and a classifier on it) for a result; none for raw pixels."""
    if subject.encoder is None:
        return {}
    counted = cost(lambda x: classifier(subject.encoder.features(x)), subject.geometry(images)[1])
    return {"parameters": counted.parameters, "multiply_adds": counted.multiply_adds, "thop_flops": counted.thop}


def output_folder(o: object, what: str) -> pathlib.Path:
    """--workdir, or a folder named after the evaluation inside the run folder, or beside the file that was loaded."""
    if o.workdir:
        return pathlib.Path(o.workdir)
    name = what.lower() if o.baseline == "none" else f"{what.lower()}_{o.baseline}"
    if not o.load:
        return pathlib.Path("runs") / name
    place = pathlib.Path(o.load)
    if (place / checkpoint.DESCRIPTION).is_file():  # results do not go where pruning would remove them
        place = place.parent
    if checkpoint.existing(place):  # nor beside the checkpoints
        place = place.parent
    return place / name if place.is_dir() else pathlib.Path("runs") / place.name.split(".")[0] / name
