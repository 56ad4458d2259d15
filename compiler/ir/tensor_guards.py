"""Checks of stored tensors against what they declare: dtype, sizes, and the bytes really there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from ..errors import ModelError

# NumPy holds at most 64 axes; real tensors have a handful.
MOST_AXES = 32
_LARGEST_SIZE = 2**62

_Kind = onnx.TensorProto

# dtype -> the typed field that holds it, and how many entries one element takes (onnx.proto, TensorProto).
_FIELDS: Mapping[int, tuple[str, int]] = {
    _Kind.FLOAT: ("float_data", 1),
    _Kind.COMPLEX64: ("float_data", 2),
    _Kind.DOUBLE: ("double_data", 1),
    _Kind.COMPLEX128: ("double_data", 2),
    _Kind.INT64: ("int64_data", 1),
    _Kind.UINT32: ("uint64_data", 1),
    _Kind.UINT64: ("uint64_data", 1),
    _Kind.STRING: ("string_data", 1),
}
_TYPED = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")


def check_dims(dims: Sequence[int], where: str) -> None:
    """Refuse negative sizes and an absurd number of axes.

    Raises:
        ModelError: `negative-dims`, `too-many-axes`.
    """
    if any(dim < 0 for dim in dims):
        raise ModelError(
            "negative-dims",
            f"{where} has a negative size in {list(dims)}",
            "write an unknown size as a name, or leave it out",
        )
    if len(dims) > MOST_AXES:
        raise ModelError("too-many-axes", f"{where} has {len(dims)} axes; at most {MOST_AXES} are taken")


def element_count(dims: Sequence[int]) -> int:
    """Return the product of the sizes as an exact integer."""
    return math.prod(dims)


def payload_bytes(dtype: ir.DataType, count: int) -> int:
    """Return the bytes that `count` elements take, sub-byte types packed."""
    return math.ceil(count * dtype.bitwidth / 8)


def check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse a tensor whose declared dtype and sizes do not match the data in the file.

    External data is checked against its file elsewhere.

    Raises:
        ModelError: `negative-dims`, `too-many-axes`, `unknown-dtype`, `tensor-size`, `segmented-tensor`.
    """
    check_dims(tensor.dims, where)
    dtype = _dtype(tensor, where)
    count = element_count(tensor.dims)
    if count > _LARGEST_SIZE:
        raise ModelError(
            "tensor-size", f"{where} declares {count} elements", "the file is damaged or hostile"
        )
    if tensor.HasField("segment"):
        raise ModelError("segmented-tensor", f"{where} is a piece of a tensor", "store the tensor whole")
    if tensor.data_location != _Kind.EXTERNAL:
        _check_payload(tensor, dtype, count, where)


def _dtype(tensor: onnx.TensorProto, where: str) -> ir.DataType:
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(
            "unknown-dtype", f"{where} has the unknown data type {tensor.data_type}", "export the model again"
        )
    return dtype


def _check_payload(tensor: onnx.TensorProto, dtype: ir.DataType, count: int, where: str) -> None:
    if tensor.HasField("raw_data"):
        need, have, unit = _raw_need(dtype, count, where), len(tensor.raw_data), "bytes"
        others = list(_TYPED)
    else:
        name, per_element = _FIELDS.get(tensor.data_type, ("int32_data", 1))
        packed = dtype != ir.DataType.STRING and dtype.bitwidth < 8
        need = payload_bytes(dtype, count) if packed else count * per_element
        have, unit = len(getattr(tensor, name)), f"entries of {name}"
        others = [other for other in _TYPED if other != name]
    if need != have or any(len(getattr(tensor, other)) for other in others):
        raise ModelError(
            "tensor-size",
            f"{where} declares {dtype.name}{list(tensor.dims)}, which takes {need} {unit}, but stores {have}",
            "the file is damaged or hostile",
        )


def _raw_need(dtype: ir.DataType, count: int, where: str) -> int:
    if dtype == ir.DataType.STRING:
        raise ModelError("tensor-size", f"{where} stores strings as raw bytes", "export the model again")
    return payload_bytes(dtype, count)
