"""--auto: settings of a pre-training that fit the images and the device; what the user says stands.

The rules follow the measurements in docs/automatic.md. They depend on the number of images, their size, the ranks and
whether there is a GPU, and on nothing that a clock measures: the same start chooses the same.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

from moco_tf.config import define
from moco_tf.config.options import Pretrain
from moco_tf.config.types import Value
from moco_tf.data.decoding import opened
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.run.folder import RunFolder
from moco_tf.training import device
from moco_tf.training.collectives import Collectives, broadcast_result

_LOOKED_AT = 200  # images, evenly spread, whose size is read
SMALL = 48  # pixels, up to which images are taken as they are: without a stem that shrinks them, and without blur


class Facts(NamedTuple):
    """What settings depend on.

    Args:
        images: training images.
        side: their shorter side in pixels, the median.
        ranks: that share a batch.
        gpu: whether there is one.
    """

    images: int
    side: int
    ranks: int = 1
    gpu: bool = False


class Setting(NamedTuple):
    """A flag, its value, and why; settings that one reason chooses have it at the first alone."""

    name: str
    value: Value
    reason: str = ""


def chosen(o: Pretrain, train: Source, collectives: Collectives) -> tuple[Pretrain, bool]:
    """The options with settings in place of --auto, and whether they are new: a run goes on with its flags.cfg.

    Args:
        o: the options, with auto.
        train: the training images.
        collectives: what crosses ranks.

    Raises:
        UserError: the run folder's flags.cfg cannot be read.
    """
    folder, given = RunFolder.of(o.run.workdir or ""), _given(o)

    def words() -> tuple[list[str], bool]:
        if o.run.workdir and (kept := folder.flag_lines()):
            print(f"the settings are those of {folder.flags}", flush=True)
            return kept, False
        known = define.values_of(o)
        found = settings(_facts(train, collectives.size), {name: known[name] for name in given})
        found = [setting for setting in found if setting.name in known]  # not every method has a queue
        print("\n".join(["settings for these images; a flag of yours comes before them:", *_lines(found)]), flush=True)
        return [define.word(setting.name, setting.value) for setting in found], True

    taken, fresh = broadcast_result(collectives, words)
    try:
        return define.parse(type(o), ["", *taken, *given.values()]), fresh
    except flags.Error as error:
        raise UserError(f"{error}; mend {folder.flags}, or give another --workdir") from None


def _given(o: Pretrain) -> dict[str, str]:
    """{name: word} of the flags that came."""
    values = define.values_of(o)
    given = {name: values[name] for name in o.automatic.given if name in values}
    given |= {"workdir": o.run.workdir, "auto": False}  # that folder may be a default
    return {name: define.word(name, value) for name, value in given.items() if value is not None}


def _lines(found: Sequence[Setting]) -> Iterator[str]:
    """Settings with their reasons, those that share one in one line."""
    words, reason = "", ""
    for setting, after in zip(found, [*found[1:], Setting("", None, "end")]):
        words, reason = f"{words} {define.word(setting.name, setting.value)}", setting.reason or reason
        if after.reason:
            yield f" {words}: {reason}"
            words = ""


def _facts(train: Source, ranks: int) -> Facts:
    sides = [min(train.image_shape)] if train.image_shape else list(_sides(train))
    if not sides:
        raise UserError(f"of {_LOOKED_AT} images of {train.name} none can be read; look at the files")
    return Facts(train.num_examples, int(np.median(sides)), ranks, device.has_gpu())


def _sides(train: Any) -> Iterator[int]:
    """The shorter sides of some images of a RecordSource; unreadable ones are left out."""
    for index in np.unique(np.linspace(0, train.num_examples - 1, _LOOKED_AT).astype(int)):
        try:
            data, _ = train.read(*(tf.constant(entry) for entry in train.entries(index)))
            yield min(opened(io.BytesIO(data.numpy())).size)
        except (tf.errors.OpError, ValueError):  # listed when it is to be used
            continue


def settings(facts: Facts, own: Mapping[str, Value]) -> list[Setting]:
    """The settings for some images, but for those that were given.

    Args:
        facts: about images and machine.
        own: the flags that were given, by name, and their values.
    """
    size = _whole(own, "image_size", _image_size(facts))
    batch, epochs = _whole(own, "batch_size", _batch_size(facts)), _whole(own, "epochs", _epochs(facts))
    found = [
        *_of_network(facts, size, str(own.get("arch", ""))),
        *_of_views(size),
        *_of_contrast(facts, batch),
        *_of_schedule(facts, size, batch, epochs),
    ]
    return [setting for setting in found if setting.name not in own]


def _whole(own: Mapping[str, Value], name: str, otherwise: int) -> int:
    """A whole number that was given and is not 0, else another one."""
    return int(str(own.get(name) or otherwise))


def _image_size(facts: Facts) -> int:
    """As the images are; of larger ones a multiple of 16, up to what the device takes through a network in time."""
    most = 224 if facts.gpu else 96
    return facts.side if facts.side <= SMALL else min(most, facts.side // 16 * 16)


def _batch_size(facts: Facts) -> int:
    """A power of two of which an epoch has 16 or more, on each rank the same number."""
    batch = min(256 if facts.gpu else 64, max(8, _power_of_two(facts.images // 16)), facts.images)
    return max(batch // facts.ranks, 1) * facts.ranks


def _queue_size(facts: Facts, batch: int) -> int:
    """A power of two, at most half of the images: else an image's own older keys would be among its negatives."""
    most = 65536 if facts.gpu and facts.images >= 100_000 else 4096
    return max(min(most, _power_of_two(facts.images // 2)), batch)


def _epochs(facts: Facts) -> int:
    """Images that are seen grow as the root of their number."""
    seen = (45_000 if facts.gpu else 4_000) * math.sqrt(facts.images)
    return min(max(round(seen / facts.images), 10), 1000)


def _power_of_two(number: int) -> int:
    """The largest one that is not above a number; 0 of 0."""
    return 1 << number.bit_length() >> 1


def _of_network(facts: Facts, size: int, arch: str) -> list[Setting]:
    large, where = facts.images >= 100_000 and size > 128, "a GPU" if facts.gpu else "a CPU"
    best = ("resnet50" if large else "resnet18") if facts.gpu else "resnet10"
    found = [Setting("image_size", size, f"the images have about {facts.side} px; on {where}")]
    if not arch:
        found += [
            Setting("arch", best, f"{facts.images:,} images on {where}"),
            Setting("width", 64 if facts.gpu else 16),
        ]
    if (arch or best).startswith("resnet"):
        small = size <= SMALL
        kept = f"{size} px are few: the stem keeps them" if small else "the stem makes images smaller at once"
        found += [Setting("stem", "cifar" if small else "imagenet", kept)]
    return found


def _of_views(size: int) -> list[Setting]:
    if size <= SMALL:
        return [Setting("views", "cifar", "small images lose too much in a blur"), Setting("crop_scale", (0.2, 1.0))]
    return [Setting("views", "moco_v2", "large images stand a blur"), Setting("crop_scale", (0.2, 1.0))]


def _of_contrast(facts: Facts, batch: int) -> list[Setting]:
    queue = _queue_size(facts, batch)
    return [
        Setting("batch_size", batch, f"an epoch has {facts.images // batch:,} of them"),
        Setting("queue_size", queue, f"keys of {queue / facts.images:.0%} of the images"),
        Setting("key_momentum", 0.99, "the queue turns over in an epoch or less"),
        Setting("temperature", 0.2, "as MoCo v2"),
        Setting("head", "mlp"),
        Setting("feature_dim", 128),
    ]


def _of_schedule(facts: Facts, size: int, batch: int, epochs: int) -> list[Setting]:
    seen = epochs * facts.images
    return [
        Setting("optimizer", "sgd", f"for batches of {batch}"),
        Setting("learning_rate", 0.03 if size > 128 else 0.06),
        Setting("weight_decay", 1e-4 if size > 128 else 5e-4),
        Setting("epochs", epochs, f"{seen:,} images are seen; more epochs, better features"),
        Setting("schedule_per", "step"),
        Setting("checkpoint_every", max(1, epochs // 20), "about 20 in all"),
    ]
