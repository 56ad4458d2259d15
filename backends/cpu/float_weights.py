"""Spares quantized weights of float layers from being dequantized in every run.

onnxruntime folds constant nodes when it loads a model, all but DequantizeLinear, which it keeps for fusing.
One that it then does not fuse, because its layer runs in float, is computed again and again. Written as Cast
and Mul it is folded like anything else: the file stays small and the layer as fast as in a float model.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ...compiler.backend import Array
from ...compiler.ir.walk import (
    add_initializer,
    all_nodes,
    int_attribute,
    only_user,
    replace_value,
    static_shape,
    unique_name,
)
from ...compiler.ops.constants import constant_expression


def free_float_weights(model: ir.Model, dequantized: Collection[str]) -> int:
    """Rewrite weights in place, bit for bit the same numbers; return how many.

    Args:
        model: without own operators.
        dequantized: names of the values that onnxruntime would dequantize in every run.
    """
    chosen = [
        node for node in all_nodes(model) if node.outputs[0].name in dequantized and _is_plain_weight(node)
    ]
    for node in chosen:
        _rewrite(model, node)
    return len(chosen)


def _is_plain_weight(node: ir.Node) -> bool:
    """Tell whether a node dequantizes a stored constant with float32 scales per tensor or per channel."""
    if node.op_type != "DequantizeLinear" or int_attribute(node, "block_size", 0):
        return False
    weight, scale, *rest = node.inputs
    if weight is None or scale is None or weight.const_value is None or only_user(node.outputs[0]) is None:
        return False
    zero_point = rest[0] if rest else None
    known = zero_point is None or constant_expression(zero_point) is not None
    return known and scale.dtype == ir.DataType.FLOAT and static_shape(scale) is not None


def _rewrite(model: ir.Model, node: ir.Node) -> None:
    """Put `Mul(Cast(weight) - zero point, scale)` in place of a DequantizeLinear."""
    weight, scale = node.inputs[:2]
    assert weight is not None, "checked by _is_plain_weight"
    assert scale is not None, "checked by _is_plain_weight"
    shape = _channel_shape(node, weight, scale)
    current = _insert(model, node, "Cast", [weight], {"to": int(ir.DataType.FLOAT)})
    # A zero point of equal numbers may be stored as an expression.
    zero_point = constant_expression(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero_point is not None and zero_point.any():
        offset = zero_point.astype(np.float32).reshape(shape)
        current = _insert(model, node, "Sub", [current, _stored(model, node, offset, "zero_point")])
    if len(shape) > 1:
        sizes = _stored(model, node, np.array(shape, np.int64), "scale_shape")
        scale = _insert(model, node, "Reshape", [scale, sizes])
    result = _insert(model, node, "Mul", [current, scale])
    replace_value(node.outputs[0], result)
    assert node.graph is not None, "the node is in a graph"
    node.graph.remove(node, safe=True)


def _channel_shape(node: ir.Node, weight: ir.Value, scale: ir.Value) -> tuple[int, ...]:
    """Return the shape in which the scales meet the weight: `()` for one scale, else `(-1, 1, ...)`."""
    assert weight.const_value is not None, "checked by _is_plain_weight"
    if static_shape(scale) == ():
        return ()
    rank = len(weight.const_value.shape)
    behind = rank - 1 - int_attribute(node, "axis", 1) % rank
    return (-1, *[1] * behind)


def _insert(
    model: ir.Model,
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value],
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    made = ir.node(op_type, inputs, attributes)
    made.outputs[0].name = unique_name(model, f"{before.outputs[0].name}_{op_type.lower()}")
    assert before.graph is not None, "the node is in a graph"
    before.graph.insert_before(before, made)
    return made.outputs[0]


def _stored(model: ir.Model, node: ir.Node, array: Array, suffix: str) -> ir.Value:
    assert node.graph is not None, "the node is in a graph"
    return add_initializer(node.graph, unique_name(model, f"{node.outputs[0].name}_{suffix}"), array)
