"""Groups of near-duplicates among images: N of them."""

import csv
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from moco_tf.config.options import Duplicates
from moco_tf.data.records import BadImages
from moco_tf.data.sources import Source
from moco_tf.errors import UserError
from moco_tf.evaluation import duplicates, features
from moco_tf.evaluation.duplicates import Pairs
from moco_tf.reporting.shown import Query, Shown
from moco_tf.run import embedding, listing
from moco_tf.run.embedding import Split
from moco_tf.training import device, launcher
from moco_tf.training.collectives import SingleProcess
from moco_tf.training.files import replacing, write_whole

_BATCH = 256
_SHOWN = 100  # groups on the page
_PICTURES = 12  # images of each there
_READ = 48  # pixels of a side that images of many sizes are resized to
_COLUMNS = ("group", "path", "split", "label", "similarity", "mirrored", "nearest")


class Images(NamedTuple):
    """Those that can be read: split and index of each, and their thumbnails, NxT."""

    places: list[tuple[Split, int]]
    labels: list[str]
    rows: np.ndarray


class Member(NamedTuple):
    """An image of a group: its row, and that of the most similar one; whether they are mirrored."""

    row: int
    nearest: int
    similarity: float
    mirrored: bool


def write(o: Duplicates) -> None:
    """Finds near-duplicates, and writes the .csv, the page and the figures.

    Raises:
        UserError: there are no images, or too many pairs.
    """
    if not launcher.is_first_rank():
        return
    output = listing.output_of(o.duplicates.output, o.encoder.load, "duplicates")
    device.configure(0, 1)
    splits = embedding.images(o.duplicates, o.data, o.encoder.load, SingleProcess())
    images = _read(splits, BadImages(o.data.max_bad_images, f"{output}.unreadable.txt"))
    if len(images.rows) < 2:
        raise UserError(f"{len(images.rows)} images came, expected two or more")
    proposal = _propose(images)
    threshold = proposal.threshold if o.duplicates.threshold is None else o.duplicates.threshold
    found = duplicates.pairs(images.rows, threshold)
    groups = _groups(len(images.rows), found)
    numbers = _numbers(images, found, groups) | {"threshold": threshold, "proposed_threshold": proposal.threshold}
    numbers |= {"recall_of_made_copies": proposal.recall} if o.duplicates.threshold is None else {}
    says = _says(numbers)
    _write_csv(output, images, groups)
    write_whole(output.with_suffix(".json"), json.dumps(numbers, indent=1) + "\n")
    print("\n".join([*says, f"written to {output}"]), flush=True)
    more = [f"Here are {_SHOWN} groups, those of test and training images first."] if len(groups) > _SHOWN else []
    queries = [_query(images, group) for group in sorted(groups, key=lambda g: _order(images, g))[:_SHOWN]]
    listing.write_page(output, "Near-duplicates", says + more, queries, splits)


def _side(source: Source) -> int:
    return min(source.image_shape) if source.image_shape else _READ


def _read(splits: list[Split], bad_images: BadImages) -> Images:
    places, labels, parts = [], [], [np.zeros((0, duplicates.WIDTH), np.float32)]
    for split in splits:
        side, alone = _side(split.source), SingleProcess()
        names = dict(enumerate(split.source.class_names))
        found = features.extract_share(duplicates.thumbnails, split.source, (side, side), _BATCH, alone, bad_images)
        parts.append(found[0])
        labels += [names.get(int(label), "") for label in found[1]]
        places += [(split, int(index)) for index in found[2]]
    return Images(places, labels, np.concatenate(parts))


def _propose(images: Images) -> duplicates.Proposal:
    rng, count = np.random.default_rng(0), len(images.rows)
    chosen = np.sort(rng.choice(count, min(count, duplicates.SAMPLE), replace=False))
    places = [(split.source, index) for split, index in (images.places[row] for row in chosen)]
    nearest = duplicates.nearest_others(images.rows, chosen)
    return duplicates.propose(nearest, duplicates.of_copies(places, (_READ, _READ)))


def _groups(count: int, found: Pairs) -> list[list[Member]]:
    """Groups of two or more, each with its members in the order of their rows."""
    lowest = duplicates.groups(count, found)
    best: dict[int, Member] = {}
    for first, second, similarity, mirrored in zip(*found):
        for row, other in ((first, second), (second, first)):
            if row not in best or similarity > best[row].similarity:
                best[row] = Member(int(row), int(other), float(similarity), bool(mirrored))
    groups: dict[int, list[Member]] = {}
    for row in sorted(best):
        groups.setdefault(lowest[row], []).append(best[row])
    return list(groups.values())


def _numbers(images: Images, found: Pairs, groups: list[list[Member]]) -> dict[str, Any]:
    test = np.array([split.name == "test" for split, _ in images.places])
    across = test[found.first] != test[found.second]
    rows = np.concatenate([found.first[across], found.second[across]])
    in_groups = sum(map(len, groups))
    numbers = {"images": len(test), "groups": len(groups), "images_in_groups": in_groups, "pairs": len(found.first)}
    numbers["pairs_with_other_labels"] = sum(
        images.labels[i] != images.labels[j] for i, j in zip(found.first, found.second)
    )
    if test.any() and not test.all():
        numbers |= {"test_images": int(test.sum()), "test_images_in_train": len(np.unique(rows[test[rows]]))}
    return numbers


def _says(numbers: dict[str, Any]) -> list[str]:
    """What was found, in sentences."""
    of = f"{numbers['images']:,} images"
    says = [
        f"{numbers['images_in_groups']:,} of {of} are near-duplicates of others, in {numbers['groups']:,} groups; of "
        f"{numbers['pairs']:,} pairs {numbers['pairs_with_other_labels']:,} have different labels."
    ]
    if "test_images" in numbers:
        says.append(
            f"{numbers['test_images_in_train']:,} of {numbers['test_images']:,} test images have a near-duplicate "
            "among the training images."
        )
    line = f"Near-duplicates are images whose small grey pictures correlate by {numbers['threshold']:.4f} or more"
    if "recall_of_made_copies" in numbers:
        share = numbers["recall_of_made_copies"]
        line += (
            ", which an image of this set hardly has with a stranger; of copies made of its own images (mirrored, "
            f"three quarters the size, JPEG of quality 50) {share:.1%} reach it"
        )
        line += "; a lower --threshold finds more, and more strangers" if share < 0.9 else ""
    return [*says, f"{line}."]


def _write_csv(output: pathlib.Path, images: Images, groups: list[list[Member]]) -> None:
    with replacing(output) as draft, open(draft, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(_COLUMNS)
        for number, group in enumerate(groups, 1):
            for one in group:
                split, index = images.places[one.row]
                near = _path(images, one.nearest)
                own = split.path(index), split.name, images.labels[one.row]
                lines.writerow([number, *own, f"{one.similarity:.6f}", "yes" if one.mirrored else "no", near])


def _path(images: Images, row: int) -> str:
    split, index = images.places[row]
    return split.path(index)


def _order(images: Images, group: list[Member]) -> tuple[bool, float]:
    names = {images.places[one.row][0].name for one in group}
    return len(names) < 2, -max(one.similarity for one in group)


def _query(images: Images, group: list[Member]) -> Query:
    first, *others = group
    near = [
        Shown(
            _path(images, one.row),
            images.labels[one.row],
            one.similarity,
            " ".join(filter(None, [images.places[one.row][0].name, "mirrored" if one.mirrored else ""])),
        )
        for one in others[:_PICTURES]
    ]
    return Query(
        Shown(_path(images, first.row), images.labels[first.row], None, images.places[first.row][0].name), near
    )
