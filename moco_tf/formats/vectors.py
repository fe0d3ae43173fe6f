"""Files of feature vectors with the paths, splits and labels of their images: N rows, in one pass over the parts.

What is in memory at a time is one part.
"""

import csv
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

from moco_tf.config import extras
from moco_tf.errors import UserError
from moco_tf.training.files import replacing

_TEXTS = ("path", "split", "label")


class Part(NamedTuple):
    """Some rows: texts of the images, n each, and their vectors, n x ... float32."""

    paths: Sequence[str]
    splits: Sequence[str]
    labels: Sequence[str]
    vectors: np.ndarray


class Rows(NamedTuple):
    """All rows: what gives the parts, each time from the first, the number of rows, and the shape of a vector."""

    parts: Callable[[], Iterator[Part]]
    total: int
    shape: tuple[int, ...]


def check(output: pathlib.Path, feature: str) -> None:
    """Refuses a name that no format has, a format that does not hold the feature, and a file that is there.

    Raises:
        UserError: so.
    """
    suffix = output.suffix
    if suffix not in _WRITERS:
        raise UserError(f"--output={output} came, expected a name that ends in one of {', '.join(_WRITERS)}")
    if feature == "dense" and suffix in (".csv", ".parquet"):
        raise UserError(
            f"--feature=dense came with a {suffix}, which has rows of numbers; expected .npz, .npy or .safetensors"
        )
    if suffix == ".parquet":
        extras.need("a .parquet file", ("pyarrow",), "parquet", "; or give another format, such as .npz")
    for path in files(output):
        if path.exists():
            raise UserError(f"{path} exists already; give another --output, or move it away")
    if not output.parent.is_dir():
        raise UserError(f"--output={output} is in a folder that is not there; make it, or give another")


def files(output: pathlib.Path) -> list[pathlib.Path]:
    """What is written for an output: it, and the texts beside formats that hold numbers alone."""
    return [output, *([output.with_suffix(".csv")] if output.suffix in (".npy", ".safetensors") else [])]


def write(output: pathlib.Path, rows: Rows) -> None:
    """Writes the files of an output, each as a whole. Raises UserError."""
    first, *beside = files(output)
    for path in beside:
        with replacing(path) as draft:
            _write_csv(draft, rows, vectors=False)
    with replacing(first) as draft:
        _WRITERS[output.suffix](draft, rows)


def _write_csv(path: pathlib.Path, rows: Rows, vectors: bool = True) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.writer(file)
        numbers = [f"f{i}" for i in range(rows.shape[0])] if vectors else []
        lines.writerow([*_TEXTS, *numbers])
        for part in rows.parts():
            for *texts, vector in zip(*part):
                lines.writerow([*texts, *(f"{x:.9g}" for x in (vector if vectors else ()))])


def _write_npy(path: pathlib.Path, rows: Rows) -> None:
    with open(path, "wb") as file:
        _stream(file, np.dtype("<f4"), (rows.total, *rows.shape), (part.vectors for part in rows.parts()))


def _write_npz(path: pathlib.Path, rows: Rows) -> None:
    longest = [1] * len(_TEXTS)
    for part in rows.parts():
        longest = [max([known, *map(len, texts)]) for known, texts in zip(longest, part[: len(_TEXTS)])]
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("vectors.npy", "w", force_zip64=True) as file:
            _stream(file, np.dtype("<f4"), (rows.total, *rows.shape), (part.vectors for part in rows.parts()))
        for place, name in enumerate(_TEXTS):
            with archive.open(f"{name}s.npy", "w", force_zip64=True) as file:
                columns = (np.array(part[place], f"<U{longest[place]}") for part in rows.parts())
                _stream(file, np.dtype(f"<U{longest[place]}"), (rows.total,), columns)


def _write_safetensors(path: pathlib.Path, rows: Rows) -> None:
    """A header in JSON with its length before it, then the numbers (safetensors' format)."""
    shape = (rows.total, *rows.shape)
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * int(np.prod(shape))]}
    header = json.dumps({"vectors": entry}).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for part in rows.parts():
            file.write(part.vectors.astype("<f4").tobytes())


def _write_parquet(path: pathlib.Path, rows: Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    vector = pyarrow.list_(pyarrow.float32(), rows.shape[0])
    schema = pyarrow.schema([*((name, pyarrow.string()) for name in _TEXTS), ("vector", vector)])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in rows.parts():
            texts = [[_printable(text) for text in texts] for texts in part[: len(_TEXTS)]]
            numbers = pyarrow.array(part.vectors.ravel(), pyarrow.float32())
            vectors = pyarrow.FixedSizeListArray.from_arrays(numbers, rows.shape[0])
            writer.write_table(pyarrow.table([*texts, vectors], schema=schema))


def _printable(text: str) -> str:
    """A path whose bytes are no UTF-8, which Parquet does not hold, with those replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _stream(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], arrays: Iterable[np.ndarray]) -> None:
    """Writes an array of NumPy's format piece by piece."""
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, about)
    for array in arrays:
        file.write(np.ascontiguousarray(array, dtype).tobytes())


_WRITERS: dict[str, Callable[[pathlib.Path, Rows], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".safetensors": _write_safetensors,
}
