"""Event graphs as one file: a JSON header and arrays in an .npz; no pickle, equal graphs give equal bytes."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from ...compiler.backend import Array
from ...compiler.errors import ArtifactError
from . import graph as G

FILE = "model.npz"
_VERSION = 1
_TYPES: dict[str, Callable[..., object]] = {
    kind.__name__: kind
    for kind in (
        G.Window, G.Dense, G.Conv, G.SumPool, G.MaxPool, G.OneToOne, G.Connection, G.Ladder, G.Input,
        G.Layer, G.Output, G.EventGraph,
    )
}  # fmt: skip


def pack(graph: G.EventGraph) -> bytes:
    """Return the file's bytes."""
    arrays: list[Array] = []
    header = json.dumps({"version": _VERSION, "graph": _encode(graph, arrays)}, separators=(",", ":"))
    named = {f"a{index}": array for index, array in enumerate(arrays)}
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, header=np.frombuffer(header.encode(), np.uint8), **named)
    return stream.getvalue()


def unpack(path: Path) -> G.EventGraph:
    """Read what `pack` wrote.

    Raises:
        ArtifactError: missing, damaged or of another version.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays["header"].tobytes().decode())
        if header["version"] != _VERSION:
            raise ValueError(f"version {header['version']}, this pared reads {_VERSION}")
        return cast(G.EventGraph, _decode(header["graph"], arrays))
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as err:
        raise ArtifactError("artifact-events", f"cannot read {path}: {err}", "compile it again") from err


def _encode(item: object, arrays: list[Array]) -> object:
    if isinstance(item, np.ndarray):
        arrays.append(_narrow(item))
        return {"array": f"a{len(arrays) - 1}", "dtype": item.dtype.name}
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = {f.name: _encode(getattr(item, f.name), arrays) for f in dataclasses.fields(item)}
        return {"type": type(item).__name__, **fields}
    if isinstance(item, tuple):
        return [_encode(part, arrays) for part in item]
    return item


def _narrow(array: Array) -> Array:
    """Return integers in the smallest type that holds them."""
    if array.dtype.kind != "i" or not array.size:
        return array
    return array.astype(np.result_type(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))


def _decode(item: object, arrays: dict[str, Array]) -> object:
    if isinstance(item, list):
        return tuple(_decode(part, arrays) for part in item)
    if not isinstance(item, dict):
        return item
    if "array" in item:
        array = arrays[item["array"]].astype(item["dtype"])
        array.flags.writeable = False
        return array
    return _TYPES[item["type"]](
        **{key: _decode(value, arrays) for key, value in item.items() if key != "type"}
    )
