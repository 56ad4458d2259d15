"""Arrays on disk or in memory, read as consecutive blocks of rows; nothing here knows about models."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt

from .backend import Array
from .errors import DataError

# What zipfile, zlib and NumPy raise on damaged, encrypted or exotic members.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError)


class Column(Protocol):
    """One array, first axis = rows. `blocks` may be called again and again."""

    @property
    def shape(self) -> tuple[int, ...]:
        """All sizes, rows first."""
        ...

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Element type as stored."""
        ...

    def blocks(self, rows: int) -> Iterator[Array]:
        """Yield consecutive blocks of `rows` rows; the last may be shorter."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayColumn:
    """An array in memory or memory-mapped."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """All sizes, rows first."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Element type as stored."""
        return self.array.dtype

    def blocks(self, rows: int) -> Iterator[Array]:
        """Yield consecutive slices of `rows` rows."""
        for start in range(0, len(self.array), rows):
            yield self.array[start : start + rows]


@dataclass(frozen=True)
class ZipColumn:
    """A `.npy` member of an `.npz`, decompressed while it is read; at most one block is in memory."""

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int
    purpose: str

    def blocks(self, rows: int) -> Iterator[Array]:
        """Yield consecutive blocks; raises `DataError` where the file is damaged."""
        try:
            yield from self._read(rows)
        except _BROKEN as err:
            raise corrupt(self.purpose, self.path, f"{self.member}: {err}") from err

    def _read(self, rows: int) -> Iterator[Array]:
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            stream.read(self.offset)
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                raw = _read_exactly(stream, count * row_bytes)
                yield np.frombuffer(raw, self.dtype).reshape(count, *self.shape[1:])
            # Only a read that meets the end makes zipfile compare the checksum.
            if stream.read(1):
                raise EOFError("longer than its header says")


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    raw = stream.read(size)
    if len(raw) != size:
        raise EOFError(f"ends after {len(raw)} of {size} bytes")
    return raw


def corrupt(purpose: str, path: Path, why: str) -> DataError:
    """Return the error for a file that cannot be decoded."""
    return DataError(
        f"{purpose}-corrupt", f"{path}: cannot be read: {why}", "write the file again with numpy"
    )


def _refuse_objects(purpose: str, path: Path, name: str, dtype: np.dtype[np.generic]) -> None:
    if dtype.hasobject:
        raise DataError(
            f"{purpose}-pickled",
            f"{path}: array {name!r} holds pickled Python objects, which could run code when loaded",
            "store plain numeric arrays",
        )


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"npy format version {version} is for structured arrays")


def _zip_column(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, purpose: str) -> Column:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream)
        offset = stream.tell()
    _refuse_objects(purpose, path, name, dtype)
    expected = offset + dtype.itemsize * math.prod(shape)
    if info.file_size != expected:
        raise EOFError(f"{name}: header promises {expected} bytes, the archive has {info.file_size}")
    if fortran or not shape:
        with archive.open(info) as stream:
            return ArrayColumn(np.lib.format.read_array(stream, allow_pickle=False))
    return ZipColumn(path, info.filename, shape, dtype, offset, purpose)


