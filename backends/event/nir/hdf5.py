"""HDF5 as plain dictionaries, for files from anywhere: no links, no sizes that the file cannot hold."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from ....compiler.backend import Array
from ....compiler.errors import MissingTool, ModelError
from ....compiler.records import Json

if TYPE_CHECKING:
    import h5py

Leaf: TypeAlias = Array | int | float | str
Tree: TypeAlias = "Mapping[str, Leaf | Tree]"

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
# Exit status of the process that reads, for what it refuses itself.
REFUSED: Final = 3
# CPU seconds that reading may take; files of networks take milliseconds, gzip unpacks 50 MB in a second.
_SECONDS = 10
_BYTES_PER_SECOND = 5_000_000


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
    """Read a whole HDF5 file, in a process of its own: the library hangs or crashes on some damaged files.

    Raises:
        ModelError: `model-not-found`, `model-unreadable`, `hdf5-damaged`: no HDF5, cut off, with links, with
            types or sizes that no network has, or what the library does not survive.
        MissingTool: h5py is not installed.
    """
    need_h5py()
    if path.exists() and not path.is_file():
        raise ModelError("not-a-file", f"{path} is no regular file", "name the file of the network")
    try:
        with path.open("rb") as file:
            begins, size = file.read(len(SIGNATURE)), path.stat().st_size
    except FileNotFoundError as err:
        raise ModelError("model-not-found", f"there is no file {path}", "check the path") from err
    except OSError as err:
        raise ModelError("model-unreadable", f"{path} cannot be read: {err}", "check the path") from err
    if begins != SIGNATURE:
        raise damaged(path, "it does not begin as HDF5 files do")
    seconds = _SECONDS + size // _BYTES_PER_SECOND
    command = [sys.executable, "-P", "-m", f"{__package__}.hdf5_child", str(path), str(size), str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=2 * seconds, check=False)
    except subprocess.TimeoutExpired as err:
        raise damaged(path, f"it was not read within {2 * seconds} s") from err
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        told = words[-1][:300] if words and done.returncode == REFUSED else "the library does not survive it"
        raise damaged(path, told)
    return unpacked(done.stdout)


def damaged(path: Path, finding: str) -> ModelError:
    """Return the refusal of a file."""
    return ModelError("hdf5-damaged", f"{path} is no readable HDF5 file: {finding}", "export it again")


def packed(tree: Tree) -> bytes:
    """Return a tree as an .npz whose header says where its arrays belong."""
    arrays: list[Array] = []
    header = json.dumps(_outline(tree, arrays)).encode()
    stream = io.BytesIO()
    named = {f"a{index}": array for index, array in enumerate(arrays)}
    np.savez(stream, allow_pickle=False, header=np.frombuffer(header, np.uint8), **named)
    return stream.getvalue()


def _outline(tree: Tree, arrays: list[Array]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for name, item in tree.items():
        if isinstance(item, Mapping):
            found[name] = _outline(item, arrays)
        elif isinstance(item, np.ndarray):
            found[name] = [len(arrays)]
            arrays.append(item)
        else:
            found[name] = item
    return found


def unpacked(data: bytes) -> Tree:
    """Return the tree of `packed`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        header = json.loads(file["header"].tobytes())
        return _filled(header, file)


def _filled(outline: Mapping[str, Json], file: Mapping[str, Array]) -> dict[str, Leaf | Tree]:
    found: dict[str, Leaf | Tree] = {}
    for name, item in outline.items():
        if isinstance(item, Mapping):
            found[name] = _filled(item, file)
        elif isinstance(item, list):
            found[name] = file[f"a{item[0]}"]
            file_array = found[name]
            assert isinstance(file_array, np.ndarray), "arrays were packed"
            file_array.setflags(write=False)
        elif isinstance(item, int | float | str):
            found[name] = item
    return found


def write_tree(tree: Tree) -> bytes:
    """Return a HDF5 file; equal trees give equal bytes, in whatever order they are."""
    need_h5py()
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        _write(file, tree)
    return stream.getvalue()


def _write(group: h5py.Group, tree: Tree) -> None:
    import h5py

    for name, item in sorted(tree.items()):
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
