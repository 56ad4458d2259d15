"""FINN `MultiThreshold`: counts the thresholds a value reaches, per channel.

    y[n, c, ...] = out_scale * #{t : x[n, c, ...] >= thresholds[c, t]} + out_bias

Thresholds have shape [C, T] or [1, T]. Source: https://arxiv.org/abs/1612.07119 and the qonnx package.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..errors import UnsupportedOp
from .common import FINN_DOMAIN, Array, Expander, float_attribute, make_schema, string_attribute
from .constants import constant_expression

SCHEMA = make_schema(
    "MultiThreshold",
    FINN_DOMAIN,
    "Counts the thresholds that each value reaches.",
    {"x": "T", "thresholds": "T"},
    {"out_dtype": "", "out_scale": 1.0, "out_bias": 0.0, "data_layout": ""},
)

# Without a layout the qonnx package guesses it from the rank; rank 3 is taken as channels last.
_LAYOUT_OF_RANK = {2: "NC", 3: "NWC", 4: "NCHW"}


def channel_axis_of(data_layout: str, rank: int) -> int:
    """Return the channel axis for a `data_layout` attribute (may be empty) and the rank of the data."""
    layout = data_layout or _LAYOUT_OF_RANK.get(rank, "")
    return layout.index("C") if "C" in layout else 1


def multithreshold(x: Array, thresholds: Array, out_scale: float, out_bias: float, data_layout: str) -> Array:
    """Evaluate MultiThreshold one threshold at a time, so that memory stays a small multiple of `x`."""
    shape = [1] * x.ndim
    shape[channel_axis_of(data_layout, x.ndim)] = thresholds.shape[0]
    count = np.zeros(x.shape, np.int32)
    for column in thresholds.T:
        count += x >= column.reshape(shape)
    scale, bias = np.asarray(out_scale, x.dtype), np.asarray(out_bias, x.dtype)
    return np.asarray(scale * count.astype(x.dtype) + bias)


def expand(node: ir.Node, out: Expander) -> ir.Value:
    """Write MultiThreshold as comparisons with all thresholds along a new last axis, summed.

    Raises:
        UnsupportedOp: the thresholds are not constant, or the rank of the data is unknown.
    """
    x, thresholds = node.inputs[0], constant_expression(node.inputs[1])
    if x is None or x.shape is None or thresholds is None:
        raise UnsupportedOp(
            "thresholds-not-constant",
            f"node {node.name!r} (MultiThreshold) needs constant thresholds and data of known rank",
            "bind the input shapes with --shape, or fold constants first",
        )
    rank, dtype = len(x.shape), thresholds.dtype
    shape = [1] * (rank + 1)
    shape[channel_axis_of(string_attribute(node, "data_layout", ""), rank)] = thresholds.shape[0]
    shape[-1] = thresholds.shape[1]
    reached = _reached(out, x, thresholds.reshape(shape), dtype)
    count = out.op("ReduceSum", [reached, np.array([-1], np.int64)], attributes={"keepdims": 0})
    scale, bias = float_attribute(node, "out_scale", 1.0), float_attribute(node, "out_bias", 0.0)
    scaled = count if scale == 1 else out.op("Mul", [count, np.asarray(scale, dtype)])
    return scaled if bias == 0 else out.op("Add", [scaled, np.asarray(bias, dtype)])


def _reached(out: Expander, x: ir.Value, levels: Array, dtype: np.dtype[np.generic]) -> ir.Value:
    """Return 0 or 1 per value and threshold, shape [*x, T]."""
    dims = list(x.shape or ())
    column, compared = ir.Shape([*dims, 1]), ir.Shape([*dims, levels.shape[-1]])
    spread = out.op("Unsqueeze", [x, np.array([-1], np.int64)], shape=column)
    reached = out.op("GreaterOrEqual", [spread, levels], ir.DataType.BOOL, shape=compared)
    return out.op("Cast", [reached], attributes={"to": ir.DataType.from_numpy(dtype).value}, shape=compared)
