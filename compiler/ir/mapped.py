"""Reading a big .onnx file without loading the weights inside it.

A model of 1 GB in one file would be held three times on the way in: the file's bytes, protobuf's copy, the
arrays. Instead the outer fields of the serialised model are walked, the raw data of large initializers is
left out, and each such tensor is told to lie in the .onnx file itself, at its offset, as external data.
Wire format: https://protobuf.dev/programming-guides/encoding/; field numbers: onnx.proto.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import onnx

# Smaller files and tensors are simply read.
SMALLEST_FILE = 16 << 20
_SMALLEST_TENSOR = 1 << 16

_GRAPH, _INITIALIZER, _RAW_DATA, _DATA_LOCATION = 7, 5, 9, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _NotPlainError(Exception):
    """The bytes are not laid out as expected; the caller reads the file as a whole."""


@dataclass(frozen=True)
class _Field:
    """One field: its number, kind, start, and where its content starts and ends."""

    number: int
    kind: int
    start: int
    content: int
    end: int


def read_without_weights(path: Path) -> bytes | None:
    """Return the serialised model with big weights pointing into the file at `path`, or None.

    None: the file is small, has a second name (hard link), or is not laid out plainly; read it whole.
    `path` must have no symbolic links in it. Raises OSError.
    """
    status = path.stat()
    if status.st_size < SMALLEST_FILE or status.st_nlink > 1:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _model(data, path.name)
        except _NotPlainError:
            return None


def _model(data: mmap.mmap, name: str) -> bytes:
    parts: list[bytes] = []
    for field in _fields(data, 0, len(data)):
        if field.number == _GRAPH and field.kind == _BYTES:
            parts.append(_message(_GRAPH, _graph(data, field, name)))
        else:
            parts.append(data[field.start : field.end])
    return b"".join(parts)


def _graph(data: mmap.mmap, graph: _Field, name: str) -> bytes:
    parts: list[bytes] = []
    kept = graph.content
    for field in _fields(data, graph.content, graph.end):
        if field.number != _INITIALIZER or field.end - field.content < _SMALLEST_TENSOR:
            continue
        parts.append(data[kept : field.start])
        parts.append(_message(_INITIALIZER, _tensor(data, field, name)))
        kept = field.end
    parts.append(data[kept : graph.end])
    return b"".join(parts)


def _tensor(data: mmap.mmap, tensor: _Field, name: str) -> bytes:
    fields = list(_fields(data, tensor.content, tensor.end, most=1 << 12))
    raw = [field for field in fields if field.number == _RAW_DATA and field.kind == _BYTES]
    if len(raw) != 1 or any(field.number == _DATA_LOCATION for field in fields):
        if tensor.end - tensor.content > SMALLEST_FILE:
            raise _NotPlainError
        return data[tensor.content : tensor.end]
    outside = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    size = raw[0].end - raw[0].content
    for key, value in {"location": name, "offset": str(raw[0].content), "length": str(size)}.items():
        outside.external_data.add(key=key, value=value)
    kept = [data[field.start : field.end] for field in fields if field is not raw[0]]
    return b"".join(kept) + bytes(outside.SerializeToString())


def _fields(data: mmap.mmap, at: int, end: int, most: int = 1 << 22) -> list[_Field]:
    """Return the fields of the message in `data[at:end]`, without looking into them."""
    found: list[_Field] = []
    while at < end:
        start = at
        key, at = _varint(data, at, end)
        kind, content = key & 7, at
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind == _BYTES:
            size, content = _varint(data, at, end)
            at = content + size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise _NotPlainError
        if at > end or len(found) >= most:
            raise _NotPlainError
        found.append(_Field(key >> 3, kind, start, content, at))
    return found


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _NotPlainError


def _message(number: int, content: bytes) -> bytes:
    size, head = len(content), bytearray([number << 3 | _BYTES])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + content
