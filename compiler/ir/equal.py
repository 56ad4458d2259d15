"""Which constants are equal bit for bit, found without reading more weights than needed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .walk import drop_unused_initializer, is_unused, read_only

_PROBE_BYTES = 4096
_Key: TypeAlias = tuple[ir.DataType, tuple[int, ...]]


def equal_groups(graph: ir.Graph) -> Iterator[list[ir.Value]]:
    """Yield lists of two or more constants of `graph` that are equal bit for bit and may be shared."""
    by_kind: defaultdict[_Key, list[ir.Value]] = defaultdict(list)
    for value in graph.initializers.values():
        if _sharable(value) and value.const_value is not None:
            shape = tuple(int(dim) for dim in value.const_value.shape.numpy())
            by_kind[value.const_value.dtype, shape].append(value)
    for kind in _several(by_kind.values()):
        for probed in _several(_split(kind, _probe)):
            yield from _several(_split(probed, _digest))


def _sharable(value: ir.Value) -> bool:
    bound = value.is_graph_input() or value.is_graph_output() or is_unused(value)
    return not bound and value.dtype != ir.DataType.STRING


def _several(groups: Iterable[list[ir.Value]]) -> Iterator[list[ir.Value]]:
    return (group for group in groups if len(group) > 1)


def _split(values: list[ir.Value], key: Callable[[ir.Value], bytes]) -> Iterable[list[ir.Value]]:
    found: defaultdict[bytes, list[ir.Value]] = defaultdict(list)
    for value in values:
        found[key(value)].append(value)
    return found.values()


def _bytes_of(value: ir.Value) -> npt.NDArray[np.uint8]:
    assert value.const_value is not None
    array = np.ascontiguousarray(read_only(value.const_value.numpy()))
    return array.reshape(-1).view(np.uint8)


def _probe(value: ir.Value) -> bytes:
    content = _bytes_of(value)
    middle = content.size // 2
    return bytes(content[:_PROBE_BYTES]) + bytes(content[middle : middle + _PROBE_BYTES])


def _digest(value: ir.Value) -> bytes:
    return hashlib.sha256(_bytes_of(value).data).digest()


def share(group: list[ir.Value]) -> int:
    """Let all readers of equal constants read the first; return the bytes that went."""
    kept, *others = group
    saved = 0
    for other in others:
        saved += 0 if other.const_value is None else other.const_value.nbytes
        for user, index in other.uses():
            user.replace_input_with(index, kept)
        drop_unused_initializer(other)
    return saved
