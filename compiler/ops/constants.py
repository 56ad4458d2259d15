"""What a value is worth when it does not depend on the inputs: constants and small expressions of them."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

Array = npt.NDArray[np.number]

# Expressions are for quantization parameters; folding weights is the business of a pass.
_MOST_NODES = 64
_MOST_ELEMENTS = 1 << 20


def constant_of(value: ir.Value | None) -> Array | None:
    """Return the array of an initializer or of a `Constant` node's output, else None."""
    if value is None:
        return None
    if value.const_value is not None and not value.is_graph_input():
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def constant_expression(value: ir.Value | None) -> Array | None:
    """Return what `value` is worth if it is computed from small constants alone, else None.

    At most 64 nodes of the default domain, without subgraphs, reading at most 2^20 elements.
    """
    direct = constant_of(value)
    if direct is not None or value is None or value.producer() is None:
        return direct
    found = _collect(value)
    if found is None:
        return None
    nodes, feeds = found
    return _evaluate(value, nodes, feeds)


def _collect(value: ir.Value) -> tuple[list[ir.Node], dict[str, Array]] | None:
    """Return the nodes above `value` in order and the constants they read; None if there is more to it."""
    order: list[ir.Node] = []
    feeds: dict[str, Array] = {}
    seen: set[ir.Node] = set()
    stack: list[tuple[ir.Value, bool]] = [(value, False)]
    while stack:
        current, ready = stack.pop()
        node = current.producer()
        array = None if ready else constant_of(current)
        if array is not None:
            feeds[current.name or ""] = array
            continue
        if node is None or len(order) > _MOST_NODES or not _is_plain(node):
            return None
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((current, True))
            stack.extend((item, False) for item in node.inputs if item is not None)
    return None if sum(array.size for array in feeds.values()) > _MOST_ELEMENTS else (order, feeds)


def _is_plain(node: ir.Node) -> bool:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    random = node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")
    return (
        node.domain in ("", "ai.onnx")
        and not random
        and all(a.type not in graphs for a in node.attributes.values())
    )


def _evaluate(value: ir.Value, nodes: list[ir.Node], feeds: dict[str, Array]) -> Array:
    from onnx.reference import ReferenceEvaluator

    graph = onnx.GraphProto(name="constant")
    graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in feeds)
    graph.output.append(onnx.ValueInfoProto(name=value.name))
    owner = nodes[-1].graph
    version = owner.opset_imports.get("", 21) if owner is not None else 21
    results = ReferenceEvaluator(graph, opsets={"": version}).run(None, dict(feeds))
    return np.asarray(cast("list[Array]", results)[0])
