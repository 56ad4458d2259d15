"""uint8 values that only quantized operators know are kept as int8, 128 less, with their zero points.

Products multiply int8. A uint8 value with several readers, such as a residual sum, would be written once more
for the layer behind it. What is computed is the same: `(q - 128) - (zero - 128)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ...compiler.ir.walk import Names, add_initializer, int_attribute
from ...compiler.ops.constants import constant_expression
from ..reference.base import REFERENCE_DOMAIN
from .emit.lowbit_written import DOMAIN
from .emit.real_products import OP as REAL_PRODUCT

_SHIFT = 128
_LAYERS = ("IntegerConv", "IntegerConvTranspose", "IntegerGemm", "IntegerMatMul", REAL_PRODUCT)
# Operands of the reference's integer layers (backends/reference/regions.py) -> their zero points.
_OF_LAYERS = {0: 2, 3: 5}
_OF_RESULTS = 9


def keep_signed(model: ir.Model) -> int:
    """Edit the values of the main graph in place; return how many."""
    names = Names(model)
    found = [value for node in model.graph for value in node.outputs if _is_known(value)]
    for value in found:
        for node, index in list(_zero_points(value)):
            _shift(node, index, names)
        value.type = ir.TensorType(ir.DataType.INT8)  # clones of a model share types
        maker = value.producer()
        if maker is not None and maker.domain == REFERENCE_DOMAIN:
            maker.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(ir.DataType.INT8))
    return len(found)


def _is_known(value: ir.Value) -> bool:
    """Say whether maker and readers of a uint8 value all have a zero point for it, known now."""
    if value.dtype != ir.DataType.UINT8 or value.is_graph_output() or constant_expression(value) is not None:
        return False
    places = list(_zero_points(value))
    return all(index >= 0 and _is_number(node, index) for node, index in places)


def _zero_points(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield which inputs are the zero points of a value, at its maker and its readers; -1: there is none."""
    maker = value.producer()
    assert maker is not None, "a value of a node has none"
    yield maker, _of_result(maker)
    for node, index in value.uses():
        yield node, _of_operand(node, index)


def _of_result(node: ir.Node) -> int:
    if node.op_type in _LAYERS and node.domain == REFERENCE_DOMAIN:
        return _OF_RESULTS
    plain = node.op_type == "QuantizeLinear" and not node.domain
    return 2 if plain and not int_attribute(node, "output_dtype", 0) else -1


def _of_operand(node: ir.Node, index: int) -> int:
    if node.op_type in _LAYERS and node.domain in (REFERENCE_DOMAIN, DOMAIN):
        return _OF_LAYERS.get(index, -1)
    return 2 if node.op_type == "DequantizeLinear" and not node.domain and index == 0 else -1


def _is_number(node: ir.Node, index: int) -> bool:
    """Say whether a zero point is one number known now; one that is missing is 0."""
    value = node.inputs[index] if len(node.inputs) > index else None
    array = constant_expression(value)
    return value is None or (array is not None and array.size == 1)


def _shift(node: ir.Node, index: int, names: Names) -> None:
    value = node.inputs[index] if len(node.inputs) > index else None
    array = constant_expression(value)
    zero = np.zeros((), np.int16) if array is None else array.astype(np.int16)
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    assert node.graph is not None, "a node of no graph"
    own = add_initializer(node.graph, names.fresh("zero_signed"), (zero - _SHIFT).astype(np.int8))
    node.replace_input_with(index, own)
