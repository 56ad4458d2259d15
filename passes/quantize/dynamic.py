"""Activations quantized at run time: per tensor with the integer operators of ONNX, or in blocks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.ir.quant import QuantSpec
from ...compiler.ops import dynamic_blocks
from ...compiler.ops.common import PARED_DOMAIN
from .emit import Emitter
from .plan import Decision

_INTEGER_FORM = {"MatMul": "MatMulInteger", "Gemm": "MatMulInteger", "Conv": "ConvInteger"}


def refuse_blocks(node: ir.Node, spec: QuantSpec, sizes: tuple[int, ...]) -> str | None:
    """Say why a node cannot have activations in blocks beside weights of this shape and format, or None."""
    if node.op_type not in ("MatMul", "Gemm") or walk.is_constant(node.inputs[0]) or len(sizes) != 2:
        return "blocks at run time need a product with a constant matrix on the right"
    if node.op_type == "Gemm" and walk.int_attribute(node, "transA", 0):
        return "blocks at run time need an untransposed left operand"
    depth = sizes[spec.axis or 0]
    if not spec.block_size or depth % spec.block_size:
        return f"a sum of {depth} terms is not made of several whole blocks"
    return None


def write_blocks(out: Emitter, node: ir.Node, index: int, block: int) -> None:
    """Let a node read its activation in int8 blocks, which every reader of the activation shares."""
    x = node.inputs[index]
    assert x is not None, f"{node.name} has no input"
    node.replace_input_with(index, _made_blocks(x, block) or _new_blocks(out, x, block))


def _made_blocks(x: ir.Value, block: int) -> ir.Value | None:
    for user in walk.users(x):
        if user.op_type == dynamic_blocks.OP and walk.int_attribute(user, "block_size", 0) == block:
            return walk.users(user.outputs[0])[0].outputs[0]
    return None


def _new_blocks(out: Emitter, x: ir.Value, block: int) -> ir.Value:
    out.graph.opset_imports[PARED_DOMAIN] = 1
    name = out.fresh(f"{x.name}_blocks")
    node = ir.node(
        dynamic_blocks.OP, [x], {"block_size": block}, domain=PARED_DOMAIN, num_outputs=2, name=name
    )
    for value, dtype, part in zip(
        node.outputs, (ir.DataType.INT8, ir.DataType.FLOAT), ("int", "scale"), strict=True
    ):
        value.name, value.type, value.shape = out.fresh(f"{x.name}_{part}"), ir.TensorType(dtype), _shape(x)
    last = None if x.shape is None else x.shape[-1]
    if x.shape is not None and isinstance(last, int):
        node.outputs[1].shape = ir.Shape([*x.shape[:-1], last // block])
    q, scale = node.outputs
    attributes = {"axis": -1, "block_size": block}
    real = out.node("DequantizeLinear", [q, scale], x, base=f"{x.name}_dq", attributes=attributes)
    out.insert([q, real], x)
    return real


def refuse_dynamic(node: ir.Node, rank: int) -> str | None:
    """Say why a node has no integer form with dynamic activations, or None."""
    if node.op_type not in _INTEGER_FORM:
        return f"{node.op_type} has no integer form with run-time ranges"
    if node.op_type == "MatMul" and (walk.is_constant(node.inputs[0]) or rank != 2):
        return "run-time ranges need a right operand that is a constant matrix"
    if node.op_type == "Gemm" and walk.int_attribute(node, "transA", 0):
        return "run-time ranges need an untransposed left operand"
    return None


def write_dynamic(out: Emitter, node: ir.Node, index: int, decision: Decision) -> None:
    """Replace a node whose weight is already a DequantizeLinear by its integer form.

    y = Cast(XInteger(xq, wq, x_zero)) * (x_scale * w_scale) + bias, with xq, x_scale, x_zero from
    DynamicQuantizeLinear: the pattern that onnxruntime fuses to DynamicQuantizeMatMul. Nodes that read the
    same activation share its quantizer.
    """
    x, weight = node.inputs[index], node.inputs[1]
    assert x is not None, f"{node.name} has no input"
    dequantize = None if weight is None else weight.producer()
    assert dequantize is not None, f"{node.name}: the weight is written before"
    stored, scale = _weight_of(out, node, dequantize)
    q, x_scale, x_zero, made = _quantized(out, x)
    base, result = str(node.outputs[0].name), node.outputs[0]
    attributes = {} if node.op_type != "Conv" else dict(node.attributes)
    op = _INTEGER_FORM[node.op_type]
    sums = ir.node(op, [q, stored, x_zero], name=out.fresh(f"{base}_{op}"))
    sums.attributes.update(attributes)
    sums.outputs[0].name = out.fresh(f"{base}_sums")
    sums.outputs[0].type, sums.outputs[0].shape = ir.TensorType(ir.DataType.INT32), _shape(result)
    real = out.node("Cast", [sums.outputs[0]], result, base=f"{base}_real", attributes={"to": 1})
    unit = out.node("Mul", [x_scale, scale], scale, base=f"{base}_unit")
    y = out.node("Mul", [real, unit], result, base=f"{base}_scaled")
    chain = [*made, sums.outputs[0], real, unit, y]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        y = out.node("Add", [y, _spread_bias(out, node, bias)], result, base=f"{base}_biased")
        chain.append(y)
    out.insert(chain, result)
    _take_over(out, node, y, dequantize)


def _take_over(out: Emitter, node: ir.Node, y: ir.Value, dequantize: ir.Node) -> None:
    name = node.name
    walk.replace_value(node.outputs[0], y)
    walk.remove_chain(node)
    maker = y.producer()
    assert maker is not None, "a result is made by a node"
    maker.name = name
    if dequantize.graph is not None:
        walk.remove_if_dead(dequantize)


def _shape(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else value.shape.copy()


def _quantized(out: Emitter, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value, list[ir.Value]]:
    """Return (q, scale, zero point) of an activation, and the new values; one quantizer per activation."""
    for user in walk.users(x):
        if user.op_type == "DynamicQuantizeLinear":
            q, scale, zero = user.outputs
            return q, scale, zero, []
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=out.fresh(f"{x.name}_quantize"))
    types = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    for value, dtype, part in zip(node.outputs, types, ("int", "scale", "zero"), strict=True):
        value.name, value.type = out.fresh(f"{x.name}_{part}"), ir.TensorType(dtype)
        value.shape = _shape(x) if part == "int" else ir.Shape(())
    out.insert([node.outputs[0]], x)
    return node.outputs[0], node.outputs[1], node.outputs[2], []


def _weight_of(out: Emitter, node: ir.Node, dequantize: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Return integers and scale in the layout that the integer operator wants."""
    stored, scale = dequantize.inputs[0], dequantize.inputs[1]
    assert stored is not None, f"{node.name}: weight without integers"
    assert scale is not None, f"{node.name}: weight without scale"
    if node.op_type == "Gemm" and walk.int_attribute(node, "transB", 0):
        integers = walk.constant(stored)
        assert integers is not None, f"{node.name}: weight is not constant"
        stored = out.constant(np.ascontiguousarray(integers.T), f"{stored.name}_t")
    if node.op_type == "Conv":
        numbers = walk.constant(scale)
        assert numbers is not None, f"{node.name}: weight scale is not constant"
        if numbers.ndim:
            rank = len(stored.shape) if stored.shape is not None else 4
            scale = out.constant(numbers.reshape(-1, *[1] * (rank - 2)), f"{scale.name}_channels")
    return stored, scale


def _spread_bias(out: Emitter, node: ir.Node, bias: ir.Value) -> ir.Value:
    if node.op_type != "Conv":
        return bias
    numbers, weight = walk.constant(bias), node.inputs[1]
    assert numbers is not None, f"{node.name}: bias is not constant"
    rank = len(weight.shape) if weight is not None and weight.shape is not None else 4
    return out.constant(numbers.reshape(-1, *[1] * (rank - 2)), f"{bias.name}_channels")
