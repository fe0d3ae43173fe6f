"""What a ViT looks at: the class token's attention, and its patch features as colours.

n images, S side of them, H heads, RxR grid of patches, D width.
"""

from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from moco_tf.reporting import pictures
from moco_tf.reporting.examined import Attended

_SAYS = (
    "How much the class token attends to each patch in the last block, white the most: the mean over heads, then each "
    "head. Colours: the patches' features along their first three principal components over these images; parts of one "
    "colour are alike to the encoder."
)


def section(attended: Attended | None, kind: str) -> dict[str, Any] | None:
    """What the page shows; None without attention.

    Args:
        attended: the images, and what the encoder makes of them.
        kind: what each image is, in words.
    """
    if attended is None:
        return None
    rows = zip(attended.images, attended.weights, _colours(attended.patches))
    return {"says": _SAYS, "kind": kind, "rows": [_row(*row) for row in rows]}


def _row(image: np.ndarray, weights: np.ndarray, colours: np.ndarray) -> dict[str, Any]:
    """Pictures of an image uint8 SxSx3, its attention HxRxR and its colours uint8 RxRx3."""
    mean, *heads = (_grey(one) for one in (weights.mean(axis=0), *weights))
    return {
        "source": pictures.uri(image, 96),
        "maps": [("mean of the heads", mean), ("patch features", pictures.uri(colours))]
        + [(f"head {i}", one) for i, one in enumerate(heads, start=1)],
    }


def _grey(weights: np.ndarray) -> str:
    """RxR numbers as shades from black, the least, to white, the largest; a pixel a patch."""
    return pictures.uri(np.repeat(_pixels(weights)[..., None], 3, axis=2))


def _colours(patches: np.ndarray) -> np.ndarray:
    """nxRxRxD features as colours uint8 nxRxRx3, of one scale for all images."""
    rows = patches.reshape(-1, patches.shape[-1])
    found = PCA(min(3, *rows.shape), random_state=0).fit_transform(rows)
    shades = [_pixels(component) for component in found.T]
    shades += [np.full(len(rows), 128, np.uint8)] * (3 - len(shades))
    return np.stack(shades, axis=1).reshape(*patches.shape[:3], 3)


def _pixels(values: np.ndarray) -> np.ndarray:
    """Any numbers as uint8, the least 0 and the largest 255."""
    low, high = values.min(), values.max()
    return ((values - low) * (255 / max(high - low, 1e-12)) + 0.5).astype(np.uint8)
