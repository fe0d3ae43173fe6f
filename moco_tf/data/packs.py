"""The program moco_tf.pack: what it packs, what it refuses, and what it says at the end."""

import pathlib
import re

import numpy as np
import tensorflow as tf

from moco_tf.config.options import Pack, PackOptions, SourceOptions
from moco_tf.data import packing
from moco_tf.data.reencoding import encoder
from moco_tf.data.sets import tfds
from moco_tf.data.sets.find import SPLITS
from moco_tf.data.sources import RecordSource
from moco_tf.errors import UserError
from moco_tf.training import device, launcher


def pack(options: Pack) -> None:
    """Packs, or verifies a pack, with the given options."""
    o, given = options.pack, options.source
    if not launcher.is_first_rank():
        return  # one process does it all
    folder = output_folder(o) / packing.VERSION
    if o.verify:
        counts = " and ".join(f"{count:,} {split}" for split, count in packing.verify(folder).items())
        print(f"verified: {folder} holds {counts} images", flush=True)
        return
    check(o)
    if tf.config.get_visible_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")  # not needed
    device.configure(o.workers or device.cores(), 1)
    sources = originals(given, o)
    encode = {split: encoder(o.short_side, o.quality, source.white) for split, (source, _) in sources.items()}
    plan = {split: packing.survey(source, encode[split], o.shard_mb * 1e6) for split, (source, _) in sources.items()}
    about = {"dataset": given.dataset, "short_side": o.short_side, "quality": o.quality, "shard_mb": o.shard_mb}
    with packing.only_one(folder):
        packing.begin(folder, {**about, **plan})
        splits = {
            split: packing.pack_split(
                folder, split, source, encode[split], int(plan[split]["shards"]), given.max_bad_images
            )
            for split, (source, _) in sources.items()
        }
        packing.write_metadata(folder, splits, sources)
    name, place = folder.parent.name, folder.parent.parent
    print(f"done: {summary(folder, splits)}; use it with --dataset={name} --data_dir={place}", flush=True)


def output_folder(o: PackOptions) -> pathlib.Path:
    """--output. Raises UserError."""
    if not o.output:
        raise UserError("--output is missing; give the folder of the pack, for example --output=packs/birds")
    return pathlib.Path(o.output)


def check(o: PackOptions) -> None:
    """Refuses flags that contradict each other. Raises UserError."""
    strange = sorted(set(o.splits) - set(SPLITS))
    if strange or not o.splits:
        raise UserError(f"--splits={','.join(o.splits)} came, expected some of {', '.join(SPLITS)}")
    if o.quality and not o.short_side:
        raise UserError(
            f"--quality={o.quality} came with --short_side=0, which keeps every image as it is; leave one of them out"
        )
    name = output_folder(o).name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "packed" or tfds.is_known(name):
        raise UserError(
            f"--output={o.output} came, expected a folder with a name of small letters, digits and _ that no data set "
            "has yet: it is the pack's --dataset; give another folder, for example packs/birds"
        )


def originals(given: SourceOptions, o: PackOptions) -> dict[str, tuple[RecordSource, packing.Shape]]:
    """What is packed, by split. Raises UserError."""
    sources: dict[str, tuple[RecordSource, packing.Shape]] = {}
    for split in (split for split in SPLITS if split in o.splits):
        try:
            sources[split] = packing.original(given.dataset, split, given.data_dir, o.short_side)
        except UserError as error:
            if not sources:
                raise
            raise UserError(f"{error}; or pack --splits={','.join(sources)} alone") from None
    return sources


def summary(folder: pathlib.Path, splits: dict[str, list[pathlib.Path]]) -> str:
    """One line on what a pack holds."""
    labels = {split: np.concatenate([packing.labels_of(path) for path in paths]) for split, paths in splits.items()}
    images = " and ".join(f"{(own != packing.SKIPPED).sum():,} {split}" for split, own in labels.items())
    skipped = sum(int((own == packing.SKIPPED).sum()) for own in labels.values())
    listed = f", {skipped} unreadable left out (listed in {folder / 'unreadable.txt'})" if skipped else ""
    sizes = [path.stat().st_size for paths in splits.values() for path in paths]
    return f"{folder} holds {images} images in {len(sizes)} shards, {sum(sizes) / 1e6:,.2f} MB{listed}"
