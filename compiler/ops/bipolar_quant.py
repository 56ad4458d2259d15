"""QONNX `BipolarQuant`: one bit, y = scale where x >= 0, else -scale.

Spec: https://github.com/fastmachinelearning/qonnx/blob/main/docs/qonnx-custom-ops/bipolar_quant_op.md
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .common import QONNX_DOMAIN, Array, Expander, channel_axis, make_schema
from .constants import constant_expression, constant_of

SCHEMA = make_schema(
    "BipolarQuant",
    QONNX_DOMAIN,
    "Quantizes to -scale and +scale and returns the values as floats.",
    {"x": "T", "scale": "T"},
    {},
)


def bipolar_quant(x: Array, scale: Array) -> Array:
    """Evaluate BipolarQuant; returns the dtype of `x`."""
    sign = np.where(x >= 0, np.asarray(1, x.dtype), np.asarray(-1, x.dtype))
    return np.asarray(sign * scale.astype(x.dtype))


def expand(node: ir.Node, out: Expander) -> ir.Value:
    """Write BipolarQuant in standard ops; constant data becomes int8 signs behind `DequantizeLinear`."""
    x, scale = node.inputs
    assert x is not None, f"BipolarQuant {node.name!r} has no data input"
    assert scale is not None, f"BipolarQuant {node.name!r} has no scale"
    data, factor = constant_of(x), constant_expression(scale)
    if data is not None and factor is not None:
        try:
            axis = channel_axis(factor.shape, data.ndim)
        except ValueError:
            return out.op("Identity", [out.constant(bipolar_quant(data, factor), "folded")])
        signs = out.constant(np.where(data >= 0, 1, -1).astype(np.int8), "q")
        shape = () if axis is None else (-1,)
        return out.op(
            "DequantizeLinear",
            [signs, factor.reshape(shape)],
            attributes={} if axis is None else {"axis": axis},
        )
    zero = np.asarray(0, x.dtype.numpy() if x.dtype is not None else np.float32)
    positive = out.op("GreaterOrEqual", [x, zero], ir.DataType.BOOL)
    negated = out.op("Neg", [scale], shape=scale.shape) if factor is None else -factor
    return out.op("Where", [positive, scale, negated])
