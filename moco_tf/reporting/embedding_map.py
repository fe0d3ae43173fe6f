"""A map of the features in two dimensions, a point an image."""

from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from moco_tf.errors import UserError
from moco_tf.reporting import svg

SIDE = 640
_THIN = {"*": 2.0, "^": 1.3, "v": 1.3, "<": 1.3, ">": 1.3}  # marks that fill little of their square become larger
_FEWEST = 8  # images; fewer have no neighbourhoods to show
_COMPONENTS = 50  # the rest is mostly noise, and slow (scikit-learn's advice)


def project(features: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten & Hinton, 2008) of normalised features: NxD to Nx2 float32. Raises UserError for few."""
    if len(features) < _FEWEST:
        raise UserError(f"{len(features)} images came, expected {_FEWEST} or more for a map")
    components = min(_COMPONENTS, *features.shape)
    reduced = PCA(components, random_state=seed).fit_transform(features) if components < features.shape[1] else features
    perplexity = min(30.0, (len(features) - 1) / 3)
    start = "pca" if np.ptp(reduced, axis=0).max() > 1e-6 and reduced.shape[1] > 1 else "random"  # collapsed features
    return TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(reduced)


def draw(points: np.ndarray, labels: np.ndarray) -> tuple[str, list[list[float]], list[dict[str, Any]]]:
    """(svg, places of the points in it, colour and sign of each class): Nx2 and N labels, -1 for none."""
    area = min(60, max(28, 36_000 / len(points)))  # of a mark: fewer are larger
    looks = {int(label): svg.look(int(label)) for label in np.unique(labels)}
    with svg.figure("map", SIDE, SIDE) as figure:
        axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
        axes.set_axis_off()
        for label, found in looks.items():
            rows = labels == label
            marker = svg.MARKERS[found["marker"]]
            drawn = axes.scatter(
                points[rows, 0], points[rows, 1], s=area * _THIN.get(marker, 1), marker=marker, linewidth=0.5
            )
            drawn.set(
                facecolor=svg.colour(found["colour"]), edgecolor=svg.colour("surface"), gid=f"{svg.MARKED}{label}"
            )
        axes.margins(0.02)
        text = svg.text(figure)
        return text, svg.places(figure, points), [{"label": label, **found} for label, found in looks.items()]
