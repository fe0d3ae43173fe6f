"""Files of feature vectors with the paths, splits and labels of their images: N rows, in one pass over the parts.

What is in memory at a time is one part.
"""

import csv
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

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


class Table(NamedTuple):
    """A file's rows: texts of the images, N each, and their vectors, NxD float32, a memory map where the format is."""

    paths: Sequence[str]
    splits: Sequence[str]
    labels: Sequence[str]
    vectors: np.ndarray


class Rows(NamedTuple):
    """All rows: what gives the parts, each time from the first, the number of rows, and the shape of a vector."""

    parts: Callable[[], Iterator[Part]]
    total: int
    shape: tuple[int, ...]


def check(output: pathlib.Path, feature: str, begun: bool = False) -> None:
    """Refuses a name that no format has, a format that does not hold the feature, and a file that is there.

    Args:
        output: the name.
        feature: to be held.
        begun: by a job that was stopped, perhaps between the texts and the vectors, which `write` writes last.

    Raises:
        UserError: so.
    """
    suffix = output.suffix.lower()
    if suffix not in _WRITERS:
        raise UserError(f"--output={output} came, expected a name that ends in one of {', '.join(_WRITERS)}")
    if feature == "dense" and suffix in (".csv", ".parquet"):
        raise UserError(
            f"--feature=dense came with a {suffix}, which has rows of numbers; expected .npz, .npy or .safetensors"
        )
    if suffix == ".parquet":
        extras.need("a .parquet file", ("pyarrow",), "parquet", "; or give another format, such as .npz")
    for path in files(output)[: 1 if begun else None]:
        if path.exists():
            raise UserError(f"{path} exists already; give another --output, or move it away")
    if not output.parent.is_dir():
        raise UserError(f"--output={output} is in a folder that is not there; make it, or give another")


def files(output: pathlib.Path) -> list[pathlib.Path]:
    """What is written for an output: it, and the texts beside formats that hold numbers alone."""
    return [output, *([output.with_suffix(".csv")] if output.suffix.lower() in (".npy", ".safetensors") else [])]


def write(output: pathlib.Path, rows: Rows) -> None:
    """Writes the files of an output, each as a whole, the vectors last: with them it is done. Raises UserError."""
    first, *beside = files(output)
    for path in beside:
        with replacing(path) as draft:
            _write_csv(draft, rows, vectors=False)
    with replacing(first) as draft:
        _WRITERS[output.suffix.lower()](draft, rows)


def read(path: pathlib.Path) -> Table:
    """What `write` wrote. Vectors of a .csv or .parquet are in memory; those of the others stay in the file.

    Raises:
        UserError: the file cannot be read, is none of these, or holds something else.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise UserError(f"{path} came, expected a file of vectors: one of {', '.join(_READERS)}")
    if suffix == ".parquet":
        extras.need("a .parquet file", ("pyarrow",), "parquet", "; or give another format, such as .npz")
    try:
        found = _READERS[suffix](path)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read ({error.strerror or error}); {_EXPECTED}") from None
    except Exception as error:  # readers raise whatever damaged bytes lead to
        raise UserError(f"{path} is no file of vectors ({_reason(error)}); {_EXPECTED}") from None
    shape, kind = found.vectors.shape, found.vectors.dtype.kind
    if len(shape) != 2 or not shape[0] or kind != "f" or {len(texts) for texts in found[:3]} != {shape[0]}:
        texts = " and ".join(str(len(column)) for column in found[:3])
        raise UserError(f"{path} holds {found.vectors.dtype} {shape} with {texts} texts, {_EXPECTED}")
    return found


_EXPECTED = "expected vectors N x D of moco_tf.embed with N paths, splits and labels; write it again"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _read_texts(path: pathlib.Path) -> Iterator[list[str]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file)
        if next(lines, [])[: len(_TEXTS)] != list(_TEXTS):
            raise ValueError(f"{path} has no columns {', '.join(_TEXTS)}")
        yield from lines


def _columns(rows: Iterable[Sequence[str]]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    paths, splits, labels = zip(*rows)
    return paths, splits, labels


def _read_csv(path: pathlib.Path) -> Table:
    texts, vectors = [], []
    for row in _read_texts(path):
        texts.append(row[: len(_TEXTS)])
        vectors.append(np.array(row[len(_TEXTS) :], np.float32))
    return Table(*_columns(texts), np.stack(vectors))


def _read_npy(path: pathlib.Path) -> Table:
    columns = _columns(_read_texts(path.with_suffix(".csv")))
    return Table(*columns, np.load(path, mmap_mode="r", allow_pickle=False))


def _read_npz(path: pathlib.Path) -> Table:
    with zipfile.ZipFile(path) as archive:
        members = [archive.getinfo(f"{name}.npy") for name in ("paths", "splits", "labels", "vectors")]
    arrays: list[Any] = [_member(path, member) for member in members]  # one of texts is a sequence of them
    return Table(*arrays)


def _member(path: pathlib.Path, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive, where it lies in the file; one that is compressed in memory."""
    if member.compress_type != zipfile.ZIP_STORED:
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file[member.filename.removesuffix(".npy")])
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        file.seek(sum(np.frombuffer(file.read(4), "<u2").tolist()), 1)  # behind its name and extra field
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("objects")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _read_safetensors(path: pathlib.Path) -> Table:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))["vectors"]
    if entry["dtype"] != "F32":
        raise ValueError(f"vectors are {entry['dtype']}")
    start = 8 + size + entry["data_offsets"][0]
    vectors = np.memmap(path, "<f4", "r", start, tuple(entry["shape"]))
    return Table(*_columns(_read_texts(path.with_suffix(".csv"))), vectors)


def _read_parquet(path: pathlib.Path) -> Table:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    paths, splits, labels = (table[name].to_pylist() for name in _TEXTS)
    vectors = table["vector"].combine_chunks()
    return Table(paths, splits, labels, vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1))


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

_READERS: dict[str, Callable[[pathlib.Path], Table]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".safetensors": _read_safetensors,
}
