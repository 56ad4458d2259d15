"""Writing the IR out: bytes or files that any onnxruntime reads, the same bytes every time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from ..backend import Port, Signature
from ..errors import ModelError
from .walk import all_graphs, int_attribute, ints_attribute

# onnxruntime 1.23 to 1.31 read IR versions up to 13; onnx 1.23 writes 14.
NEWEST_IR = 13
_OLDEST_IR = 10

# Protobuf's limit, with room for the graph itself.
_MOST_BYTES = 2**31 - 2**20
_ALIGNMENT = 4096


def capped_ir_version(model: ir.Model) -> int:
    """Return the IR version to write: what the opsets need, at least 10, at most 13."""
    imports = [
        onnx.helper.make_opsetid(domain, version)
        for domain, version in model.opset_imports.items()
        if domain in ("", "ai.onnx.ml")
    ]
    needed = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    return min(max(_OLDEST_IR, needed, model.ir_version), NEWEST_IR)


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers, bodies included."""
    return sum(_bytes(value) for graph in all_graphs(model) for value in graph.initializers.values())


def _bytes(value: ir.Value) -> int:
    tensor = value.const_value
    return 0 if tensor is None or tensor.dtype == ir.DataType.STRING else tensor.nbytes


def to_bytes(model: ir.Model) -> bytes:
    """Serialise a model with its weights inside; deterministic. `model` is not edited.

    Raises:
        ModelError: `model-too-large`, above the 2 GB that protobuf holds; use `save`.
    """
    total = weight_bytes(model)
    if total > _MOST_BYTES:
        raise ModelError(
            "model-too-large",
            f"the weights take {total} bytes; one ONNX file holds at most {_MOST_BYTES}",
            "save with external data",
        )
    return _serialize(_with_loaded_weights(model))


def _serialize(model: ir.Model) -> bytes:
    proto = ir.serde.serialize_model(model)
    proto.ir_version = capped_ir_version(model)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _with_loaded_weights(model: ir.Model) -> ir.Model:
    """Return the model itself where all weights are in memory, else a copy in which they are."""
    tensors = (value.const_value for graph in all_graphs(model) for value in graph.initializers.values())
    if not any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
        return model
    draft = model.clone()
    for graph in all_graphs(draft):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return draft


def save(model: ir.Model, path: Path, external_threshold: int | None = None) -> list[Path]:
    """Write a model, its big constants to `<path>.data` where needed; deterministic bytes.

    Files appear whole or not at all, and a data file that live tensors map stays readable, because each
    file is written beside its place and renamed.

    Args:
        model: not edited.
        path: of the .onnx file.
        external_threshold: constants of at least this many bytes go to the data file. None: only when
            the model would exceed the 2 GB that protobuf holds, then those from 1 KiB.

    Returns:
        The files written.
    """
    if external_threshold is None:
        if weight_bytes(model) <= _MOST_BYTES:
            return [_write(path, to_bytes(model))]
        external_threshold = 1024
    draft, data = model.clone(), path.with_name(path.name + ".data")
    temporary = data.with_name(data.name + ".part")
    with temporary.open("wb") as file:
        moved = _move_out(draft, file, data.name, external_threshold)
        file.flush()
        os.fsync(file.fileno())
    content = _serialize(_with_inner_weights(draft, data.name))
    if not moved:
        temporary.unlink()
        return [_write(path, content)]
    temporary.replace(data)
    return [_write(path, content), data]


def _write(path: Path, content: bytes) -> Path:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def _move_out(draft: ir.Model, file: BinaryIO, location: str, threshold: int) -> int:
    moved = 0
    for graph in all_graphs(draft):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < max(threshold, 1):
                continue
            file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
            offset = file.tell()
            write_tensor(tensor, file)
            value.const_value = ir.ExternalTensor(
                location, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
            )  # fmt: skip
            moved += 1
    return moved


def write_tensor(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """Write the bytes of a tensor, sub-byte types packed; external data is copied in pieces."""
    if isinstance(tensor, ir.Tensor | ir.ExternalTensor):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _with_inner_weights(draft: ir.Model, location: str) -> ir.Model:
    """Load the small constants that were external before and are not in the new data file."""
    for graph in all_graphs(draft):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and (tensor.base_dir or tensor.location != location):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return draft


# --- signature --------------------------------------------------------------------------------------


def signature_of(model: ir.Model) -> Signature:
    """Return inputs and outputs with dtype, shape and, where the graph tells, layout."""
    return Signature(
        tuple(_port(value, _layout(value)) for value in model.graph.inputs),
        tuple(_port(value, "") for value in model.graph.outputs),
    )


def _port(value: ir.Value, layout: str) -> Port:
    dims = [] if value.shape is None else value.shape.dims
    shape = tuple(
        dim if isinstance(dim, int) else dim.value or f"{value.name}_dim{index}"
        for index, dim in enumerate(dims)
    )
    dtype = "UNDEFINED" if value.dtype is None else value.dtype.name
    return Port(value.name or "", dtype, shape, layout)


_TRANSPARENT = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Quant", "Cast", "Mul", "Div", "Sub", "Add", "Pad"}
)
_CHANNELS_FIRST = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization"})


def _layout(value: ir.Value) -> str:
    """Tell NCHW from NHWC by the first thing that is done to a four-dimensional input."""
    if value.shape is None or len(value.shape) != 4:
        return ""
    for _ in range(8):
        nodes = value.consumers()
        if len(nodes) != 1 or nodes[0].inputs[0] is not value:
            return ""
        node = nodes[0]
        if node.op_type in _CHANNELS_FIRST:
            return "NCHW"
        if node.op_type == "Transpose":
            return "NHWC" if ints_attribute(node, "perm") == (0, 3, 1, 2) else ""
        if node.op_type not in _TRANSPARENT or int_attribute(node, "block_size", 0):
            return ""
        value = node.outputs[0]
    return ""
