"""QONNX `Trunc`: drops low bits of an already quantized tensor.

Two signatures exist and are told apart by the number of inputs:

- five, `x, scale, zero_point, in_bits, out_bits`: q = round(x / scale + zero_point), shifted right by
  `in_bits - out_bits`, rescaled with the *input* scale and zero point;
- six, `x, scale, zero_point, in_bits, out_scale, out_bits`: shifted by the power of two nearest to
  `out_scale / scale`, clipped to `out_bits`, rescaled with the output scale and the shifted zero point.

Spec: https://github.com/fastmachinelearning/qonnx/blob/main/docs/qonnx-custom-ops/trunc_op.md
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .common import QONNX_DOMAIN, Array, Expander, int_attribute, make_schema, string_attribute
from .quant import constants_needed, integer_range, round_nodes, rounding_named

SCHEMA = make_schema(
    "Trunc",
    QONNX_DOMAIN,
    "Drops the low bits of a quantized tensor.",
    {"x": "T", "scale": "T", "zero_point": "N", "in_bits": "N", "out_scale_or_bits": "N", "out_bits": "N"},
    {"rounding_mode": "FLOOR", "narrow": 0, "signed": 1},
    optional=("out_bits",),
)


def trunc_by_width(
    x: Array, scale: Array, zero_point: Array, in_bits: Array, out_bits: Array, rounding: str
) -> Array:
    """Evaluate the five-input form; returns the dtype of `x`."""
    dtype = x.dtype
    zero = zero_point.astype(dtype)
    y = np.rint(x / scale.astype(dtype) + zero)
    y = rounding_named(rounding)(y / _shift(in_bits, out_bits).astype(dtype))
    return np.asarray((y - zero) * scale.astype(dtype), dtype)


def trunc_by_scale(
    x: Array,
    scale: Array,
    zero_point: Array,
    out_scale: Array,
    out_bits: Array,
    signed: bool,
    narrow: bool,
    rounding: str,
) -> Array:
    """Evaluate the six-input form; returns the dtype of `x`."""
    dtype = x.dtype
    zero = zero_point.astype(dtype)
    divisor = _power_of_two(out_scale, scale).astype(dtype)
    y: Array = np.rint(x / scale.astype(dtype) + zero) / divisor
    qmin, qmax = integer_range(out_bits, signed, narrow)
    y = np.minimum(np.maximum(y, qmin.astype(dtype)), qmax.astype(dtype))
    y = rounding_named(rounding)(y) - zero / divisor
    return np.asarray(y * out_scale.astype(dtype), dtype)


def _shift(in_bits: Array, out_bits: Array) -> Array:
    return np.exp2((in_bits - out_bits).astype(np.float64))


def _power_of_two(out_scale: Array, scale: Array) -> Array:
    return np.asarray(np.exp2(np.rint(np.log2(out_scale / scale))))


def expand(node: ir.Node, out: Expander) -> ir.Value:
    """Write Trunc in standard ops; all its parameters must be constant."""
    x = node.inputs[0]
    assert x is not None, f"Trunc {node.name!r} has no data input"
    rounding = string_attribute(node, "rounding_mode", "FLOOR")
    by_scale = len(node.inputs) == 6 and node.inputs[5] is not None
    scale, zero, in_bits, fourth = constants_needed(node, 1, 2, 3, 4)
    dtype = scale.dtype
    zero = zero.astype(dtype)
    divisor = (_power_of_two(fourth, scale) if by_scale else _shift(in_bits, fourth)).astype(dtype)
    y = out.op("Add", [out.op("Div", [x, scale]), zero])
    y = out.op("Div", [out.op("Round", [y]), divisor])
    if not by_scale:
        return out.op("Mul", [out.op("Sub", [round_nodes(out, y, rounding, dtype), zero]), scale])
    signed, narrow = bool(int_attribute(node, "signed", 1)), bool(int_attribute(node, "narrow", 0))
    qmin, qmax = integer_range(constants_needed(node, 5)[0], signed, narrow)
    y = out.op("Min", [out.op("Max", [y, qmin.astype(dtype)]), qmax.astype(dtype)])
    y = out.op("Sub", [round_nodes(out, y, rounding, dtype), np.asarray(zero / divisor)])
    return out.op("Mul", [y, fourth.astype(dtype)])
