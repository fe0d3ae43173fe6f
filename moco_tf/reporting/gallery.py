"""A page of images, each beside those that are near it."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from moco_tf import __version__
from moco_tf.reporting import page, pictures
from moco_tf.reporting.shown import Query, Shown

SIDE = 96  # pixels of a picture's side
_NONE = np.full((1, 1, 3), 128, np.uint8)  # in place of what cannot be read
_FIRST = 24  # images that are shown before a search


def write(
    path: pathlib.Path, title: str, says: list[str], queries: list[Query], read: Callable[[str], np.ndarray | None]
) -> bool:
    """Writes the page; returns whether no picture at all could be read.

    Args:
        path: of the page.
        title: its heading.
        says: sentences above the pictures.
        queries: the images.
        read: a path to its image, uint8 HxWx3; None where it cannot be read.
    """
    sources = {"": pictures.uri(_NONE)}
    for one in (one for query in queries for one in (query.image, *query.near)):
        if one.path not in sources:
            image = read(one.path)
            sources[one.path] = sources[""] if image is None else pictures.uri(image, SIDE)
    shown: dict[str, Any] = {"kind": "image", "near_kind": "image", "first": _FIRST, "columns": _columns(queries)}
    shown["queries"] = [_row(query, sources) for query in queries]
    text = {"title": title, "subtitle": f"moco_tf {__version__}", "says": says, "shown": shown}
    page.write(path, page.render({**text, "data": {"map": None, "charts": {}}}, "gallery.html"))
    return bool(queries) and set(sources.values()) == {sources[""]}


def _columns(queries: list[Query]) -> int:
    """How many pictures stand side by side: as many as most images have near them, 2 to 8."""
    counts = sorted(len(query.near) for query in queries) or [0]
    return min(8, max(2, counts[len(counts) * 3 // 4]))


def _row(query: Query, sources: dict[str, str]) -> dict[str, Any]:
    """What the template shows, and the words that the search box finds it by."""
    every = (query.image, *query.near)
    return {
        "source": sources[query.image.path],
        "label": query.image.label or pathlib.PurePath(query.image.path).name,
        "note": query.image.note,
        "title": query.image.path,
        "text": " ".join([query.image.label, *(f"{one.path} {one.note}" for one in every)]).lower(),
        "near": [_near(one, query.image, sources[one.path]) for one in query.near],
    }


def _near(one: Shown, query: Shown, source: str) -> dict[str, Any]:
    return {
        "source": source,
        "similarity": "" if one.similarity is None else f"{one.similarity:.3f}",
        "label": one.label,
        "same": one.label == query.label if one.label and query.label else None,
        "note": one.note,
        "title": one.path,
    }
