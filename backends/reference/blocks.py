"""Products of activations and weights that are integers in blocks; see docs/semantics.md.

    DequantizeLinear(q), DequantizeLinear(w), both in blocks of one size along the sum -> MatMul | Gemm

The node is replaced; the dequantized values stay, for they say how far an engine may be off that adds them up
in floats.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ops.common import float_attribute, int_attribute
from .base import Array, Kernel

# Not the domain of layers whose results are decisions: these are floats.
DOMAIN = "pared.reference.blocks"

_WEIGHTS = {ir.DataType.INT2, ir.DataType.UINT2, ir.DataType.INT4, ir.DataType.UINT4}
_LARGEST_BLOCK = 256  # sums of a block are below 2^24, exact in float32
_FEWEST = 32

Floats = npt.NDArray[np.float32]


def use_block_products(model: ir.Model) -> int:
    """Replace MatMul and Gemm of blocks, bodies included, in place; returns how many."""
    nodes = [n for n in model.graph.all_nodes() if n.op_type in ("MatMul", "Gemm") and not n.domain]
    replaced = sum(_replace(node) for node in nodes)
    if replaced:
        model.graph.opset_imports[DOMAIN] = 1
    return replaced


def _replace(node: ir.Node) -> bool:
    transposed, graph = int_attribute(node, "transB", 0), node.graph
    operands = block_operands(node)
    if operands is None or graph is None:
        return False
    (q, scale), (w, w_scale, w_zero), block = operands
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    attributes = ir.convenience.convert_attributes({"transB": transposed, "block_size": block})
    inputs = [*node.inputs[:2], q, scale, w, w_scale, w_zero, bias]
    new = ir.Node(DOMAIN, "BlockProduct", inputs, attributes, name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], node.outputs, new.outputs)
    return True


_Weights = tuple["ir.Value | None", "ir.Value | None", "ir.Value | None"]


def block_operands(
    node: ir.Node,
) -> tuple[tuple[ir.Value | None, ir.Value | None], _Weights, int] | None:
    """Return (q, scale), (w, scale, zero point) and the size of blocks; None for other products."""
    if int_attribute(node, "transA", 0) or any(float_attribute(node, k, 1.0) != 1 for k in ("alpha", "beta")):
        return None
    left, right = (_blocks(value) for value in node.inputs[:2])
    if left is None or right is None or len(right[1]) != 2 or left[3] != right[3]:
        return None
    weight_axis = 1 if int_attribute(node, "transB", 0) else 0
    maker, size, block = left[0], left[1][-1], left[3]
    if left[2] != len(left[1]) - 1 or right[2] != weight_axis or not _FEWEST <= block <= _LARGEST_BLOCK:
        return None
    signed = maker.inputs[0] is not None and maker.inputs[0].dtype == ir.DataType.INT8
    weights = right[0].inputs[0]
    few = weights is not None and weights.dtype in _WEIGHTS
    plain = len(maker.inputs) < 3 or maker.inputs[2] is None
    if not (signed and few and plain) or not isinstance(size, int) or size % block:
        return None
    zero = right[0].inputs[2] if len(right[0].inputs) > 2 else None
    return (maker.inputs[0], maker.inputs[1]), (weights, right[0].inputs[1], zero), block


def _blocks(value: ir.Value | None) -> tuple[ir.Node, ir.Shape, int, int] | None:
    """Return the DequantizeLinear that makes a value in blocks, its shape, their axis and size."""
    node = None if value is None else value.producer()
    if node is None or value is None or value.shape is None or node.op_type != "DequantizeLinear":
        return None
    block, scale = int_attribute(node, "block_size", 0), node.inputs[1]
    if not block or node.domain or scale is None or scale.dtype != ir.DataType.FLOAT:
        return None
    return node, value.shape, int_attribute(node, "axis", 1) % len(value.shape), block


class BlockProduct(Kernel):
    """`y = fma(float32(dot), w_scale * x_scale, y)` over the blocks in ascending order, then the bias."""

    op_domain = DOMAIN

    def _run(  # type: ignore[no-untyped-def]
        self, a, b, q, scale, w, w_scale, w_zero=None, bias=None, transB=0, block_size=32
    ):
        codes = w.astype(np.int32)
        if w_zero is not None:
            axis = 1 if transB else 0
            codes = codes - np.repeat(w_zero.astype(np.int32), block_size, axis=axis)
        if transB:
            codes, w_scale = codes.T, w_scale.T
        total = np.zeros((*q.shape[:-1], codes.shape[1]), np.float32)
        for g in range(q.shape[-1] // block_size):
            part = slice(g * block_size, (g + 1) * block_size)
            dot = np.matmul(q[..., part].astype(np.float32), codes[part].astype(np.float32))
            total = fused_multiply_add(dot, scale[..., g, None] * w_scale[g], total)
        return (total if bias is None else total + bias,)


def fused_multiply_add(a: Floats, b: Floats, c: Floats) -> Floats:
    """Return float32 a * b + c with one rounding: the float64 sum rounded to odd, then to float32.

    Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums": the product is exact in
    float64, and 53 bits rounded to odd are enough to round once more to 24.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    total = np.asarray(product + c)
    shadow = total - product
    error = (product - (total - shadow)) + (c - shadow)
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    odd: Array = np.where((error != 0) & even, np.nextafter(total, toward), total)
    return np.asarray(odd, np.float32)
