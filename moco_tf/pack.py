"""Packs any data set into a few large files that training reads by index: see moco_tf/data/packed.py.

    python -m moco_tf.pack --dataset=folder --data_dir=photos --output=packed/ --short_side=256
    python -m moco_tf.pack --verify --output=packed/
    python -m moco_tf.pretrain --dataset=packed --data_dir=packed/

Images whose short side is larger than --short_side are made smaller, antialiased, and encoded again; all others are
kept byte for byte. A pack that was interrupted goes on where it stopped when the same command is run again, and the
same images and settings give the same files, whatever the number of workers.
"""

import contextlib
import fcntl
import os
import pathlib
import shlex
import sys
import types
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tqdm

from moco_tf import __version__
from moco_tf.config import define
from moco_tf.config.options import Pack
from moco_tf.data import packed
from moco_tf.data.packed import Index, Shard
from moco_tf.data.packing import QUALITY, ShardWriter, encoded, encoder, example, fingerprint, original
from moco_tf.data.records import UnreadableImages
from moco_tf.data.sets.find import SPLITS
from moco_tf.data.sources import RecordSource
from moco_tf.errors import UserError
from moco_tf.run import program
from moco_tf.training import device, launcher

_PAUSE = 0.5 if sys.stderr.isatty() else 10.0  # seconds between two redraws of the progress bar
_CARD = """# {name}: packed images

| | |
|---|---|
{table}
## Use

    python -m moco_tf.pretrain --dataset=packed --data_dir={name}
    python -m moco_tf.pack --verify --output={name}

Each record of the `.tfrecord` files is a `tf.train.Example` of image (encoded bytes), label (-1: none) and name (that
of the original); the `.npy` file beside each holds offset and length in bytes and label of its records. `index.json`
holds sizes and SHA-256 sums.

## Images of each class

{classes}"""


def main(options: Pack) -> None:
    """Packs, or verifies a pack, with the given options."""
    o = types.SimpleNamespace(**define.values_of(options))
    if not launcher.is_first_rank():
        return  # one process does it all
    check(o)
    folder = pathlib.Path(o.output)
    if o.verify:
        index = packed.verify(folder, workers(o))
        print(f"verified: {summary(folder, index)}; all checksums fit", flush=True)
        return
    check_output(folder)
    if tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")  # not needed
    device.configure(workers(o), 1)
    sources = originals(o)
    with only_one(folder):
        index = begin(folder, o, sources)
        for split, source in sources.items():
            pack_split(folder, split, source, index, o)
        packed.write_text(folder / packed.CARD, card(folder, o, index))
        index.finished = True
        packed.write_index(folder, index)
    print(f"done: {summary(folder, index)}; use it with --dataset=packed --data_dir={o.output}", flush=True)


def check(o: object) -> None:
    """Refuses flags that are missing or contradict each other."""
    if not o.output:
        raise UserError("--output is missing; give the folder of the pack, for example --output=packed/")
    strange = sorted(set(o.splits) - set(SPLITS))
    if strange or not o.splits:
        raise UserError(f"--splits={','.join(o.splits)} came, expected some of {', '.join(SPLITS)}")
    if o.quality and not o.short_side:
        raise UserError(
            f"--quality={o.quality} came with --short_side=0, which keeps every image as it is; leave one of them out"
        )
    if o.dataset == "packed" and not o.verify:
        raise UserError("--dataset=packed came, expected images that are not packed yet; give the data set itself")


def check_output(folder: pathlib.Path) -> None:
    """Refuses a folder with something else in it."""
    try:
        strange = packed.foreign(folder) if folder.exists() else []
        begun = folder.exists() and any(not name.startswith(".") for name in os.listdir(folder))
    except OSError as error:
        raise packed.unwritable(folder, error) from None
    if strange:
        raise UserError(
            f"--output={folder} holds {strange[0]!r}, expected an empty folder or a pack; give another folder"
        )
    if begun and not (folder / packed.INDEX).exists():
        raise UserError(f"--output={folder} is not empty and no pack; give another folder")


