"""HDF5 as plain dictionaries, for files from anywhere: no links, no sizes that the file cannot hold."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from ....compiler.backend import Array
from ....compiler.errors import MissingTool, ModelError

if TYPE_CHECKING:
    import h5py

Leaf: TypeAlias = Array | int | float | str
Tree: TypeAlias = "Mapping[str, Leaf | Tree]"

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_DEEPEST = 16
_MOST_OBJECTS = 200_000
# Deflate packs at most 1032 bytes into one.
_LARGEST_RATIO = 1032
_SLACK = 1 << 16


class _Broken(Exception):
    """What is wrong with a file, in words."""


def need_h5py() -> None:
    """Raise `MissingTool` where h5py is not installed."""
    try:
        import h5py  # noqa: F401
    except ImportError as err:
        raise MissingTool(
            "nir-needs-h5py",
            "NIR and lava files are HDF5, and h5py is not installed",
            'pip install "pared[event]"',
        ) from err


def read_tree(path: Path) -> Tree:
    """Read a whole HDF5 file.

    Raises:
        ModelError: `model-not-found`, `model-unreadable`, `hdf5-damaged`: no HDF5, cut off, with links that
            leave the file, with types or sizes that no network has.
        MissingTool: h5py is not installed.
    """
    need_h5py()
    import h5py

    try:
        data = path.read_bytes()
    except FileNotFoundError as err:
        raise ModelError("model-not-found", f"there is no file {path}", "check the path") from err
    except OSError as err:
        raise ModelError("model-unreadable", f"{path} cannot be read: {err}", "check the path") from err
    try:
        if not data.startswith(SIGNATURE):
            raise _Broken("it does not begin as HDF5 files do")
        with h5py.File(io.BytesIO(data), "r") as file:
            return _Walk(len(data)).group(file, 0)
    except (_Broken, OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as err:
        what = " ".join(str(err).split())[:300]
        raise ModelError(
            "hdf5-damaged", f"{path} is no readable HDF5 file: {what}", "export it again"
        ) from err


class _Walk:
    """Goes through the groups of one file."""

    def __init__(self, file_bytes: int) -> None:
        self._allowed = file_bytes * _LARGEST_RATIO + _SLACK
        self._objects = 0

    def group(self, group: h5py.Group, depth: int) -> dict[str, Leaf | Tree]:
        """Return a group's content."""
        import h5py

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
        import h5py

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


def write_tree(tree: Tree) -> bytes:
    """Return a HDF5 file; equal trees give equal bytes."""
    need_h5py()
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        _write(file, tree)
    return stream.getvalue()


def _write(group: h5py.Group, tree: Tree) -> None:
    import h5py

    for name, item in tree.items():
        if isinstance(item, Mapping):
            _write(group.create_group(name), item)
        elif isinstance(item, str):
            group.create_dataset(name, data=item, dtype=h5py.string_dtype())
        elif isinstance(item, np.ndarray) and item.dtype.kind == "U":
            words = item.astype(object)
            group.create_dataset(name, data=words, dtype=h5py.string_dtype())
        elif isinstance(item, np.ndarray) and item.ndim:
            group.create_dataset(name, data=item, compression="gzip")
        else:
            group.create_dataset(name, data=item)
