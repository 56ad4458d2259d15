"""Operators that ONNX does not have: quantizers of QONNX and FINN, blocks, neurons; one file per op."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from . import bipolar_quant, dynamic_blocks, multithreshold, neuron_op, quant, size_guard, trunc
from .common import FINN_DOMAIN, PARED_DOMAIN, QONNX_DOMAIN, Expander

SCHEMAS: tuple[OpSchema, ...] = (
    quant.SCHEMA,
    bipolar_quant.SCHEMA,
    trunc.SCHEMA,
    multithreshold.SCHEMA,
    dynamic_blocks.SCHEMA,
    neuron_op.SCHEMA,
    size_guard.SCHEMA,
)

EXPANSIONS: Mapping[tuple[str, str], Callable[[ir.Node, Expander], ir.Value | Sequence[ir.Value]]] = {
    (QONNX_DOMAIN, "Quant"): quant.expand,
    (QONNX_DOMAIN, "BipolarQuant"): bipolar_quant.expand,
    (QONNX_DOMAIN, "Trunc"): trunc.expand,
    (FINN_DOMAIN, "MultiThreshold"): multithreshold.expand,
    (PARED_DOMAIN, dynamic_blocks.OP): dynamic_blocks.expand,
    (PARED_DOMAIN, neuron_op.OP): neuron_op.expand,
}

# The QONNX opset has versions 1 and 2 (they differ in Trunc, which is told apart by its inputs).
_LAST_VERSION = 2


def register() -> None:
    """Make onnx know the own ops, so that its checker and shape inference work; may be called repeatedly."""
    for schema in SCHEMAS:
        if not onnx.defs.has(schema.name, domain=schema.domain):
            onnx.defs.register_schema(schema)
            onnx.defs.C.set_domain_to_version(schema.domain, 1, _LAST_VERSION)


def expand_custom_ops(model: ir.Model, wanted: Callable[[ir.Node], bool] | None = None) -> int:
    """Rewrite own ops into standard ONNX ops in place, subgraphs included; returns how many.

    A replaced value keeps its name. The model's imports of the own domains are dropped.

    Args:
        model: edited.
        wanted: which own ops to rewrite; all of them without.

    Raises:
        UnsupportedOp: parameters that must be constant are not.
    """
    every = [node for node in model.graph.all_nodes() if (node.domain, node.op_type) in EXPANSIONS]
    nodes = [node for node in every if wanted is None or wanted(node)]
    if not nodes:
        return 0
    taken = set(_value_names(model))
    for node in nodes:
        _expand_node(node, taken)
    for domain in (QONNX_DOMAIN, FINN_DOMAIN, PARED_DOMAIN):
        if len(nodes) == len(every):
            model.graph.opset_imports.pop(domain, None)
    return len(nodes)


def _expand_node(node: ir.Node, taken: set[str]) -> None:
    out = Expander(node, taken)
    found = EXPANSIONS[(node.domain, node.op_type)](node, out)
    results = [found] if isinstance(found, ir.Value) else list(found)
    graph, last = node.graph, results[0].producer()
    assert graph is not None, f"{node.op_type} {node.name!r} is in no graph"
    assert last is not None, f"the expansion of {node.op_type} made no node"
    last.name = node.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], out.nodes, node.outputs, results)


def _value_names(model: ir.Model) -> Iterator[str]:
    for graph in {id(g): g for g in (model.graph, *(n.graph for n in model.graph.all_nodes()))}.values():
        assert isinstance(graph, ir.Graph), "functions are inlined at import"
        yield from (value.name for value in graph.inputs if value.name)
        yield from graph.initializers
    for node in model.graph.all_nodes():
        yield from (value.name for value in node.outputs if value.name)
