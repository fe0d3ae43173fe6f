"""Figures of matplotlib as inline SVG whose colours are the page's, light or dark."""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import TypedDict

import matplotlib
import numpy as np
from matplotlib.figure import Figure

COLOURS = 10
MARKERS = "os^DvPX*<>"  # one for each colour: nothing is told by colour alone
SIGNS = "●■▲◆▼✚✖★◀▶"  # the same in text
LOOKS = COLOURS * len(MARKERS)  # combinations of both
MARKED = "mark-"  # how the ids begin that the page's script looks for

# matplotlib wants colours, the page decides which: these stand for its variables until the SVG is written.
_PLACEHOLDERS = {"ink": "#010101", "muted": "#010102", "grid": "#010103", "surface": "#010104"}
_PLACEHOLDERS |= {f"c{number}": f"#0101{number + 16:02x}" for number in range(COLOURS)}
_ID = re.compile(r' id="([^"]*)"')


def colour(name: str | int) -> str:
    """The stand-in for a colour of the page: "ink", "muted", "grid", "surface", or the number of a series."""
    return _PLACEHOLDERS[name if isinstance(name, str) else f"c{name % COLOURS}"]


class Look(TypedDict):
    """How a class or a run is drawn: number of its colour, number of its marker, the marker in text."""

    colour: int
    marker: int
    sign: str


def look(number: int) -> Look:
    """Colour and marker of a class or run; those of the first LOOKS differ from each other."""
    marker = (number + number // COLOURS) % len(MARKERS)
    return {"colour": number % COLOURS, "marker": marker, "sign": SIGNS[marker]}


@contextlib.contextmanager
def figure(name: str, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many CSS pixels, to draw on; name keeps its ids apart from other figures'."""
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 13,
        "text.color": colour("ink"),
        "axes.edgecolor": colour("muted"),
        "axes.labelcolor": colour("ink"),
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": colour("muted"),
        "xtick.labelcolor": colour("ink"),
        "ytick.color": colour("muted"),
        "ytick.labelcolor": colour("ink"),
        "grid.color": colour("grid"),
        "lines.linewidth": 1.8,
    }
    with matplotlib.rc_context(style):
        yield Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")


def text(drawn: Figure) -> str:
    """The figure as an <svg> element, hidden from screen readers: the page describes it in words."""
    stream = io.StringIO()
    drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    found = stream.getvalue()
    found = re.sub(r"<metadata>.*?</metadata>", "", found[found.index("<svg") :], flags=re.DOTALL)
    for name, stand_in in _PLACEHOLDERS.items():
        found = found.replace(stand_in, f"var(--{name})")
    used = set(re.findall(r"#([\w.-]+)", found))  # matplotlib's other ids would come again in the next figure
    found = _ID.sub(lambda match: match[0] if match[1] in used or match[1].startswith(MARKED) else "", found)
    found = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", found)
    size = re.compile(r'(<svg [^>]*?) (?:width|height)="[^"]*"')
    found = size.sub(r"\1", size.sub(r"\1", found, 1), 1)
    return found.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def places(drawn: Figure, points: np.ndarray | Sequence[tuple[float, float]]) -> list[list[float]]:
    """Points of the figure's only axes (Nx2) in the units of its SVG, whose y goes down: [all x, all y]."""
    pixels = drawn.axes[0].transData.transform(points)
    height = drawn.bbox.height
    return [[round(float(x), 1) for x, _ in pixels], [round(height - float(y), 1) for _, y in pixels]]
