"""From what the user handed in to a parsed ModelProto: read, hash, sniff and parse, with clear refusals."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ..errors import ModelError
from .mapped import read_without_weights

# Protobuf cannot parse more than this many bytes; larger models keep their weights beside the file.
_LARGEST_FILE = 2**31 - 1
_CHUNK = 1 << 20

# Levels of If/Loop/Scan bodies. Protobuf stops at 100 messages, which is 33 levels.
MOST_NESTED = 24

# Beginnings of files that are not ONNX but are handed in by mistake.
_SIGNATURES: Mapping[bytes, str] = {
    b"\x89PNG": "a PNG image",
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint or a Keras file, perhaps)",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x89HDF": "an HDF5 file (a Keras model, perhaps)",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"GGUF": "a GGUF file",
    b"%PDF": "a PDF document",
    b"\x7fELF": "an ELF program",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}


@dataclass(frozen=True)
class Source:
    """A parsed but unchecked model.

    Attributes:
        proto: the model as read.
        sha256: of the file's bytes.
        path: where it came from, or None for bytes and protos.
        mapped: the file that big weights of the proto point into: `path` without links; None when all
            weights inside the file were read.
    """

    proto: onnx.ModelProto
    sha256: str
    path: Path | None
    mapped: Path | None = None


def read_path(path: Path) -> Source:
    """Read and parse a file.

    Raises:
        ModelError: `model-not-found`, `not-a-file`, `model-unreadable`, `model-too-large`, or what
            `read_bytes` raises.
    """
    _check_file(path)
    try:
        real = path.resolve()
        outline = read_without_weights(real)
        if outline is not None:
            return Source(_parse(outline, str(path)), file_digest(real), path, real)
        data = path.read_bytes()
    except (OSError, ValueError) as err:
        raise _unreadable(path, err) from err
    return Source(_parse(data, str(path)), hashlib.sha256(data).hexdigest(), path)


def read_bytes(data: bytes) -> Source:
    """Parse a serialised model.

    Raises:
        ModelError: `empty-model`, `not-onnx`, `truncated-model`, `too-deep`.
    """
    return Source(_parse(data, "the given bytes"), hashlib.sha256(data).hexdigest(), None)


def read_proto(proto: onnx.ModelProto) -> Source:
    """Take a copy of a ModelProto (import edits it); its hash is that of its deterministic serialisation."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return Source(copy, hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest(), None)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file, read in pieces."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _check_file(path: Path) -> None:
    """Refuse what is not a regular file of a size that protobuf can read."""
    try:
        status = path.stat()
    except FileNotFoundError as err:
        raise ModelError("model-not-found", f"there is no file {path}", "check the path") from err
    except (OSError, ValueError) as err:
        raise _unreadable(path, err) from err
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ModelError("not-a-file", f"{path} is {kind}, an ONNX file was needed", "name the .onnx file")
    if status.st_size > _LARGEST_FILE:
        raise ModelError(
            "model-too-large",
            f"{path} has {status.st_size} bytes; protobuf reads at most {_LARGEST_FILE}",
            "save the weights as external data: onnx.save(..., save_as_external_data=True)",
        )


def _unreadable(path: Path, err: Exception) -> ModelError:
    return ModelError(
        "model-unreadable", f"{path} cannot be read: {err}", "check the path and its permissions"
    )


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    if not data:
        raise ModelError("empty-model", f"{where} is empty, an ONNX model was needed", "export it again")
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature):
            raise _not_onnx(where, f"it is {kind}")
    if data[4:8] == b"TFL3":
        raise _not_onnx(where, "it is a TensorFlow Lite model; convert it with tf2onnx")
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError as err:
        raise _why_undecodable(data, where, str(err)) from err
    if not proto.HasField("graph") or not proto.ir_version:
        raise _not_onnx(where, "it has no graph and IR version")
    return proto


def _not_onnx(where: str, finding: str) -> ModelError:
    return ModelError("not-onnx", f"{where} is not an ONNX model: {finding}", "give an .onnx file")


def _why_undecodable(data: bytes, where: str, finding: str) -> ModelError:
    """Tell a cut-off file and a too deeply nested one from something that never was ONNX."""
    if "MaxDepth" in finding:
        return too_deep(where)
    fields = _top_fields(data)
    if not fields.plausible:
        return _not_onnx(where, "its bytes are not a protobuf ModelProto")
    if fields.ends_early:
        return ModelError(
            "truncated-model",
            f"{where} ends early: a field needs {fields.missing} more bytes",
            "copy or download the file again and compare its checksum",
        )
    return ModelError(
        "malformed-model",
        f"{where} has the outline of an ONNX model, but its inside cannot be parsed: {finding}",
        "copy or download the file again and compare its checksum",
    )


def too_deep(where: str) -> ModelError:
    """Return the refusal of graphs nested deeper than anything real."""
    return ModelError(
        "too-deep",
        f"{where} nests graphs too deeply",
        f"flatten If/Loop bodies to at most {MOST_NESTED} levels",
    )


@dataclass(frozen=True)
class _Outline:
    plausible: bool
    ends_early: bool = False
    missing: int = 0


# Field number -> wire type of ModelProto (onnx.proto): 0 is a varint, 2 is length-delimited.
_MODEL_FIELDS: Mapping[int, int] = {
    1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2
}  # fmt: skip


def _top_fields(data: bytes) -> _Outline:
    """Walk the outermost fields of a serialised ModelProto, without parsing what they hold."""
    at, seen = 0, 0
    while at < len(data):
        key, at = _varint(data, at)
        if key is None or _MODEL_FIELDS.get(key >> 3) != key & 7:
            return _Outline(plausible=seen > 1 and key is None, ends_early=True, missing=1)
        size, at = _varint(data, at)
        if size is None:
            return _Outline(plausible=seen > 0, ends_early=True, missing=1)
        if key & 7 == 2:
            if at + size > len(data):
                return _Outline(plausible=seen > 0, ends_early=True, missing=at + size - len(data))
            at += size
        seen += 1
    return _Outline(plausible=seen > 0)


def _varint(data: bytes, at: int) -> tuple[int | None, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return None, at
