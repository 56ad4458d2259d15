"""Functions between a dequantizer and a quantizer as a table of all codes, computed by the reference.

That is exact where the chip's own exponential would not be, and one load instead of many instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ....compiler.ir.export import to_bytes
from ....compiler.ir.importer import import_model
from ....compiler.ops.constants import constant_expression
from .walk import Array, Emitter, dtype_of

if TYPE_CHECKING:
    from tvm import te

    from .walk import Expr

# What rounds differently on a chip than in the reference: worth a table. Sums, products, maxima are not.
_ROUNDED = frozenset(
    (
        "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Gelu",
        "HardSigmoid", "HardSwish", "Log", "Mish", "Pow", "Selu", "Sigmoid", "Sin", "Sinh", "Softplus",
        "Softsign", "Sqrt", "Tan", "Tanh",
    )
)  # fmt: skip
_PLAIN = frozenset(
    (
        "Abs", "Add", "Ceil", "Clip", "Div", "Floor", "Identity", "LeakyRelu", "Max", "Min", "Mul", "Neg",
        "PRelu", "Reciprocal", "Relu", "Round", "Sign", "Sub", "ThresholdedRelu",
    )
)  # fmt: skip
_MOST_NODES = 16


def table_of(quantizer: ir.Node) -> tuple[ir.Value, Array] | None:
    """Return the 8-bit value that a quantizer's input is a function of, and the codes for all of its codes.

    The codes are in the order of the value's own, from the least; None where there is no such function.
    """
    found = _cone(quantizer)
    if found is None:
        return None
    nodes, source = found
    assert source.dtype is not None, "a value without a type"
    limits = np.iinfo(source.dtype.numpy())
    codes = np.arange(limits.min, limits.max + 1).astype(limits.dtype)
    from ...reference import evaluate

    return source, np.asarray(evaluate(_model(nodes, source, codes.size), {"codes": codes})["codes_out"])


def _cone(quantizer: ir.Node) -> tuple[list[ir.Node], ir.Value] | None:
    """Return the nodes of the function in running order, quantizer included, and what it is a function of."""
    order: list[ir.Node] = []
    sources: set[ir.Value] = set()
    stack = [(quantizer, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
            continue
        if node in order or any(node is other for other, done in stack if done):
            continue
        if len(order) + len(stack) > _MOST_NODES or not _is_elementwise(node, quantizer):
            return None
        stack.append((node, True))
        if node.op_type == "DequantizeLinear":
            sources.add(node.inputs[0])  # type: ignore[arg-type]
            continue
        for value in _computed(node):
            maker = value.producer()
            if maker is None or maker.domain != "":
                return None
            stack.append((maker, False))
    if len(sources) != 1 or not any(node.op_type in _ROUNDED for node in order):
        return None
    (source,) = sources
    same = source.shape == quantizer.outputs[0].shape
    return (order, source) if same and source.dtype in (ir.DataType.INT8, ir.DataType.UINT8) else None


def _computed(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and constant_expression(value) is None]


def _is_elementwise(node: ir.Node, quantizer: ir.Node) -> bool:
    """Whether a node is elementwise with one number for every further operand."""
    quantizes = node is quantizer or node.op_type == "DequantizeLinear"
    if node.domain != "" or not (quantizes or node.op_type in _ROUNDED or node.op_type in _PLAIN):
        return False
    constants = [constant_expression(v) for v in node.inputs if v is not None]
    return all(array is None or array.size == 1 for array in constants) and bool(_computed(node))


def _model(nodes: list[ir.Node], source: ir.Value, count: int) -> ir.Model:
    """Return the function as a model from `codes` to `codes_out`."""
    port = ir.Value(
        name="codes", type=ir.TensorType(source.dtype or ir.DataType.INT8), shape=ir.Shape([count])
    )
    known: dict[ir.Value, ir.Value] = {source: port}
    made: list[ir.Node] = []
    for node in nodes:
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            array = constant_expression(value)
            if value is None or array is None:
                inputs.append(None if value is None else known[value])
                continue
            tensor = ir.tensor(array.reshape(()), name=f"c{len(made)}")
            constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)])
            constant.outputs[0].name = f"c{len(made)}"
            made.append(constant)
            inputs.append(constant.outputs[0])
        copy = ir.Node("", node.op_type, inputs, list(node.attributes.values()))
        copy.outputs[0].name = "codes_out" if node is nodes[-1] else f"v{len(made)}"
        known[node.outputs[0]] = copy.outputs[0]
        made.append(copy)
    graph = ir.Graph([port], [made[-1].outputs[0]], nodes=made, opset_imports={"": 21}, name="table")
    made[-1].outputs[0].type = ir.TensorType(nodes[-1].outputs[0].dtype or ir.DataType.UINT8)
    return import_model(to_bytes(ir.Model(graph, ir_version=10))).model


def looked_up(emitter: Emitter, x: Expr, table: Array) -> Expr:
    """Emit `table[x - least]` for 8-bit data."""
    from tvm import te

    low = int(np.iinfo(dtype_of(x)).min)

    def look_up(t: te.Tensor, codes: te.Tensor) -> te.Tensor:
        return te.compute(t.shape, lambda *at: codes(t(*at).astype("int32") - low), name="table")

    return emitter.compute("table", look_up, x, emitter.constant(table))
