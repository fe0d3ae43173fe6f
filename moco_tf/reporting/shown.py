"""Images in a list of pictures: plain values, which need no package of the page's."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image.

    Args:
        path: where it is, or its name.
        label: its class; "": none.
        similarity: to the query.
        note: what else is said of it.
    """

    path: str
    label: str = ""
    similarity: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Query:
    """An image and those that are near it, the nearest first."""

    image: Shown
    near: list[Shown]
