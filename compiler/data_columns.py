"""Arrays on disk or in memory, read as consecutive blocks of rows; nothing here knows about models."""

from __future__ import annotations

import contextlib
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np

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
    """An array in memory."""

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
class FileColumn:
    """A `.npy` file, a member of an `.npz`, or raw numbers; at most one block is in memory.

    Read, not memory-mapped: mapped pages count as memory of the process, and a file that shrinks kills it.

    Attributes:
        offset: bytes before the first row.
        member: name inside the `.npz`; empty when the file itself holds the rows.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int
    purpose: str
    member: str = ""

    def blocks(self, rows: int) -> Iterator[Array]:
        """Yield consecutive blocks; raises `DataError` where the file is damaged."""
        try:
            yield from self._read(rows)
        except _BROKEN as err:
            raise corrupt(
                self.purpose, self.path, f"{self.member}: {err}" if self.member else str(err)
            ) from err

    def _read(self, rows: int) -> Iterator[Array]:
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        with self._opened() as stream:
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                raw = _read_exactly(stream, count * row_bytes)
                yield np.frombuffer(raw, self.dtype).reshape(count, *self.shape[1:])
            # Only a read that meets the end makes zipfile compare the checksum.
            if stream.read(1):
                raise EOFError("longer than its header says")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        if not self.member:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                yield stream
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            stream.read(self.offset)
            yield stream


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
    """Return shape, Fortran order and dtype; raises `ValueError` for what is no header."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy format version {version} is for structured arrays")
    try:
        shape, fortran, dtype = readers[version](stream)
    except (tokenize.TokenError, RecursionError, MemoryError) as err:  # NumPy parses it as Python source
        raise ValueError(f"damaged header: {type(err).__name__}") from err
    if any(size < 0 for size in shape):
        raise ValueError(f"damaged header: shape {shape}")
    return shape, fortran, dtype


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
    return FileColumn(path, shape, dtype, offset, purpose, info.filename)


def npz_columns(path: Path, purpose: str) -> dict[str, Column]:
    """Return the members of an `.npz`, unread; raises `DataError` for damaged or pickled ones."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {i.filename.removesuffix(".npy"): _zip_column(archive, i, path, purpose) for i in members}
    except _BROKEN as err:
        raise corrupt(purpose, path, str(err)) from err


def npy_column(path: Path, purpose: str) -> Column:
    """Return a `.npy`, unread; raises `DataError` for damaged or pickled files."""
    try:
        with path.open("rb") as stream:
            shape, fortran, dtype = _header(stream)
            offset = stream.tell()
        _refuse_objects(purpose, path, path.stem, dtype)
        expected, found = offset + dtype.itemsize * math.prod(shape), path.stat().st_size
        if found != expected:
            raise EOFError(f"header promises {expected} bytes, the file has {found}")
        if fortran or not shape:
            return ArrayColumn(np.load(path, allow_pickle=False))
    except _BROKEN as err:
        raise corrupt(purpose, path, str(err)) from err
    return FileColumn(path, shape, dtype, offset, purpose)


def folder_columns(folder: Path, purpose: str) -> dict[str, Column]:
    """Return every `.npy` below `folder`, named by its path without the suffix (so `a/b:0` works)."""
    files = sorted(folder.rglob("*.npy"))
    return {f.relative_to(folder).as_posix().removesuffix(".npy"): npy_column(f, purpose) for f in files}
