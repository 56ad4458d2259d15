"""Writes a plan into the graph: half constants, casts where types meet, names that stay."""

from __future__ import annotations

import onnx_ir as ir

from ...compiler.ir import walk
from .plan import FLOAT, OPSET_OF_BFLOAT16, Plan, is_float
from .weights import Rounded

_WHOLE = frozenset(["BOOL", "INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64"])


class Converter:
    """Edits one model.

    Args:
        model: edited.
        plan: of this very model.
        half_ports: inputs and outputs of the model become half floats too.
    """

    def __init__(self, model: ir.Model, plan: Plan, half_ports: bool) -> None:
        self._model, self._plan, self._half_ports = model, plan, half_ports
        self._names = walk.Names(model)
        self._cast: dict[ir.Value, ir.Value] = {}
        self._floats: dict[ir.Value, bool] = {}
        self.casts = 0
        self.rounded: list[Rounded] = []

    def run(self) -> None:
        """Convert every graph of the model."""
        if self._plan.kind == ir.DataType.BFLOAT16:
            _raise_opset(self._model)
        graphs = list(walk.all_graphs(self._model))
        # What each float32 value will be, before any of them changes its type.
        self._floats = {v: self._becomes_half(v) for g in graphs for v in walk.values_of(g) if is_float(v)}
        before = [node for graph in graphs for node in graph]
        for value, half in self._floats.items():
            if half:
                value.type = ir.TensorType(self._plan.kind)
        for node in before:
            self._feed(node)
        for graph in graphs:
            self._close(graph)
        _clean(before)
        for value in self._floats:
            walk.drop_unused_initializer(value)

    def _becomes_half(self, value: ir.Value) -> bool:
        port = value.is_graph_input() and value.graph is self._model.graph
        return (self._half_ports and port) or self._plan.makes_half(value)

    def _feed(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is None or value not in self._floats:
                continue
            half = self._plan.wants_half(node, index) or (node in self._plan.scales and index == 1)
            if half != self._floats[value] and not _takes_any(node):
                node.replace_input_with(index, self._other(value))

    def _other(self, value: ir.Value) -> ir.Value:
        """Return a value in the type that it has not, made once."""
        if value not in self._cast:
            self._cast[value] = self._constant(value) if walk.is_constant(value) else self._casted(value)
        return self._cast[value]

    def _constant(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        graph = value.graph if node is None else node.graph
        assert graph is not None, f"{value.name} is in no graph"
        rounded = self._plan.constants[value]
        self.rounded.append(rounded)
        return walk.add_initializer(graph, self._names.fresh(f"{value.name}_half"), rounded.array)

    def _casted(self, value: ir.Value) -> ir.Value:
        to = FLOAT if self._floats[value] else self._plan.kind
        source, maker = value, value.producer()
        if maker is not None and _makes_float_of_whole(maker) and not self._floats[value]:
            assert maker.inputs[0] is not None, "a Cast without its input"
            source = maker.inputs[0]
        base = f"{value.name}_{'float' if to == FLOAT else 'half'}"
        node = ir.node("Cast", [source], {"to": int(to)}, name=self._names.fresh(f"{base}_Cast"))
        result = node.outputs[0]
        result.name, result.type = self._names.fresh(base), ir.TensorType(to)
        result.shape = None if value.shape is None else value.shape.copy()
        self._insert(node, value)
        self.casts += 1
        return result

    def _insert(self, node: ir.Node, value: ir.Value) -> None:
        maker, graph = value.producer(), value.graph
        if maker is not None:
            assert maker.graph is not None, f"{maker.name} is in no graph"
            maker.graph.insert_after(maker, node)
            return
        assert graph is not None, f"{value.name} is in no graph"
        if len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)

    def _close(self, graph: ir.Graph) -> None:
        """Give the outputs of a graph the type that its surroundings expect, under their names."""
        half = self._half_ports and graph is self._model.graph
        for index, value in enumerate(graph.outputs):
            if value not in self._floats or self._floats[value] == half:
                continue
            result = self._other(value)
            if result.is_initializer() or result.is_graph_output():
                result = self._copied(graph, result)
            graph.outputs[index] = result
            name = value.name
            if value.graph is graph and not value.is_graph_input():
                walk.rename(value, self._names.fresh(f"{name}_{'float' if half else 'half'}"))
                walk.rename(result, name)

    def _copied(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        node = ir.node("Identity", [value], name=self._names.fresh(f"{value.name}_Identity"))
        result = node.outputs[0]
        result.name, result.type = self._names.fresh(f"{value.name}_out"), value.type
        result.shape = None if value.shape is None else value.shape.copy()
        graph.append(node)
        return result


def _takes_any(node: ir.Node) -> bool:
    """Say whether a node reads floats of any type alike: a cast to another type than float32."""
    return node.op_type == "Cast" and not node.domain and walk.int_attribute(node, "to", 1) != int(FLOAT)


def _makes_float_of_whole(node: ir.Node) -> bool:
    """Say whether a node is a cast of integers or truth values, which may go to half floats at once."""
    source = node.inputs[0] if node.op_type == "Cast" and not node.domain else None
    return source is not None and source.dtype is not None and source.dtype.name in _WHOLE


def _raise_opset(model: ir.Model) -> None:
    """Let operators that lacked bfloat16 have it."""
    if model.opset_imports[""] >= OPSET_OF_BFLOAT16:
        return
    for graph in walk.all_graphs(model):
        if "" in graph.opset_imports:
            graph.opset_imports[""] = OPSET_OF_BFLOAT16
        for node in graph:
            node.version = None
    model.opset_imports[""] = OPSET_OF_BFLOAT16


def _clean(nodes: list[ir.Node]) -> None:
    """Remove constants and casts that nothing reads any more."""
    for node in nodes:
        constant = node.op_type in ("Constant", "Cast") and not node.domain
        if constant and node.graph is not None and all(walk.is_unused(v) for v in node.outputs):
            walk.remove_chain(node)
