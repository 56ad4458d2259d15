"""One-shot iterables of samples, stored so that they can be read again and again."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from .backend import Array
from .data_columns import Column, FileColumn
from .errors import DataError


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
        try:
            if name not in self._files:
                self._files[name] = (self.folder / f"{len(self._files)}.raw").open("wb")
            self._files[name].write(rows.tobytes())
        except OSError as err:
            raise self._unwritable(err) from err
        self._rows[name] = self._rows.get(name, 0) + len(rows)

    def columns(self) -> dict[str, Column]:
        """Close the files and return what they hold."""
        return {name: self._column(name) for name in self._files}

    def _column(self, name: str) -> Column:
        stream = self._files[name]
        try:
            stream.close()
        except OSError as err:
            raise self._unwritable(err) from err
        row, dtype = self._row[name]
        return FileColumn(Path(stream.name), (self._rows[name], *row), dtype, 0, self._purpose)

    def _unwritable(self, err: OSError) -> DataError:
        why = f"cannot store samples in {self.folder}: {err.strerror or err}"
        return DataError(f"{self._purpose}-spool", why, "free space or set TMPDIR")

    def close(self) -> None:
        """Remove the files now."""
        for stream in self._files.values():
            with contextlib.suppress(OSError):  # a full disk; the file goes anyway
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
