"""What the page shows of a run's images: moco_tf.run.examine computes it.

N images, D width of the pooled features, k neighbours, S side of a view.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from moco_tf.data.sources import RecordSource, Source
from moco_tf.errors import UserError

# {what the features are: {label-free measure: its value, NaN where a feature is zero or not finite}}
Spread = dict[str, dict[str, float]]

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class SampledViews:
    """Two random views of some training images.

    Args:
        pairs: uint8 Nx2xSxSx3, normalisation undone.
        looked_at: views of each image that a step of the method looks at, 1 or 2.
    """

    pairs: np.ndarray
    looked_at: int


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Images that can be read, and their features.

    Args:
        source: of the images.
        indices: in the source, N.
        labels: N; -1: none.
        features: pooled features, NxD, rows of length one.
    """

    source: Source
    indices: np.ndarray
    labels: np.ndarray
    features: np.ndarray

    def image(self, row: int) -> np.ndarray:
        """The image as stored, uint8 HxWx3."""
        return self.source.image(int(self.indices[row]))

    def files(self, rows: np.ndarray) -> list[str] | None:
        """Names of the images' files; None where images are no files."""
        if not isinstance(self.source, RecordSource):
            return None
        return [pathlib.PurePath(self.source.describe(int(self.indices[row]))).name for row in rows]


@dataclasses.dataclass(frozen=True)
class Attended:
    """Some test images as a ViT attends to them.

    Args:
        images: as the network sees them, uint8 nxSxSx3, normalisation undone.
        weights: of the last block's class token for each patch, by head: nxHxRxR.
        patches: the patches' features, nxRxRxD.
    """

    images: np.ndarray
    weights: np.ndarray
    patches: np.ndarray


@dataclasses.dataclass(frozen=True)
class Examined:
    """A run's images as its encoder sees them.

    Args:
        checkpoint: where the encoder is from.
        bank: training images.
        test: test images, N.
        class_names: of the labels 0, 1, 2 ...
        predicted: class of every test image by kNN, N; None without labels.
        similarities, nearest: of every test image to its nearest rows of the bank, the nearest first, Nxk.
        k: neighbours that voted.
        note: a sentence where training images stand for test images.
        sampled: a sentence where not all images were taken.
        held_out: whether the test images are the training images that --holdout leaves out.
        attended: some of the test images; None of an encoder without attention.
    """

    checkpoint: str
    bank: Embedded
    test: Embedded
    class_names: tuple[str, ...]
    predicted: np.ndarray | None
    similarities: np.ndarray
    nearest: np.ndarray
    k: int
    note: str
    sampled: str
    held_out: bool = False
    attended: Attended | None = None

    @property
    def kind(self) -> str:
        """What each of `test` is."""
        if self.held_out:
            return "held-out training image"
        return "left-out training image" if self.note else "test image"

    def class_name(self, label: int) -> str:
        """The name of a label; empty where there is none."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else ""


@dataclasses.dataclass(frozen=True)
class Examination:
    """All that the page shows of images; text in place of something says why it is missing.

    Args:
        views: of the first run.
        first: the first run's images.
        spread: of every run's views, by the run's name.
    """

    views: SampledViews | str
    first: Examined | str
    spread: dict[str, Spread | str]

    def missing(self) -> dict[str, str]:
        """What is not there, and why."""
        parts: dict[str, object] = {"views": self.views, "features": self.first}
        parts |= {f"label-free measures of {name}": found for name, found in self.spread.items()}
        return {name: part for name, part in parts.items() if isinstance(part, str)}

    def empty(self) -> bool:
        """Whether nothing at all is there."""
        return len(self.missing()) == 2 + len(self.spread)


def attempt(make: Callable[..., Made], *arguments: Any) -> Made | str:
    """What make returns, or the text of its UserError."""
    try:
        return make(*arguments)
    except UserError as error:
        return " ".join(str(error).split())
