"""How one array fits one model input: shape, layout, dtype and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from .backend import Array, Port
from .data_columns import Column
from .errors import DataError

_DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT16": "float16",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Fit:
    """One column bound to one model input.

    Attributes:
        dtype: what is delivered.
        rows: rows of the column that make one sample.
        own_axis: the sample axis stands before the model's whole shape and is dropped.
        row_shape: shape of a row as delivered (without the model's leading dimension unless `own_axis`).
        note: what is done to the data, or empty.
    """

    port: Port
    column: Column
    dtype: np.dtype[np.generic]
    rows: int
    own_axis: bool
    row_shape: tuple[int, ...]
    note: str

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.column.shape[0] // self.rows

    @property
    def batchable(self) -> bool:
        """Whether several samples can go into one run."""
        return not self.own_axis and not isinstance(self.port.shape[0], int)

    def deliver(self, size: int) -> Iterator[Array]:
        """Yield arrays of `size` samples in the model's dtype and shape."""
        for block in self.column.blocks(size * self.rows):
            yield block.reshape(self.row_shape) if self.own_axis else block.reshape(-1, *self.row_shape)

    def cut(self, array: Array, samples: int) -> Array:
        """Cast a delivered array and keep its first `samples` samples."""
        kept = array if self.own_axis else array[: samples * self.rows]
        return np.asarray(kept, self.dtype, order="C")

    def checked(self, rows: int, purpose: str) -> Iterator[Array]:
        """Yield all rows cast to the model's dtype; raises `DataError` on NaN, Inf or a lossy cast."""
        start = 0
        for block in self.column.blocks(rows):
            yield self._checked_block(np.asarray(block), start, purpose)
            start += len(block)

    def _checked_block(self, block: Array, start: int, purpose: str) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            delivered = np.asarray(block, self.dtype, order="C")
        if self.dtype.kind == "f":
            self._refuse_rows(np.isnan(delivered), start, purpose, "nan", "NaN")
            self._refuse_rows(np.isinf(delivered), start, purpose, "inf", f"Inf (as {self.dtype})")
        if block.dtype.kind in "iu" and block.dtype != self.dtype:
            what = f"a {block.dtype} value that {self.dtype} cannot hold exactly"
            self._refuse_rows(
                _inexact(cast(npt.NDArray[np.integer], block), self.dtype), start, purpose, "dtype", what
            )
        return delivered

    def _refuse_rows(self, bad: Array, start: int, purpose: str, code: str, what: str) -> None:
        if not bad.any():
            return
        row = int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
        sample = (start + row) // self.rows
        raise DataError(
            f"{purpose}-{code}",
            f"input {self.port.name!r}: sample {sample} contains {what}",
            "clean the data",
        )


def _inexact(block: npt.NDArray[np.integer], dtype: np.dtype[np.generic]) -> npt.NDArray[np.bool_]:
    """Mark whole numbers outside the range in which `dtype` holds every whole number."""
    if dtype.kind == "f":
        high: int = 2 ** (np.finfo(dtype.name).nmant + 1)
        low = -high
    else:
        low, high = np.iinfo(dtype.name).min, np.iinfo(dtype.name).max
    return (block < low) | (block > high)


def fit_column(port: Port, column: Column, purpose: str) -> Fit:
    """Bind `column` to `port`, or raise `DataError` that shows both sides."""
    dtype, note = _dtype(port, column, purpose)
    if not column.shape:
        raise _shape_error(port, column, purpose, "the array has no sample axis")
    rows = column.shape[1:]
    if _matches(rows, port.shape[1:]) and port.shape:
        lead = port.shape[0]
        group = lead if isinstance(lead, int) else 1
        if group == 0 or column.shape[0] % group:
            raise _shape_error(port, column, purpose, f"{column.shape[0]} rows are no multiple of {group}")
        return Fit(port, column, dtype, group, False, rows, note)
    if _matches(rows, port.shape):
        if port.shape and rows[0] == 1:
            return Fit(port, column, dtype, 1, False, rows[1:], note)
        return Fit(port, column, dtype, 1, True, rows, note)
    raise _mismatch(port, column, purpose)


def _matches(have: tuple[int, ...], want: tuple[int | str, ...]) -> bool:
    if len(have) != len(want):
        return False
    return all(isinstance(w, str) or h == w for h, w in zip(have, want, strict=True))


def _dtype(port: Port, column: Column, purpose: str) -> tuple[np.dtype[np.generic], str]:
    if port.dtype not in _DTYPES:
        raise DataError(
            f"{purpose}-dtype",
            f"input {port.name!r} takes {port.dtype}, which sample files cannot hold",
            "convert the model input to one of " + ", ".join(_DTYPES),
        )
    want = np.dtype(_DTYPES[port.dtype])
    have = column.dtype
    if have == want:
        return want, ""
    # Floats go to floats (rounding only), whole numbers to what holds their values (checked by value).
    allowed = have.kind in "iub" if want.kind in "iuf" else have.kind == "b"
    if not allowed and not (have.kind == want.kind == "f"):
        raise DataError(
            f"{purpose}-dtype",
            f"input {port.name!r} takes {want}, the data are {have}",
            f"convert the data to {want} the way the model was trained",
        )
    return want, f"input {port.name!r}: {have} cast to {want}"


def _mismatch(port: Port, column: Column, purpose: str) -> DataError:
    rows, want = column.shape[1:], port.shape[1:]
    if rows and _matches((rows[-1], *rows[:-1]), want):
        return _layout_error(port, column, purpose, "channels last (NHWC)", "channels first (NCHW)", "-1, 1")
    if rows and _matches((*rows[1:], rows[0]), want):
        return _layout_error(port, column, purpose, "channels first (NCHW)", "channels last (NHWC)", "1, -1")
    fixed = [w for w in want if isinstance(w, int)]
    if len(fixed) == len(want) and np.prod(rows, dtype=np.int64) == np.prod(fixed, dtype=np.int64):
        return _shape_error(port, column, purpose, f"same number of elements: reshape to (-1, {fixed})")
    return _shape_error(port, column, purpose, "")


def _layout_error(port: Port, column: Column, purpose: str, have: str, want: str, move: str) -> DataError:
    return DataError(
        f"{purpose}-layout",
        f"input {port.name!r} is {list(port.shape)}, {want}; the data {list(column.shape)} look {have}",
        f"transpose them: numpy.moveaxis(x, {move})",
    )


def _shape_error(port: Port, column: Column, purpose: str, why: str) -> DataError:
    want = ", ".join(["samples", *map(str, port.shape[1:])])
    return DataError(
        f"{purpose}-shape",
        f"input {port.name!r} has shape {list(port.shape)}; the data have {list(column.shape)}"
        + (f": {why}" if why else ""),
        f"give an array of shape ({want})",
    )
