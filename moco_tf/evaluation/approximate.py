"""Nearest neighbours through FAISS: most of them, in a part of the time, with the share that it finds measured.

An inverted file (Johnson et al., 2017): rows are sorted into lists around centres; a search looks into the lists whose
centres are nearest. N rows, C feature dimension, k neighbours. Memory: the rows once, 4 N C bytes.
"""

import importlib.util
from typing import Any

import numpy as np

from moco_tf.evaluation.neighbours import CHUNK, Normalised, nearest

LARGE = 100_000  # rows from which on it is worth its training
_WANTED = 0.99  # share of the nearest that are found, where searching all lists does not come first
_SAMPLE = 1000  # rows on which that is measured
_A_CENTRE = 64  # rows that a centre is trained on
_AT_FIRST = 8  # lists that are searched


def available() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


class Approximate:
    """An index of rows, which searches as many lists as it takes to find 99 % of the k nearest.

    Args:
        rows: of length one.
        k: number of neighbours that the measured share is of.
        seed: of the rows that it is trained and measured on.
    """

    def __init__(self, rows: Normalised, k: int, seed: int = 0) -> None:
        import faiss

        (count, width), rng = rows.shape, np.random.default_rng(seed)
        lists = int(4 * np.sqrt(count))
        self._centres = faiss.IndexFlatIP(width)  # the index does not keep it alive
        self._index = faiss.IndexIVFFlat(self._centres, width, lists, faiss.METRIC_INNER_PRODUCT)
        self._index.train(rows[_some(rng, count, _A_CENTRE * lists)])
        for start in range(0, count, CHUNK):
            self._index.add(rows[start : start + CHUNK])
        queries = rows[_some(rng, count, _SAMPLE)]
        self.measured_on, exact = len(queries), nearest(rows, queries, k)[1]
        self._index.nprobe = _AT_FIRST
        while (recall := self._recall(queries, exact)) < _WANTED and self._index.nprobe < lists:
            self._index.nprobe = min(2 * self._index.nprobe, lists)
        self.recall = recall

    def _recall(self, queries: np.ndarray, exact: np.ndarray) -> float:
        _, found = self.nearest(queries, exact.shape[1])
        return float(np.mean([len(np.intersect1d(*pair)) for pair in zip(found, exact)])) / exact.shape[1]

    def nearest(self, queries: np.ndarray, k: int) -> tuple[Any, Any]:
        """Inner products Qxk float32 and rows Qxk int64, -1 where it found fewer: as `neighbours.nearest`."""
        return self._index.search(np.ascontiguousarray(queries, np.float32), k)


def _some(rng: np.random.Generator, count: int, most: int) -> np.ndarray:
    return np.sort(rng.choice(count, min(most, count), replace=False))
