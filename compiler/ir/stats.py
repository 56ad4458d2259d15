"""What a model costs on paper: operators, parameters, bytes, multiply-accumulates and bit operations.

Sizes that are not known count as 1, so that a symbolic batch gives the cost of one sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from .walk import all_graphs, bodies, constant, constant_tensor, int_attribute

_FLOAT_BITS = 32
_SHAPE_TYPES = frozenset({ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING, ir.DataType.UNDEFINED})


@dataclass(frozen=True)
class Counts:
    """Cost of one inference and of storing the model.

    Attributes:
        ops: operator -> nodes, bodies included; operators of other domains as `domain::Op`.
        parameters: elements of all constants, but for int64, bool and strings (shapes, indices, labels).
        weight_bytes: bytes of all constants, sub-byte types packed.
        macs: multiply-accumulates of one inference.
        bops: MACs times the bits of both operands, float counting as 32.
        uncounted: nodes that multiply, but whose MACs cannot be told (unknown rank or trip count).
    """

    ops: dict[str, int]
    parameters: int
    weight_bytes: int
    macs: int
    bops: int
    uncounted: int = 0


def count(model: ir.Model) -> Counts:
    """Count operators, parameters, bytes, MACs and BOPs. Reads no weights."""
    ops: Counter[str] = Counter()
    parameters = stored = 0
    for graph in all_graphs(model):
        values = list(graph.initializers.values())
        for node in graph:
            ops[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
            values += node.outputs if node.op_type == "Constant" else ()
        for value in values:
            tensor = constant_tensor(value)
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                stored += tensor.nbytes
                parameters += 0 if tensor.dtype in _SHAPE_TYPES else tensor.size
    total = _graph_cost(model.graph)
    return Counts(dict(sorted(ops.items())), parameters, stored, total.macs, total.bops, total.unknown)


def macs_of(node: ir.Node) -> int | None:
    """Return the multiply-accumulates of one execution of `node`, bodies included.

    0 for operators that do not multiply matrices; None when a needed rank or trip count is unknown.
    """
    cost = _node_cost(node)
    return None if cost.unknown else cost.macs


@dataclass
class _Cost:
    macs: int = 0
    bops: int = 0
    unknown: int = 0

    def add(self, other: _Cost, times: int = 1) -> None:
        self.macs += other.macs * times
        self.bops += other.bops * times
        self.unknown += other.unknown


def _graph_cost(graph: ir.Graph) -> _Cost:
    total = _Cost()
    for node in graph:
        total.add(_node_cost(node))
    return total


def _node_cost(node: ir.Node) -> _Cost:
    if bodies(node):
        return _control_cost(node)
    rule = _RULES.get((node.domain, node.op_type))
    if rule is None:
        return _Cost()
    macs, left, right = rule(node)
    if macs is None:
        return _Cost(unknown=1)
    return _Cost(macs, macs * _bits(left) * _bits(right))


def _control_cost(node: ir.Node) -> _Cost:
    costs = [_graph_cost(body) for body in bodies(node)]
    total = _Cost()
    if node.op_type == "If":
        total.add(max(costs, key=lambda cost: cost.macs))
        return total
    trips = _scan_trips(node) if node.op_type == "Scan" else _loop_trips(node)
    if trips is None:
        return _Cost(unknown=sum(bool(cost.macs or cost.unknown) for cost in costs))
    for cost in costs:
        total.add(cost, trips)
    return total


def _scan_trips(node: ir.Node) -> int | None:
    scanned = int_attribute(node, "num_scan_inputs", 1)
    value = node.inputs[len(node.inputs) - scanned]
    axes = node.attributes.get("scan_input_axes")
    axis = axes.as_ints()[0] if axes is not None else 0
    dims = _dims(value)
    return None if dims is None else dims[axis]


def _loop_trips(node: ir.Node) -> int | None:
    trips = constant(node.inputs[0])
    return None if trips is None else max(int(trips.reshape(-1)[0]), 0)


# --- shapes and widths ------------------------------------------------------------------------------


def _dims(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else 1 for dim in value.shape.dims)


def _bits(value: ir.Value | None) -> int:
    """Return the width of an operand: of its quantizer when it has one, else of its dtype."""
    from .quant import view

    if value is None:
        return _FLOAT_BITS
    params = view(value)
    if params is not None:
        return params.spec.bits
    return _FLOAT_BITS if value.dtype is None or value.dtype.is_floating_point() else value.dtype.bitwidth


# --- rules: node -> (MACs or None, left operand, right operand) -------------------------------------

Found = tuple[int | None, ir.Value | None, ir.Value | None]


def _conv(node: ir.Node) -> Found:
    out, weight = _dims(node.outputs[0]), _dims(node.inputs[1])
    macs = None if out is None or weight is None else math.prod(out) * math.prod(weight[1:])
    return macs, node.inputs[0], node.inputs[1]


def _conv_transpose(node: ir.Node) -> Found:
    data, weight = _dims(node.inputs[0]), _dims(node.inputs[1])
    macs = None if data is None or weight is None else math.prod(data) * math.prod(weight[1:])
    return macs, node.inputs[0], node.inputs[1]


def _matmul(node: ir.Node) -> Found:
    out, left = _dims(node.outputs[0]), _dims(node.inputs[0])
    macs = None if out is None or not left else math.prod(out) * left[-1]
    return macs, node.inputs[0], node.inputs[1]


def _gemm(node: ir.Node) -> Found:
    out, left = _dims(node.outputs[0]), _dims(node.inputs[0])
    if out is None or left is None or len(left) != 2:
        return None, node.inputs[0], node.inputs[1]
    depth = left[0] if int_attribute(node, "transA", 0) else left[1]
    return math.prod(out) * depth, node.inputs[0], node.inputs[1]


def _recurrent(node: ir.Node) -> Found:
    """LSTM, GRU and RNN: every step multiplies the input by W and the state by R."""
    data, weight, recurrence = (_dims(value) for value in node.inputs[:3])
    if data is None or weight is None or recurrence is None:
        return None, node.inputs[0], node.inputs[1]
    steps = data[0] * data[1]
    return steps * (math.prod(weight) + math.prod(recurrence)), node.inputs[0], node.inputs[1]


def _einsum(node: ir.Node) -> Found:
    """Two-operand Einsum: the product of the sizes of all its letters."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    terms, shapes = equation.split("->")[0].split(","), [_dims(value) for value in node.inputs]
    second = node.inputs[1] if len(node.inputs) > 1 else None
    if len(terms) != 2 or "." in equation or any(shape is None for shape in shapes):
        return None, node.inputs[0], second
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape or (), strict=False)
    }
    return math.prod(sizes.values()), node.inputs[0], second


_RULES: Mapping[tuple[str, str], Callable[[ir.Node], Found]] = {
    ("", "Conv"): _conv,
    ("", "ConvInteger"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "LSTM"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "RNN"): _recurrent,
    ("", "Einsum"): _einsum,
}
