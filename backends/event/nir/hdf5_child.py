"""Reads one HDF5 file and writes it to stdout as `hdf5.packed`; a hostile file ends this process only."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import h5py
import numpy as np

from ....compiler.backend import Array
from .hdf5 import REFUSED, Leaf, Tree, packed

_DEEPEST = 16
_MOST_OBJECTS = 200_000
# Deflate packs at most 1032 bytes into one.
_LARGEST_RATIO = 1032
_SLACK = 1 << 16
_MEMORY = 4 << 30


class _Broken(Exception):
    """What is wrong with a file, in words."""


def main(path: Path, size: int, seconds: int) -> int:
    """Read a file; returns the exit status, and writes what is wrong to stderr."""
    _limit(size, seconds)
    try:
        with h5py.File(path, "r") as file:
            content = packed(_Walk(size).group(file, 0))
    except Exception as err:  # h5py raises anything on damaged files; all of it is the file's fault
        print(" ".join(str(err).split()) or type(err).__name__, file=sys.stderr)
        return REFUSED
    sys.stdout.buffer.write(content)
    return 0


def _limit(size: int, seconds: int) -> None:
    """Bound CPU time and memory, where the system has such limits."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        memory = _MEMORY + 8 * size
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


class _Walk:
    """Goes through the groups of one file."""

    def __init__(self, file_bytes: int) -> None:
        self._allowed = file_bytes * _LARGEST_RATIO + _SLACK
        self._objects = 0

    def group(self, group: h5py.Group, depth: int) -> dict[str, Leaf | Tree]:
        """Return a group's content."""
        if depth > _DEEPEST:
            raise _Broken(f"its groups are more than {_DEEPEST} deep")
        found: dict[str, Leaf | Tree] = {}
        for name in group:
            self._objects += 1
            if self._objects > _MOST_OBJECTS:
                raise _Broken(f"it has more than {_MOST_OBJECTS} objects")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _Broken(f"{group.name}/{name} is a link")
            item = group[name]
            found[name] = self.group(item, depth + 1) if isinstance(item, h5py.Group) else self._leaf(item)
        return found

    def _leaf(self, item: object) -> Leaf:
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            raise _Broken(f"{getattr(item, 'name', item)} is neither group nor data")
        text = h5py.check_string_dtype(item.dtype) is not None
        if item.is_virtual or item.external or not (text or item.dtype.kind in "iufbS"):
            raise _Broken(f"{item.name} has type {item.dtype} or lies outside the file")
        size = item.size * max(1, item.dtype.itemsize)
        if size > self._allowed:
            raise _Broken(f"{item.name} claims {size} bytes, more than the file can hold")
        return _plain(np.asarray(item[()]))


def _plain(found: Array) -> Leaf:
    """Return texts as str, scalars as numbers and the rest as arrays that nobody writes to."""
    if found.dtype.kind in "OS":
        words = np.array([_text(word) for word in found.reshape(-1)], dtype=str).reshape(found.shape)
        return words if words.ndim else str(words)
    if found.ndim == 0 and found.dtype in (np.int64, np.float64):
        return int(found) if found.dtype.kind == "i" else float(found)
    found = np.ascontiguousarray(found).reshape(found.shape)
    found.setflags(write=False)
    return found


def _text(word: object) -> str:
    if isinstance(word, bytes):
        return word.decode("utf-8")
    if isinstance(word, str):
        return word
    raise _Broken(f"a text was needed, found {type(word).__name__}")


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
