"""External data: where the weights of big models lie, checked before anything is mapped."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from ..errors import ModelError
from .guards import nested_graphs
from .pages import TransientTensor
from .source import Source, file_digest
from .tensor_guards import element_count, payload_bytes


def check_external(source: Source) -> dict[str, str]:
    """Check every external tensor of a model against its file; nothing is read but for hashes.

    Returns:
        Location of each data file, as the model spells it -> sha256.

    Raises:
        ModelError: `external-data-without-path`, `external-data-escape`, `external-data-missing`,
            `external-data-not-a-file`, `external-data-size`, `external-data-checksum`,
            `external-data-entry`.
    """
    digests: dict[str, str] = {}
    checksums: dict[tuple[str, str], bool] = {}
    path = source.path
    for tensor in _external_tensors(source.proto):
        where = f"initializer {tensor.name!r}"
        if path is None:
            raise ModelError(
                "external-data-without-path",
                f"{where} lies in another file, but the model came as bytes",
                "give the path of the .onnx file instead",
            )
        entries = _entries(tensor, where)
        if source.mapped is not None and entries["location"] == source.mapped.name:
            _check_range(tensor, entries, source.mapped, where)
            continue
        file = _resolve(entries["location"], path.parent, where)
        _check_range(tensor, entries, file, where)
        location = entries["location"]
        if location not in digests:
            digests[location] = file_digest(file)
        if (wanted := entries.get("checksum")) and (location, wanted) not in checksums:
            _check_checksum(file, wanted, where)
            checksums[(location, wanted)] = True
    return digests


def set_base(graph: ir.Graph, source: Source) -> None:
    """Tell the external tensors of `graph` (not of its bodies) which folder their files are in."""
    assert source.path is not None, "external data without a path passed the guards"
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            inner = source.mapped is not None and tensor.location == source.mapped.name
            folder = source.mapped.parent if source.mapped and inner else source.path.parent
            value.const_value = TransientTensor.of(tensor, folder)


def _external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in nested_graphs(proto):
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor


def _entries(tensor: onnx.TensorProto, where: str) -> Mapping[str, str]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data) or not entries.get("location"):
        raise ModelError(
            "external-data-entry",
            f"{where} lies in another file, but which one is not said or said twice",
            "export the model again",
        )
    return entries


def _resolve(location: str, folder: Path, where: str) -> Path:
    """Return the data file; it must lie in the model's folder, links followed."""
    parts = PurePosixPath(location).parts
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    if absolute or ".." in parts or "\\" in location or "\0" in location:
        raise _escape(location, where)
    file = folder / location
    if not file.resolve().is_relative_to(folder.resolve()):
        raise _escape(location, where)
    try:
        status = file.stat()
    except FileNotFoundError as err:
        raise ModelError(
            "external-data-missing",
            f"{where} lies in {location!r}, but there is no file {file}",
            "put the data file beside the .onnx file",
        ) from err
    except OSError as err:
        raise ModelError("external-data-unreadable", f"{file} cannot be read: {err}") from err
    if not stat.S_ISREG(status.st_mode) or not os.access(file, os.R_OK):
        raise ModelError("external-data-not-a-file", f"{where} lies in {file}, which is no readable file")
    if status.st_nlink > 1:
        raise ModelError(
            "external-data-hardlink",
            f"{file} has {status.st_nlink} hard links, so it may be a file from elsewhere",
            f"make it a copy of its own: cp {location} x && mv x {location}",
        )
    return file


def _escape(location: str, where: str) -> ModelError:
    return ModelError(
        "external-data-escape",
        f"{where} points to {location!r}, outside the folder of the model",
        "external data must lie beside the .onnx file or in a folder below it, and not be a link out of it",
    )


def _number(entries: Mapping[str, str], key: str, where: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError("external-data-entry", f"{where} has the {key} {text!r}, a number was needed")
    return int(text)


def _check_range(tensor: onnx.TensorProto, entries: Mapping[str, str], file: Path, where: str) -> None:
    dtype = ir.DataType(tensor.data_type)
    if dtype == ir.DataType.STRING:
        raise ModelError("external-data-entry", f"{where} is of strings, which cannot be external")
    need = payload_bytes(dtype, element_count(tensor.dims))
    offset, length = _number(entries, "offset", where) or 0, _number(entries, "length", where)
    size = file.stat().st_size
    if (length is not None and length != need) or offset + need > size:
        said = "" if length is None else f", the model says {length}"
        raise ModelError(
            "external-data-size",
            f"{where} takes {need} bytes from offset {offset} of {file.name}{said}; the file has {size}",
            "the data file is truncated or belongs to another model; copy both files again",
        )


def _check_checksum(file: Path, wanted: str, where: str) -> None:
    found = file_digest(file, "sha1")
    if found != wanted.lower():
        raise ModelError(
            "external-data-checksum",
            f"{where}: {file.name} has the SHA-1 {found}, the model expects {wanted}",
            "copy the data file again",
        )
