"""QOperator graphs (QLinearConv, com.microsoft::QLinearAdd, ...) rewritten to QDQ.

Each node becomes DequantizeLinear on its inputs, the float operator, and QuantizeLinear on its output; the
output keeps its name. Real arithmetic is unchanged; the integer kernels of a runtime may differ from the
float route by one step where a value lies on a rounding tie.
Sources: onnx/docs/Operators.md, onnxruntime/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..errors import UnsupportedOp
from .nbits import block_weights
from .operators import MICROSOFT
from .walk import (
    Names,
    add_initializer,
    all_nodes,
    constant,
    drop_unused_initializer,
    int_attribute,
    node_label,
    replace_value,
)


@dataclass
class _Rewrite:
    """Builds the nodes that stand for one QOperator node."""

    node: ir.Node
    names: Names

    def op(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, ir.Attr | int] | None = None,
    ) -> ir.Value:
        """Insert a standard node before the old one and return its output."""
        base = f"{self.node.outputs[0].name}_{op.lower()}"
        made = ir.Node("", op, list(inputs), name=self.names.fresh(base))
        for key, value in (attributes or {}).items():
            made.attributes.add(value if isinstance(value, ir.Attr) else ir.AttrInt64(key, value))
        made.outputs[0].name = self.names.fresh(base)
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, made)
        return made.outputs[0]

    def input(self, index: int) -> ir.Value | None:
        """Return input `index`, None when it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def dequantize(self, index: int, axis: int | None = None) -> ir.Value:
        """Dequantize inputs `index` (data), `index + 1` (scale), `index + 2` (zero point)."""
        return self._dequantize(self.input(index), self.input(index + 1), self.input(index + 2), axis)

    def _dequantize(
        self, data: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None, axis: int | None
    ) -> ir.Value:
        per_axis = scale is not None and scale.shape is not None and len(scale.shape) == 1
        single = not per_axis or scale is None or scale.shape is None or scale.shape[0] == 1
        inputs = [data, scale] if zero is None else [data, scale, zero]
        return self.op("DequantizeLinear", inputs, {} if single or axis is None else {"axis": axis})

    def dequantize_bias(self, index: int, *scales: ir.Value | None, alpha: float = 1.0) -> ir.Value | None:
        """Dequantize an int32 bias, whose scale is the product of the operands' scales."""
        bias = self.input(index)
        if bias is None:
            return None
        return self._dequantize(bias, self._product(scales, alpha), None, 0)

    def _product(self, scales: Sequence[ir.Value | None], alpha: float) -> ir.Value:
        arrays = [constant(scale) for scale in scales]
        if any(array is None for array in arrays):
            raise UnsupportedOp("qoperator", f"{node_label(self.node)} has a bias, but scales not constant")
        product = np.asarray(alpha, np.float32)
        for array in arrays:
            assert array is not None
            factor = array.astype(np.float32)
            product = product * (factor.reshape(()) if factor.size == 1 else factor)
        graph = self.node.graph
        assert graph is not None
        name = self.names.fresh(f"{self.node.outputs[0].name}_bias_scale")
        return add_initializer(graph, name, np.asarray(product, np.float32))

    def quantize(self, value: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
        """Quantize the result; without a scale it stays float."""
        if scale is None:
            return value
        inputs = [value, scale] if zero is None else [value, scale, zero]
        return self.op("QuantizeLinear", inputs)

    def kept(self, *dropped: str) -> dict[str, ir.Attr | int]:
        """Return the old node's attributes but those named."""
        return {key: attr for key, attr in self.node.attributes.items() if key not in dropped}


Rule = Callable[[_Rewrite], ir.Value]


def expand_qoperators(model: ir.Model, notes: list[str]) -> int:
    """Rewrite every QOperator node of every graph in place; return how many there were.

    Raises:
        UnsupportedOp: `qoperator`, a bias whose scale is not constant.
    """
    found = [node for node in all_nodes(model) if (node.domain, node.op_type) in RULES]
    if not found:
        return 0
    names = Names(model)
    for node in found:
        made = RULES[(node.domain, node.op_type)](_Rewrite(node, names))
        _take_place(node, made)
    model.opset_imports.pop(MICROSOFT, None)
    notes.append(f"{len(found)} QOperator nodes rewritten to QuantizeLinear/DequantizeLinear form")
    return len(found)


def _take_place(node: ir.Node, made: ir.Value) -> None:
    old, maker, graph = node.outputs[0], made.producer(), node.graph
    assert maker is not None
    assert graph is not None
    made.type, made.shape = old.type, None if old.shape is None else old.shape.copy()
    replace_value(old, made)
    maker.name, node.name = node.name, None
    read = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in read:
        drop_unused_initializer(value)


# --- rules ------------------------------------------------------------------------------------------


def _conv(r: _Rewrite) -> ir.Value:
    bias = r.dequantize_bias(8, r.input(1), r.input(4))
    inputs = [r.dequantize(0), r.dequantize(3, axis=0)] + ([] if bias is None else [bias])
    return r.quantize(r.op("Conv", inputs, r.kept()), r.input(6), r.input(7))


def _matmul(r: _Rewrite) -> ir.Value:
    left = r.dequantize(0, axis=-2)
    result = r.op("MatMul", [left, r.dequantize(3, axis=-1)])
    return r.quantize(result, r.input(6), r.input(7))


def _gemm(r: _Rewrite) -> ir.Value:
    alpha = r.node.attributes.get_float("alpha", 1.0)
    channel = 0 if int_attribute(r.node, "transB", 0) else 1
    inputs = [r.dequantize(0), r.dequantize(3, axis=channel)]
    bias = r.dequantize_bias(6, r.input(1), r.input(4), alpha=alpha)
    result = r.op("Gemm", inputs + ([] if bias is None else [bias]), r.kept())
    return r.quantize(result, r.input(7), r.input(8))


def _binary(op: str) -> Rule:
    def rule(r: _Rewrite) -> ir.Value:
        return r.quantize(r.op(op, [r.dequantize(0), r.dequantize(3)]), r.input(6), r.input(7))

    return rule


def _unary(op: str, *dropped: str) -> Rule:
    def rule(r: _Rewrite) -> ir.Value:
        result = r.op(op, [r.dequantize(0)], r.kept(*dropped))
        return r.quantize(result, r.input(3), r.input(4))

    return rule


def _pool(op: str) -> Rule:
    """Pools of com.microsoft may be channels-last; a Transpose on either side puts that right."""

    def rule(r: _Rewrite) -> ir.Value:
        value = r.dequantize(0)
        last = bool(int_attribute(r.node, "channels_last", 0))
        rank = 4 if value.shape is None else len(value.shape)
        if last:
            value = r.op(
                "Transpose", [value], {"perm": ir.AttrInt64s("perm", [0, rank - 1, *range(1, rank - 1)])}
            )
        value = r.op(op, [value], r.kept("channels_last"))
        if last:
            value = r.op("Transpose", [value], {"perm": ir.AttrInt64s("perm", [0, *range(2, rank), 1])})
        return r.quantize(value, r.input(3), r.input(4))

    return rule


def _concat(r: _Rewrite) -> ir.Value:
    parts = [r.dequantize(index) for index in range(2, len(r.node.inputs), 3)]
    return r.quantize(r.op("Concat", parts, r.kept()), r.input(0), r.input(1))


def _where(r: _Rewrite) -> ir.Value:
    result = r.op("Where", [r.input(0), r.dequantize(1), r.dequantize(4)])
    return r.quantize(result, r.input(7), r.input(8))


def _standard(op: str) -> Rule:
    return lambda r: r.op(op, r.node.inputs, r.kept())


def _matmul_nbits(r: _Rewrite) -> ir.Value:
    """A product with block weights, which DequantizeLinear can say too."""
    weights, graph, base = block_weights(r.node), r.node.graph, r.node.outputs[0].name
    assert graph is not None
    arrays = {"weight": weights.codes, "scale": weights.scale, "zero": weights.zero}
    stored = [add_initializer(graph, r.names.fresh(f"{base}_{k}"), array) for k, array in arrays.items()]
    weight = r.op("DequantizeLinear", stored, {"axis": 0, "block_size": weights.block})
    result = r.op("MatMul", [r.input(0), weight])
    return result if r.input(5) is None else r.op("Add", [result, r.input(5)])


RULES: Mapping[tuple[str, str], Rule] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "QLinearAdd"): _binary("Add"),
    (MICROSOFT, "QLinearMul"): _binary("Mul"),
    (MICROSOFT, "QLinearConcat"): _concat,
    (MICROSOFT, "QLinearWhere"): _where,
    (MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
    (MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (MICROSOFT, "QLinearSoftmax"): _unary("Softmax", "opset"),
    (MICROSOFT, "QLinearAveragePool"): _pool("AveragePool"),
    (MICROSOFT, "QLinearGlobalAveragePool"): _pool("GlobalAveragePool"),
    (MICROSOFT, "MatMulNBits"): _matmul_nbits,
    (MICROSOFT, "QuantizeLinear"): _standard("QuantizeLinear"),
    (MICROSOFT, "DequantizeLinear"): _standard("DequantizeLinear"),
}