def workers(o: object) -> int:
    """--workers, or as many as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return o.workers or cores


def originals(o: object) -> dict[str, RecordSource]:
    """What is packed, by split. Raises UserError."""
    sources = {}
    for split in (split for split in SPLITS if split in o.splits):
        try:
            sources[split] = original(o.dataset, split, o.data_dir)
        except UserError as error:
            if not sources:
                raise
            raise UserError(f"{error}; or pack --splits={','.join(sources)} alone") from None
    return sources


# Writing, and going on with what is there


@contextlib.contextmanager
def only_one(folder: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from packing into it. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise packed.unwritable(folder, error) from None
    try:
        with contextlib.suppress(OSError):  # of file systems without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"--output={folder} is being packed by another process; wait for it") from None
        yield
    finally:
        os.close(handle)


def begin(folder: pathlib.Path, o: object, sources: dict[str, RecordSource]) -> Index:
    """The index of a new pack, or of the one that is there. Raises UserError when that is of other images."""
    about = {"dataset": o.dataset}
    for split, source in sources.items():
        about[split] = {"examples": source.num_examples, "fingerprint": fingerprint(source)}
    settings = {"short_side": o.short_side, "quality": o.quality, "shard_mb": o.shard_mb}
    class_names = list(next(iter(sources.values())).class_names)
    index = Index(about, settings, class_names, {split: [] for split in sources})
    if not (folder / packed.INDEX).exists():
        packed.write_index(folder, index)
        return index
    there = packed.read_index(folder)
    other = [name for name in settings if there.settings.get(name) != settings[name]]
    other += [name for name in sorted({*about, *there.source}) if there.source.get(name) != about.get(name)]
    if other:
        raise UserError(
            f"--output={folder} is a pack with other {', '.join(other)}, expected one of the same images and settings "
            f"({packed.CARD} or {packed.INDEX} has them); give another folder, or remove this one"
        )
    there.finished = False
    return there


def pack_split(folder: pathlib.Path, split: str, source: RecordSource, index: Index, o: object) -> None:
    """Writes those shards of a split that are not there yet; the index takes in each one, and is written."""
    known = {shard.name: shard for shard in index.splits[split] if not packed.wrong_size(folder, shard)}
    done: list[Shard] = []
    encode = encoder(o.short_side, o.quality)
    unreadable = UnreadableImages(source, o.max_bad_images, str(folder / packed.UNREADABLE))
    for shard in known.values():
        for skipped in shard.skipped:
            unreadable.add(*skipped)

    def known_next() -> Shard | None:
        shard = known.get(f"{split}-{len(done):05}")
        return shard if shard and shard.first == position() else None

    def position() -> int:
        return done[-1].stop if done else 0

    with tqdm.tqdm(total=source.num_examples, desc=split, unit="image", dynamic_ncols=True, mininterval=_PAUSE) as bar:
        while position() < source.num_examples:
            while shard := known_next():
                done.append(shard)
                bar.update(shard.stop - shard.first)
            if position() < source.num_examples:
                examples = encoded(source, position(), encode, unreadable, workers(o))
                for shard in new_shards(folder, split, len(done), source, examples, o.shard_mb * 1e6, bar.update):
                    done.append(shard)
                    index.splits[split] = done + [later for name, later in known.items() if name > shard.name]
                    packed.write_index(folder, index)
                    if known_next():
                        break
    index.splits[split] = done


def new_shards(
    folder: pathlib.Path,
    split: str,
    number: int,
    source: RecordSource,
    examples: Iterator[tuple[int, bytes | None, int, str]],
    limit: float,
    advance: Callable[[int], object],
) -> Iterator[Shard]:
    """Writes the examples into shards, numbered from `number` on, and yields each one when it is finished."""
    writer = None
    for index, image, label, reason in examples:
        record = None if image is None else example(image, label, source.describe(index))
        if writer and record and not writer.fits(record, limit):
            yield writer.close(index)
            writer, number = None, number + 1
        writer = writer or ShardWriter(folder, f"{split}-{number:05}", index)
        if record is None:
            writer.skip(index, reason)
        else:
            writer.add(record, label)
        advance(1)
    yield writer.close(source.num_examples)


# What is said about it


def summary(folder: pathlib.Path, index: Index) -> str:
    """One line on what a pack holds."""
    images = " and ".join(f"{sum(s.records for s in shards):,} {split}" for split, shards in index.splits.items())
    skipped = sum(len(shard.skipped) for shard in index.shards())
    listed = f", {skipped} unreadable left out (listed in {folder / packed.UNREADABLE})" if skipped else ""
    return f"{folder} holds {images} images in {size(index.shards())}{listed}"


def size(shards: list[Shard]) -> str:
    """How many shards, and the size of their files."""
    count = f"{len(shards)} shard{'s' if len(shards) != 1 else ''}"
    total = sum(shard.bytes + shard.places_bytes for shard in shards)
    return f"{count}, {total / 1e9:.2f} GB" if total >= 1e9 else f"{count}, {total / 1e6:.2f} MB"


def card(folder: pathlib.Path, o: object, index: Index) -> str:
    """The data card."""
    command = ["python", "-m", "moco_tf.pack"]
    for name in ("dataset", "data_dir", "output", "splits", "short_side", "quality", "shard_mb", "max_bad_images"):
        if (value := getattr(o, name)) is not None:
            command.append(f"--{name}={','.join(value) if isinstance(value, list) else value}")
    kept = f"short side at most {o.short_side}, antialiased; JPEG quality {o.quality or QUALITY} where encoded again"
    kept += f", and where it was higher than {o.quality}" if o.quality else ""
    rows = {"source": o.dataset, "images": kept if o.short_side else "as they were, byte for byte"}
    for split, shards in index.splits.items():
        skipped = sum(len(shard.skipped) for shard in shards)
        rows[split] = f"{sum(s.records for s in shards):,} images in {size(shards)}"
        rows[split] += f"; {skipped} unreadable left out, see {packed.UNREADABLE}" if skipped else ""
    rows["written by"] = f"moco_tf {__version__}, TensorFlow {tf.__version__}"
    rows["command"] = f"`{shlex.join(command)}`"
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
    return _CARD.format(name=folder.resolve().name, table=table, classes=class_table(folder, index))


def class_table(folder: pathlib.Path, index: Index) -> str:
    """Images of each class and split, as a Markdown table."""
    columns = []
    for shards in index.splits.values():
        labels = np.concatenate([packed.places(folder, shard)[:, 2] for shard in shards])
        columns.append(np.bincount(labels + 1, minlength=len(index.class_names) + 1))  # -1: no label
    rows = [("no label", *(counts[0] for counts in columns))] if any(counts[0] for counts in columns) else []
    rows += [
        (name.replace("|", "\\|"), *(counts[label + 1] for counts in columns))
        for label, name in enumerate(index.class_names)
    ]
    lines = [("class", *index.splits), ("---",) * (1 + len(columns)), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


if __name__ == "__main__":
    program.run(main, Pack)
