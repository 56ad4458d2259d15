"""Replacement of an If whose condition is constant by the branch it takes."""

from __future__ import annotations

import onnx_ir as ir

from ...compiler.ir.walk import constant, remove_chain, replace_value


def inline_if(node: ir.Node) -> bool:
    """Move the taken branch of `node` in front of it and remove it; False when the condition is unknown.

    What the branch computes takes the names of the If's outputs; what it only hands on keeps its own.
    """
    condition = constant(node.inputs[0])
    if condition is None or condition.size != 1 or node.graph is None:
        return False
    branch = node.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"].as_graph()
    results = list(branch.outputs)
    computed = {result for result in results if result.producer() is not None and result.graph is branch}
    branch.outputs.clear()
    _move(branch, node)
    for output, result in zip(node.outputs, results, strict=True):
        if output.is_graph_output():
            result.type = output.type
            result.shape = None if output.shape is None else output.shape.copy()
        replace_value(output, result, take_name=result in computed)
        computed.discard(result)
    remove_chain(node)
    return True


def _move(branch: ir.Graph, before: ir.Node) -> None:
    """Move nodes and constants of a body into the graph of `before`. Names are unique across graphs."""
    graph = before.graph
    assert graph is not None, "a node without a graph"
    for value in list(branch.initializers.values()):
        assert value.name is not None
        graph.register_initializer(branch.initializers.pop(value.name))
    nodes = list(branch)
    branch.remove(nodes)
    graph.insert_before(before, nodes)