def npz_columns(path: Path, purpose: str) -> dict[str, Column]:
    """Return the members of an `.npz`, unread; raises `DataError` for damaged or pickled ones."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {i.filename.removesuffix(".npy"): _zip_column(archive, i, path, purpose) for i in members}
    except _BROKEN as err:
        raise corrupt(purpose, path, str(err)) from err


def npy_column(path: Path, purpose: str) -> Column:
    """Return a memory-mapped `.npy`; raises `DataError` for damaged or pickled files."""
    try:
        with path.open("rb") as stream:
            dtype = _header(stream)[2]
        _refuse_objects(purpose, path, path.stem, dtype)
        # A file without elements cannot be mapped.
        mapped = np.load(path, mmap_mode="r" if path.stat().st_size > 4096 else None, allow_pickle=False)
    except _BROKEN as err:
        raise corrupt(purpose, path, str(err)) from err
    return ArrayColumn(mapped)


def folder_columns(folder: Path, purpose: str) -> dict[str, Column]:
    """Return every `.npy` below `folder`, named by its path without the suffix (so `a/b:0` works)."""
    files = sorted(folder.rglob("*.npy"))
    return {f.relative_to(folder).as_posix().removesuffix(".npy"): npy_column(f, purpose) for f in files}


class Spool:
    """Files of concatenated rows in a temporary directory, removed when the last user is gone."""

    def __init__(self, purpose: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pared-samples-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._purpose = purpose
        self._files: dict[str, IO[bytes]] = {}
        self._row: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {}
        self._rows: dict[str, int] = {}

    def append(self, name: str, rows: Array, sample: int) -> None:
        """Append `rows` [rows, ...]; every later block must have the same row shape and dtype."""
        known = self._row.setdefault(name, (rows.shape[1:], rows.dtype))
        if known != (rows.shape[1:], rows.dtype):
            raise DataError(
                f"{self._purpose}-shape",
                f"sample {sample}, {name!r}: shape {list(rows.shape[1:])} {rows.dtype}, "
                f"earlier samples have {list(known[0])} {known[1]}",
                "pad or cast the samples to one shape and dtype",
            )
        if name not in self._files:
            self._files[name] = (self.folder / f"{len(self._files)}.raw").open("wb")
        self._write(self._files[name], rows.tobytes())
        self._rows[name] = self._rows.get(name, 0) + len(rows)

    def _write(self, stream: IO[bytes], raw: bytes) -> None:
        try:
            stream.write(raw)
        except OSError as err:
            why = f"cannot store samples in {self.folder}: {err}"
            raise DataError(f"{self._purpose}-spool", why, "free space or set TMPDIR") from err

    def columns(self) -> dict[str, Column]:
        """Close the files and return them memory-mapped."""
        return {name: ArrayColumn(self._mapped(name)) for name in self._files}

    def _mapped(self, name: str) -> Array:
        stream = self._files[name]
        stream.close()
        row, dtype = self._row[name]
        shape = (self._rows[name], *row)
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)
        return np.memmap(stream.name, dtype, "r", shape=shape)

    def close(self) -> None:
        """Remove the files now."""
        for stream in self._files.values():
            stream.close()
        self._remove()


def spool_samples(
    source: Iterable[Mapping[str, npt.ArrayLike]], ranks: Mapping[str, int], purpose: str
) -> tuple[Spool, dict[str, Column]]:
    """Write the dicts of `source` to disk so that they can be read again.

    Args:
        source: one dict per sample or per batch; read once.
        ranks: rank of each model input; an array of that rank has rows first, a smaller one is a row.
        purpose: prefix of reason codes.
    """
    spool = Spool(purpose)
    try:
        for index, sample in enumerate(source):
            _spool_one(spool, sample, ranks, index, purpose)
        return spool, spool.columns()
    except BaseException:
        spool.close()
        raise


def _spool_one(spool: Spool, sample: object, ranks: Mapping[str, int], index: int, purpose: str) -> None:
    if not isinstance(sample, Mapping):
        raise DataError(
            f"{purpose}-format",
            f"sample {index} is a {type(sample).__name__}; a dict from input name to array is needed",
            'yield {"name": array}',
        )
    arrays = {str(name): np.asarray(value) for name, value in sample.items()}
    rows = 1
    for name, array in arrays.items():
        if name in ranks and array.ndim == ranks[name] > 0:
            rows = len(array)
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise DataError(
                f"{purpose}-pickled",
                f"sample {index}, {name!r} becomes an array of Python objects",
                "make it a plain numeric array",
            )
        batched = array.ndim == ranks[name] > 0 if name in ranks else array.ndim > 0 and len(array) == rows
        spool.append(name, array if batched else array[None], index)
