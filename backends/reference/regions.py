"""Finds quantized layers and makes each one integer operator of the reference.

    DequantizeLinear(x), DequantizeLinear(w) [, bias] -> Conv | ConvTranspose | Gemm | MatMul
        [-> Add of an int32 bias, behind MatMul] [-> Relu | Clip] -> QuantizeLinear

The quantizer's node is replaced; the float nodes stay for whoever asks for their values and are dropped
otherwise. What the integer operators compute is in docs/semantics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.ops.common import float_attribute, int_attribute
from ...compiler.ops.constants import constant_expression
from .base import REFERENCE_DOMAIN

_BYTES = {
    ir.DataType.INT2,
    ir.DataType.UINT2,
    ir.DataType.INT4,
    ir.DataType.UINT4,
    ir.DataType.INT8,
    ir.DataType.UINT8,
}

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class _Operand:
    """An integer value with its parameters; `axis` None means per tensor."""

    q: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    axis: int | None


def use_integer_layers(model: ir.Model) -> int:
    """Replace the quantizers of all quantized layers, bodies included, in place; returns how many."""
    quantizers = [n for n in model.graph.all_nodes() if n.op_type == "QuantizeLinear" and n.domain == ""]
    replaced = sum(_replace(node) for node in quantizers)
    if replaced:
        model.graph.opset_imports[REFERENCE_DOMAIN] = 1
    return replaced


def _replace(quantizer: ir.Node) -> bool:
    found = _layer_above(quantizer)
    if found is None or not _is_byte_quantizer(quantizer):
        return False
    layer, bounds, added = found
    inputs = _operands(layer)
    if inputs is not None and added is not None:
        inputs = [*inputs[:6], *added]
    if inputs is None:
        return False
    new = ir.Node(
        REFERENCE_DOMAIN,
        f"Integer{layer.op_type}",
        [*inputs, *quantizer.inputs[1:3]],
        _attributes(layer, quantizer, inputs, bounds),
        name=layer.name,
    )
    graph, output = quantizer.graph, quantizer.outputs[0]
    assert graph is not None, "a quantizer is in no graph"
    ir.convenience.replace_nodes_and_values(graph, quantizer, [quantizer], [new], [output], new.outputs)
    return True


_Bias: TypeAlias = "tuple[ir.Value | None, ir.Value | None]"


def _layer_above(quantizer: ir.Node) -> tuple[ir.Node, tuple[float, float], _Bias | None] | None:
    """Return the layer that feeds a quantizer, the clipping between them and the bias that an Add adds."""
    bounds = (-np.inf, np.inf)
    node = _producer(quantizer.inputs[0])
    if node is not None and node.op_type in ("Relu", "Clip"):
        clip = _clip_bounds(node)
        if clip is None:
            return None
        bounds, node = clip, _producer(node.inputs[0])
    added = None if node is None or node.op_type != "Add" else _matmul_above(node)
    if added is not None:
        return added[0], bounds, added[1]
    return None if node is None or node.op_type not in _LAYERS else (node, bounds, None)


def _matmul_above(add: ir.Node) -> tuple[ir.Node, _Bias] | None:
    """Return the MatMul by a matrix of which an Add is the int32 bias: constant, one entry per column."""
    for index in (0, 1):
        layer, bias = _producer(add.inputs[index]), _bias(add.inputs[1 - index])
        if layer is None or layer.op_type != "MatMul" or bias[1] is None:
            continue
        weights, steps = layer.inputs[1], constant_expression(bias[0])
        if weights is None or weights.shape is None or len(weights.shape) != 2 or steps is None:
            continue
        if steps.ndim == 1 and steps.size in (1, weights.shape[1]):
            return layer, bias
    return None


def _producer(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" else None


def _clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        array = constant_expression(value)
        if value is not None and array is None:
            return None
        bounds.append(default if array is None else float(array.reshape(())))
    return bounds[0], bounds[1]


def _is_byte_quantizer(node: ir.Node) -> bool:
    output, scale = node.outputs[0], node.inputs[1]
    block = int_attribute(node, "block_size", 0)
    return output.dtype in _BYTES and _is_one(scale) and not block and _is_float32(scale)


def _is_one(value: ir.Value | None) -> bool:
    """Say whether a scale is one number."""
    if value is None or value.shape is None:
        return False
    return all(size == 1 for size in value.shape)


def _is_float32(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _operand(value: ir.Value | None, rank: int | None = None) -> _Operand | None:
    node = _producer(value)
    if node is None or node.op_type != "DequantizeLinear" or int_attribute(node, "block_size", 0):
        return None
    q, scale = node.inputs[:2]
    if q is None or q.dtype not in _BYTES or scale is None or not _is_float32(scale):
        return None
    axis = None if _is_one(scale) else int_attribute(node, "axis", 1)
    if axis is not None and axis < 0:
        if rank is None:
            return None
        axis += rank
    return _Operand(q, scale, node.inputs[2] if len(node.inputs) > 2 else None, axis)


def _output_axis(layer: ir.Node) -> int | None:
    """Return the axis of the weights along which scales may vary: the output channels."""
    if layer.op_type == "ConvTranspose":
        return 1 if int_attribute(layer, "group", 1) == 1 else None
    if layer.op_type == "Gemm":
        return 0 if int_attribute(layer, "transB", 0) else 1
    return 0 if layer.op_type == "Conv" else 1


def _operands(layer: ir.Node) -> list[ir.Value | None] | None:
    """Return x, its scale and zero point, w, its scale and zero point, bias, its scale; None if unfit."""
    weights = layer.inputs[1]
    rank = None if weights is None or weights.shape is None else len(weights.shape)
    x, w = _operand(layer.inputs[0]), _operand(weights, rank)
    if x is None or w is None or x.axis is not None or w.axis not in (None, _output_axis(layer)):
        return None
    if layer.op_type == "MatMul" and w.axis is not None and rank != 2:
        return None
    if layer.op_type == "Gemm" and not _is_plain_gemm(layer):
        return None
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    return [x.q, x.scale, x.zero, w.q, w.scale, w.zero, *_bias(bias)]


def _is_plain_gemm(layer: ir.Node) -> bool:
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    factors = float_attribute(layer, "alpha", 1.0), float_attribute(layer, "beta", 1.0)
    if bias is None:
        return factors[0] == 1
    row = bias.shape is not None and all(size == 1 for size in list(bias.shape)[:-1])
    return factors == (1.0, 1.0) and row and bias.dtype == ir.DataType.FLOAT


def _bias(bias: ir.Value | None) -> _Bias:
    """Return the int32 bias with its scale, or the float bias with none."""
    node = _producer(bias)
    if node is not None and node.op_type == "DequantizeLinear":
        q = node.inputs[0]
        no_zero = len(node.inputs) < 3 or node.inputs[2] is None or _is_zero(node.inputs[2])
        if q is not None and q.dtype == ir.DataType.INT32 and no_zero:
            return q, node.inputs[1]
    return bias, None


def _is_zero(value: ir.Value) -> bool:
    array = constant_expression(value)
    return array is not None and not array.any()


def _attributes(
    layer: ir.Node, quantizer: ir.Node, inputs: list[ir.Value | None], bounds: tuple[float, float]
) -> list[ir.Attr]:
    kept = list(layer.attributes.values())
    own = {"low": bounds[0], "high": bounds[1], "output_dtype": int(quantizer.outputs[0].dtype or 0)}
    return kept + list(ir.convenience.convert_attributes(own))
