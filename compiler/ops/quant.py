"""QONNX `Quant`: uniform quantization of any width, written with float values.

    y = (round(clip(x / scale + zero_point, qmin, qmax)) - zero_point) * scale

Spec: https://github.com/fastmachinelearning/qonnx/blob/main/docs/qonnx-custom-ops/quant_op.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ..errors import UnsupportedOp
from .common import (
    QONNX_DOMAIN,
    Array,
    Expander,
    channel_axis,
    int_attribute,
    make_schema,
    string_attribute,
)
from .constants import constant_expression, constant_of

SCHEMA = make_schema(
    "Quant",
    QONNX_DOMAIN,
    "Quantizes to bit_width bits and returns the values as floats.",
    {"x": "T", "scale": "T", "zero_point": "N", "bit_width": "N"},
    {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"},
)


def _half_up(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.floor(np.abs(x) + np.asarray(0.5, x.dtype)))


def _half_down(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.ceil(np.abs(x) - np.asarray(0.5, x.dtype)))


def _away_from_zero(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.ceil(np.abs(x)))


# HALF_UP and HALF_DOWN round ties away from and towards zero, as the qonnx package does.
ROUNDINGS: Mapping[str, Callable[[Array], Array]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": _away_from_zero,
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_UP": _half_up,
    "HALF_DOWN": _half_down,
}


def rounding_named(name: str) -> Callable[[Array], Array]:
    """Return the rounding function of a QONNX `rounding_mode`.

    Raises:
        UnsupportedOp: the mode is unknown.
    """
    found = ROUNDINGS.get(name.upper())
    if found is None:
        raise UnsupportedOp(
            "rounding-mode", f"unknown rounding_mode {name!r}", f"valid: {', '.join(sorted(ROUNDINGS))}"
        )
    return found


def integer_range(bit_width: Array, signed: bool, narrow: bool) -> tuple[Array, Array]:
    """Return (qmin, qmax) in the dtype of `bit_width`; float32 is inexact from 25 bits on, as in qonnx."""
    one = np.asarray(1, bit_width.dtype)
    two = np.asarray(2, bit_width.dtype)
    if signed:
        half = np.power(two, bit_width - one)
        return -half + one if narrow else -half, half - one
    top = np.power(two, bit_width) - one
    return top * np.asarray(0, top.dtype), top - one if narrow else top


def quant(
    x: Array, scale: Array, zero_point: Array, bit_width: Array, signed: bool, narrow: bool, rounding: str
) -> Array:
    """Evaluate Quant: any shapes that broadcast to `x`; returns the dtype of `x`.

    One signed bit means {-1, +1} times the scale, as in the qonnx package.
    """
    dtype = x.dtype
    y: Array = x / scale.astype(dtype) + zero_point.astype(dtype)
    if signed and bool(np.all(bit_width == 1)):
        y = np.where(y >= 0, np.asarray(1, dtype), np.asarray(-1, dtype))
    else:
        qmin, qmax = integer_range(bit_width, signed, narrow)
        y = np.minimum(np.maximum(y, qmin.astype(dtype)), qmax.astype(dtype))
        y = rounding_named(rounding)(y)
    return np.asarray((y - zero_point.astype(dtype)) * scale.astype(dtype), dtype)


def round_nodes(out: Expander, x: ir.Value, rounding: str, dtype: np.dtype[np.generic]) -> ir.Value:
    """Write a rounding mode in standard ops (`Round` is half to even)."""
    direct = {"ROUND": "Round", "HALF_EVEN": "Round", "CEIL": "Ceil", "FLOOR": "Floor"}.get(rounding.upper())
    if direct is not None:
        return out.op(direct, [x])
    rounding_named(rounding)
    magnitude = out.op("Abs", [x])
    half = np.asarray(0.5, dtype)
    step: Mapping[str, Callable[[], ir.Value]] = {
        "UP": lambda: out.op("Ceil", [magnitude]),
        "DOWN": lambda: out.op("Floor", [magnitude]),
        "ROUND_TO_ZERO": lambda: out.op("Floor", [magnitude]),
        "HALF_UP": lambda: out.op("Floor", [out.op("Add", [magnitude, half])]),
        "HALF_DOWN": lambda: out.op("Ceil", [out.op("Sub", [magnitude, half])]),
    }
    return out.op("Mul", [out.op("Sign", [x]), step[rounding.upper()]()])


def constants_needed(node: ir.Node, *indices: int) -> list[Array]:
    """Return the constant inputs at `indices`.

    Raises:
        UnsupportedOp: one of them is computed at run time.
    """
    found = []
    for index in indices:
        array = constant_expression(node.inputs[index])
        if array is None:
            raise UnsupportedOp(
                "quant-parameter-not-constant",
                f"node {node.name!r} ({node.op_type}): input {index} is not constant",
                "fold constants first, or export the model with fixed quantization parameters",
            )
        found.append(array)
    return found


def expand(node: ir.Node, out: Expander) -> ir.Value:
    """Write Quant in standard ops.

    Constant data becomes an integer constant behind `DequantizeLinear`; an 8- or 16-bit quantizer whose
    zero point is 0 a `QuantizeLinear`/`DequantizeLinear` pair, which is bit-equal; anything else arithmetic.
    (With another zero point `QuantizeLinear` differs near ties: it rounds before it adds the zero point.)
    """
    scale, zero_point, bits = constants_needed(node, 1, 2, 3)
    signed, narrow = bool(int_attribute(node, "signed", 1)), bool(int_attribute(node, "narrow", 1))
    rounding = string_attribute(node, "rounding_mode", "ROUND")
    x = node.inputs[0]
    assert x is not None, f"Quant {node.name!r} has no data input"
    data = constant_of(x)
    if data is not None:
        return _folded(
            out, data, scale, zero_point, quant(data, scale, zero_point, bits, signed, narrow, rounding)
        )
    if _is_linear_pair(x, scale, zero_point, bits, signed and narrow, rounding):
        return _linear_pair(out, x, scale, int(bits), signed)
    return _arithmetic(out, x, scale, zero_point, bits, (signed, narrow, rounding))


def _folded(out: Expander, data: Array, scale: Array, zero_point: Array, real: Array) -> ir.Value:
    """Store quantized constants as integers where that is bit-equal, else as floats."""
    zero = zero_point.astype(real.dtype)
    # Dividing a product by its factor can be off by an ulp, far less than the half that rint repairs.
    integers = np.rint(real / scale.astype(real.dtype) + zero)
    for name in ("int8", "uint8", "int16", "uint16"):
        dtype = np.dtype(name)
        stored, stored_zero = integers.astype(dtype), zero.astype(dtype)
        exact = np.array_equal(stored, integers) and np.array_equal(stored_zero, zero)
        exact = exact and (zero.size == 1 or zero.shape == scale.shape)
        if exact and np.array_equal((integers - zero) * scale.astype(real.dtype), real):
            axis = _axis_or_none(scale, data.ndim)
            if axis is None and scale.size != 1:
                break
            return _dequantize(out, out.constant(stored, "q"), scale, stored_zero, axis)
    return out.op("Identity", [out.constant(real, "folded")])


def _axis_or_none(scale: Array, rank: int) -> int | None:
    try:
        return channel_axis(scale.shape, rank)
    except ValueError:
        return None


def _dequantize(out: Expander, q: ir.Value, scale: Array, zero: Array, axis: int | None) -> ir.Value:
    """Add the node; the zero point is written even when it is 0: onnxruntime fuses no Gemm without it."""
    if axis is None:
        return out.op("DequantizeLinear", [q, scale.reshape(()), zero.reshape(())])
    zeros = np.broadcast_to(zero.reshape(-1), (scale.size,))
    return out.op("DequantizeLinear", [q, scale.reshape(-1), zeros], attributes={"axis": axis})


def _is_linear_pair(x: ir.Value, scale: Array, zero: Array, bits: Array, narrow: bool, rounding: str) -> bool:
    if bits.size != 1 or float(bits.reshape(())) not in (8, 16) or narrow or zero.any():
        return False
    if rounding.upper() not in ("ROUND", "HALF_EVEN") or scale.dtype != np.float32:
        return False
    if scale.size == 1:
        return True
    return x.shape is not None and _axis_or_none(scale, len(x.shape)) is not None


def _linear_pair(out: Expander, x: ir.Value, scale: Array, bits: int, signed: bool) -> ir.Value:
    integer = np.dtype(f"{'' if signed else 'u'}int{bits}")
    axis = None if scale.size == 1 else _axis_or_none(scale, len(x.shape or ()))
    attributes = {} if axis is None else {"axis": axis}
    shared = out.constant(scale.reshape(()) if axis is None else scale.reshape(-1), "scale")
    zero = out.constant(
        np.zeros(shared.const_value.shape.numpy() if shared.const_value else (), integer), "zero"
    )
    q = out.op("QuantizeLinear", [x, shared, zero], ir.DataType.from_numpy(integer), attributes)
    return out.op("DequantizeLinear", [q, shared, zero], attributes=attributes)


def _arithmetic(
    out: Expander, x: ir.Value, scale: Array, zero: Array, bits: Array, how: tuple[bool, bool, str]
) -> ir.Value:
    signed, narrow, rounding = how
    dtype = scale.dtype
    zero = zero.astype(dtype)
    y = x if bool(np.all(scale == 1)) else out.op("Div", [x, scale])
    y = out.op("Add", [y, zero]) if zero.any() else y
    if signed and bool(np.all(bits == 1)):
        positive = out.op("GreaterOrEqual", [y, np.asarray(0, dtype)], ir.DataType.BOOL)
        y = out.op("Where", [positive, np.asarray(1, dtype), np.asarray(-1, dtype)])
    else:
        qmin, qmax = integer_range(bits, signed, narrow)
        y = out.op("Min", [out.op("Max", [y, qmin.astype(dtype)]), qmax.astype(dtype)])
        y = round_nodes(out, y, rounding, dtype)
    y = out.op("Sub", [y, zero]) if zero.any() else y
    return out.op("Mul", [y, scale])
