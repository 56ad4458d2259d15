"""Reads quantized operands of a graph and turns them into the integers of docs/semantics.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ....compiler.ir.quant import QONNX_DOMAIN, dequantize_array, quantize_array, view
from ....compiler.ir.walk import int_attribute, producer
from ....compiler.ops.constants import constant_expression
from ...reference.integer import bias_steps as reference_steps
from .layers import Floats, Quant
from .weights_binary import evaluate_weight

_SHIFT = {ir.DataType.UINT8: 0, ir.DataType.INT8: 128}


@dataclass(frozen=True, eq=False)
class Weights:
    """Constant int8 weights with zero point 0; `scale` has one element or one per output channel."""

    q: npt.NDArray[np.int8]
    scale: Floats


def quant_of(node: ir.Node, dtype: ir.DataType | None) -> Quant | str:
    """Return the parameters of an activation's (De)QuantizeLinear, or why they do not fit."""
    scale = constant_expression(node.inputs[1])
    zero = (
        constant_expression(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    )
    if dtype not in _SHIFT:
        return f"activations of {getattr(dtype, 'name', dtype)}; the kernels have UINT8 and INT8"
    if scale is None or scale.size != 1 or scale.dtype != np.float32:
        return "activations need one constant float32 scale"
    if len(node.inputs) > 2 and node.inputs[2] is not None and zero is None:
        return "the zero point is not constant"
    shift = _SHIFT[dtype]
    return Quant(float(scale.reshape(())), (0 if zero is None else int(zero.reshape(()))) + shift, shift != 0)


def array_of(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Return what a constant is worth, behind a DequantizeLinear too; None when it is not constant."""
    if value is None:
        return None
    node = producer(value, "DequantizeLinear")
    if node is None and producer(value, "Quant", QONNX_DOMAIN) is None:
        found = constant_expression(value)
        return evaluate_weight(value) if found is None else found
    q, params = _codes(value), view(value)
    return None if q is None or params is None else dequantize_array(q, params)


def _codes(value: ir.Value) -> npt.NDArray[np.number] | None:
    """Return the integers behind a DequantizeLinear, or those that a Quant makes; None unless constant."""
    node, params = value.producer(), view(value)
    stored = None if node is None else constant_expression(node.inputs[0])
    if node is None or stored is None or params is None:
        return None
    codes = stored if node.op_type == "DequantizeLinear" else quantize_array(stored, params)
    return codes


def weights_of(value: ir.Value | None, axis: int) -> Weights | str:
    """Return integer weights whose scales vary along `axis` at most, or why they are none."""
    node = producer(value, "DequantizeLinear") or producer(value, "Quant", QONNX_DOMAIN)
    if value is None or node is None:
        return "the weights are not quantized"
    q, params = _codes(value), view(value)
    if q is None or params is None:
        return "the weights or their parameters are not constant"
    if params.spec.bits > 8 or params.spec.block_size or params.scale.dtype != np.float32:
        return "weights of more than 8 bits, in blocks, or without float32 scales"
    if params.spec.axis not in (None, axis):
        return f"weight scales along axis {params.spec.axis}; the kernels have one per output channel"
    zero = params.zero_point
    shift = 0 if params.spec.signed else 1 << (params.spec.bits - 1)
    if bool(np.any(zero != shift)):
        return "weights with a zero point off the middle of their range"
    return Weights(
        np.asarray(q.astype(np.int16) - shift, np.int8), np.asarray(params.scale, np.float32).reshape(-1)
    )


def bias_steps(value: ir.Value | None, unit: Floats, channels: int) -> npt.NDArray[np.int32] | str:
    """Return a bias in whole steps of `unit` (x_scale * w_scale), as docs/semantics.md, step 2."""
    if value is None:
        return np.zeros(channels, np.int32)
    node = producer(value, "DequantizeLinear")
    q = constant_expression(node.inputs[0]) if node is not None else None
    if node is not None and q is not None and q.dtype == np.int32 and not _zero_point(node).any():
        scale = constant_expression(node.inputs[1])
        if scale is None:
            return "the bias scale is not constant"
        return _spread(reference_steps(q, np.asarray(scale, np.float32), unit), channels)
    real = array_of(value)
    if real is None:
        return "the bias is not constant"
    return _spread(reference_steps(np.asarray(real, np.float32), None, unit), channels)


def is_int32(value: ir.Value | None) -> bool:
    """Say whether a value is a dequantized int32 constant with zero point 0, as biases are."""
    node = producer(value, "DequantizeLinear")
    q = None if node is None else node.inputs[0]
    whole = q is not None and q.dtype == ir.DataType.INT32 and constant_expression(q) is not None
    return node is not None and whole and not _zero_point(node).any()


def _zero_point(node: ir.Node) -> npt.NDArray[np.generic]:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant_expression(value)
    return np.zeros(1) if zero is None else zero


def _spread(steps: npt.NDArray[np.generic], channels: int) -> npt.NDArray[np.int32] | str:
    if bool(np.any(np.abs(steps.astype(np.float64)) > 2**31 - 1)):
        return "the bias leaves 32 bits"
    return np.ascontiguousarray(np.broadcast_to(steps, (channels,)), np.int32)


def limits(low: float, high: float, quant: Quant) -> tuple[int, int]:
    """Return clipping in reals as limits of the quantized value; rounding is monotone, so this is exact."""
    scale = np.float32(quant.scale)
    ends = np.rint(np.array([np.float32(low) / scale, np.float32(high) / scale])) + quant.zero
    bounded = np.clip(ends, 0, 255)
    return int(bounded[0]), int(bounded[1])


def is_plain(node: ir.Node) -> bool:
    """Say whether a quantizer works per tensor."""
    return int_attribute(node, "block_size", 0) == 0
