"""Products of quantized values whose result stays real: integer sums, then floats.

    DequantizeLinear(x), DequantizeLinear(w) -> MatMul | Gemm

These are what `use_integer_layers` left: a float bias is added, or no quantizer follows. The reference
multiplies the dequantized floats (docs/semantics.md); here the scales are applied to the exact sum,
`float32(sum) * float32(x_scale * w_scale)`: the same bits where scales are powers of two, else within the
bound of a product of floats.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ....compiler.ir.walk import int_attribute
from ....compiler.ops.common import float_attribute
from ....compiler.ops.constants import constant_expression
from .lowbit_written import DOMAIN, put_for

OP = "RealProduct"
_BYTES = {ir.DataType.INT8, ir.DataType.UINT8}
# Sums of so many products of 255 and 128 are int32 for certain.
_DEEPEST = (2**31 - 1) // (255 * 128)


def use_real_products(model: ir.Model) -> int:
    """Replace them in the main graph, in place; returns how many."""
    found = [node for node in model.graph if not node.domain and node.op_type in ("MatMul", "Gemm")]
    replaced = sum(_replace(node) for node in found)
    if replaced:
        model.graph.opset_imports[DOMAIN] = 1
    return replaced


def _replace(node: ir.Node) -> bool:
    turned = int_attribute(node, "transB", 0)
    x, w = _operand(node.inputs[0], None), _operand(node.inputs[1], 1 - turned)
    if not _is_plain(node) or x is None or w is None or constant_expression(x[0]) is not None:
        return False
    if not _fits(x[1:], 1) or not _is_matrix(w, turned):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    put_for(node, OP, [*x, *w, bias], {"transB": turned}, node.name)
    return True


def _is_plain(node: ir.Node) -> bool:
    factors = [float_attribute(node, name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and not int_attribute(node, "transA", 0)


def _operand(value: ir.Value | None, axis: int | None) -> list[ir.Value | None] | None:
    """Return what a dequantizer reads: bytes, float32 scales (one, or along `axis`), zero point or None."""
    node = None if value is None else value.producer()
    if (
        node is None
        or node.domain
        or node.op_type != "DequantizeLinear"
        or int_attribute(node, "block_size", 0)
    ):
        return None
    q, scale = node.inputs[:2]
    if q is None or q.dtype not in _BYTES or scale is None or scale.dtype != ir.DataType.FLOAT:
        return None
    single = scale.shape is not None and all(size == 1 for size in scale.shape)
    if not single and (axis is None or int_attribute(node, "axis", 1) % 2 != axis):
        return None
    return [q, scale, node.inputs[2] if len(node.inputs) > 2 else None]


def _fits(parameters: Sequence[ir.Value | None], count: int) -> bool:
    """Say whether scale and zero point are known now: one number, or `count` of them."""
    scale, zero = (constant_expression(value) for value in parameters)
    given = [array for array in (scale, zero) if array is not None]
    missing = parameters[1] is not None and zero is None
    return scale is not None and not missing and all(array.size in (1, count) for array in given)


def _is_matrix(w: Sequence[ir.Value | None], turned: int) -> bool:
    """Say whether an operand is a constant int8 matrix, its scales one or one per column of the product."""
    whole = constant_expression(w[0])
    if whole is None or whole.ndim != 2 or whole.shape[turned] > _DEEPEST:
        return False
    zero = constant_expression(w[2])
    signed = whole.dtype == "int8" and (zero is None or not zero.any())
    return signed and _fits(w[1:], whole.shape[1 - turned])
