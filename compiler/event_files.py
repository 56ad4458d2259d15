"""Reads recordings of events, rasters and frames, a piece at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from .backend import Array
from .errors import DataError
from .streams import EVENT, Events

CHUNK = 1 << 16
_COLUMNS = ("x", "y", "t", "p")
_NMNIST_BYTES = 5
_NMNIST_CLOCK_BITS = 23


@dataclass(frozen=True, eq=False)
class Recording:
    """An opened file.

    Attributes:
        path: of the file.
        kind: `events`, or `frames`: [time, ...] or [time, neurons].
        clock_bits: after how many bits the time stamps start again at 0; None: never.
        resolution: width and height of the sensor where the file says so.
        truncated: bytes at the end that are no whole event.
    """

    path: Path
    kind: str
    clock_bits: int | None
    resolution: tuple[int, int] | None
    truncated: int
    _columns: dict[str, Array]
    _raw: Array | None = None

    def __len__(self) -> int:
        """Return how many events or frames there are."""
        source = self._raw if self._raw is not None else next(iter(self._columns.values()))
        return len(source)

    def events(self, size: int = CHUNK) -> Iterator[Events]:
        """Yield events, `size` at a time."""
        for first in range(0, len(self), size):
            if self._raw is not None:
                yield _nmnist(self._raw[first : first + size])
            else:
                yield _events({name: array[first : first + size] for name, array in self._columns.items()})

    def frames(self, size: int = 64) -> Iterator[Array]:
        """Yield frames [some, ...], `size` at a time."""
        assert self._raw is not None, "frames are one array"
        for first in range(0, len(self), size):
            yield np.array(self._raw[first : first + size])


def open_recording(path: Path) -> Recording:
    """Open a recording.

    Taken: `.bin` as N-MNIST has it (5 bytes per event: x, y, polarity and 23 bits of microseconds); `.npy`
    of a structured array with x, y, t, p; `.npz` with arrays x, y, t, p, maybe `resolution` (width, height);
    `.npy` or `.npz` of one array [time, neurons] or [time, channels, height, width].

    Raises:
        DataError: `events-file`, what is wrong with it.
    """
    try:
        if path.suffix == ".bin":
            return _open_bin(path)
        if path.suffix == ".npy":
            return _of_array(path, np.load(path, mmap_mode="r", allow_pickle=False))
        if path.suffix == ".npz":
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return _open_arrays(path, {name: file[name] for name in file.files})
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise _refuse(path, f"cannot be read: {getattr(err, 'strerror', None) or err}") from err
    raise _refuse(path, f"has the ending {path.suffix!r}")


def _refuse(path: Path, what: str) -> DataError:
    return DataError(
        "events-file",
        f"{path} {what}",
        "give a .bin of N-MNIST, or a .npy or .npz with x, y, t (whole microseconds) and p, or of frames",
    )


def _open_bin(path: Path) -> Recording:
    size = path.stat().st_size
    count = size // _NMNIST_BYTES
    raw = (
        np.memmap(path, np.uint8, "r", shape=(count, _NMNIST_BYTES)) if count else np.zeros((0, 5), np.uint8)
    )
    return Recording(path, "events", _NMNIST_CLOCK_BITS, None, size - count * _NMNIST_BYTES, {}, raw)


def _nmnist(raw: Array) -> Events:
    wide = np.asarray(raw, np.int64)
    found = np.empty(len(wide), EVENT)
    found["x"], found["y"], found["p"] = wide[:, 0], wide[:, 1], wide[:, 2] >> 7
    found["t"] = (wide[:, 2] & 127) << 16 | wide[:, 3] << 8 | wide[:, 4]
    return found


def _fields(array: Array) -> dict[str, Array]:
    records = cast(Events, array)
    return {name: records[name] for name in records.dtype.names or ()}


def _of_array(path: Path, array: Array) -> Recording:
    if array.dtype.names:
        return _of_columns(path, _fields(array), None)
    if array.ndim < 2 or array.dtype.kind not in "biuf":
        raise _refuse(path, f"holds {array.dtype} of shape {array.shape}, no events and no frames")
    return Recording(path, "frames", None, None, 0, {}, array)


def _open_arrays(path: Path, arrays: dict[str, Array]) -> Recording:
    if {"x", "y", "t"} <= set(arrays):
        return _of_columns(path, arrays, arrays.get("resolution"))
    if len(arrays) == 1:
        return _of_array(path, next(iter(arrays.values())))
    raise _refuse(path, f"holds {', '.join(sorted(arrays)) or 'nothing'}")


def _of_columns(path: Path, arrays: dict[str, Array], resolution: Array | None) -> Recording:
    columns: dict[str, Array] = {name: arrays[name] for name in _COLUMNS if name in arrays}
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        raise _refuse(path, f"lacks {', '.join(missing)}")
    sizes = {array.shape for array in columns.values()}
    if len(sizes) != 1 or len(next(iter(sizes))) != 1:
        raise _refuse(path, f"has columns of shapes {sorted(sizes)}")
    wrong = [
        name for name, array in columns.items() if array.dtype.kind not in ("iub" if name == "p" else "iu")
    ]
    if wrong:
        raise _refuse(path, f"has {wrong[0]} of {columns[wrong[0]].dtype}, integers are needed")
    size = None
    if resolution is not None:
        flat = np.asarray(resolution).reshape(-1)
        if flat.size != 2 or flat.dtype.kind not in "iu":
            raise _refuse(path, f"has a resolution of {flat}, width and height are needed")
        size = (int(flat[0]), int(flat[1]))
    clock = columns["t"].dtype
    bits = clock.itemsize * 8 if clock.kind == "u" and clock.itemsize < 8 else None
    return Recording(path, "events", bits, size, 0, columns)


def _events(columns: dict[str, Array]) -> Events:
    found = np.empty(len(columns["t"]), EVENT)
    for name in ("x", "y", "p"):
        found[name] = _narrowed(columns[name], np.iinfo(EVENT[name]).max)
    found["t"] = _narrowed(columns["t"], np.iinfo(np.int64).max, beyond=-1)
    return found


def _narrowed(array: Array, most: int, beyond: int | None = None) -> Array:
    """Return integers; what a narrower type cannot hold becomes `beyond`, which is out of any range."""
    if array.dtype.kind == "b":
        return array
    whole: npt.NDArray[np.integer] = np.asarray(array)
    fits = (whole <= most) & (whole >= -most)
    return np.asarray(np.where(fits, whole, most if beyond is None else beyond), np.int64)
