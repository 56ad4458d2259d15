"""The IR verifier: what must hold on every model after import and after every pass.

Scope and order, use-def symmetry, unique names, dtype and shape present, constants equal to what their
values say, a schema for every operator, well-formed quantization, in bodies as in the main graph. Linear
in nodes and values; weights are not read, save the scales of quantizers.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from ..errors import InvalidGraph
from ..ops import register
from .limits import bounded_memory
from .quant_rules import check_quantizer
from .schema_rules import check_schema
from .shapes import memory_for, out_of_bounds
from .skeleton import skeleton
from .walk import Array, all_graphs, bodies, constant_tensor, node_label, values_of


def verify_graph(model: ir.Model, *, full: bool = True) -> None:
    """Raise on the first broken invariant.

    Args:
        model: not edited.
        full: also run onnx's full checker on a copy without weights.

    Raises:
        InvalidGraph: `ir-functions`, `ir-name`, `ir-order`, `ir-scope`, `ir-use-def`, `ir-type`,
            `ir-constant`, `ir-schema`, `ir-quant`, `ir-checker`.
    """
    register()
    if model.functions:
        raise InvalidGraph("ir-functions", "the model holds functions; they are inlined at import")
    _check_names(model)
    _check_scope(model.graph, set())
    for graph in all_graphs(model):
        for value in values_of(graph):
            _check_value(value)
            _check_uses(value)
        for node in graph:
            _check_node_links(node)
            check_schema(node, model.opset_imports)
            check_quantizer(node)
    if full:
        _full_check(model)


# --- names ------------------------------------------------------------------------------------------


def _check_names(model: ir.Model) -> None:
    values: set[str] = set()
    nodes: set[str] = set()
    for graph in all_graphs(model):
        for value in values_of(graph):
            if not value.name:
                if value.uses() or value.is_graph_output():
                    raise InvalidGraph("ir-name", f"an unnamed value is used ({_place(value)})")
            elif value.name in values:
                raise InvalidGraph("ir-name", f"two values are named {value.name!r} ({_place(value)})")
            else:
                values.add(value.name)
        for node in graph:
            if not node.name:
                raise InvalidGraph(
                    "ir-name", f"a {node.op_type} node has no name ({_place(node.outputs[0])})"
                )
            if node.name in nodes:
                raise InvalidGraph("ir-name", f"two nodes are named {node.name!r}")
            nodes.add(node.name)


def _place(value: ir.Value) -> str:
    node = value.producer()
    if node is not None:
        return f"output of {node_label(node)}"
    return "initializer" if value.is_initializer() else "graph input"


# --- scope and order --------------------------------------------------------------------------------


def _check_scope(graph: ir.Graph, visible: set[ir.Value]) -> None:
    """See that each value is defined before it is read, given what is visible where `graph` stands."""
    mine = [*graph.inputs, *graph.initializers.values()]
    visible.update(mine)
    for node in graph:
        _check_reads(node, visible)
        for body in bodies(node):
            _check_scope(body, visible)
        visible.update(node.outputs)
        mine.extend(node.outputs)
    _check_outputs(graph, visible)
    visible.difference_update(mine)


def _check_reads(node: ir.Node, visible: set[ir.Value]) -> None:
    for value in node.inputs:
        if value is not None and value not in visible:
            maker = value.producer()
            later = maker is not None and maker.graph is not None
            raise InvalidGraph(
                "ir-order" if later else "ir-scope",
                f"{node_label(node)} reads {value.name!r}, which is "
                + ("defined later, in a body, or in a removed part" if later else "defined nowhere"),
            )


def _check_outputs(graph: ir.Graph, visible: set[ir.Value]) -> None:
    seen: set[ir.Value] = set()
    for value in graph.outputs:
        if value not in visible:
            raise InvalidGraph(
                "ir-scope", f"output {value.name!r} of graph {graph.name!r} is made by nothing"
            )
        if value in seen:
            raise InvalidGraph("ir-name", f"output {value.name!r} of graph {graph.name!r} is listed twice")
        seen.add(value)


# --- links ------------------------------------------------------------------------------------------


def _check_uses(value: ir.Value) -> None:
    for node, index in value.uses():
        if index >= len(node.inputs) or node.inputs[index] is not value:
            raise InvalidGraph(
                "ir-use-def", f"{value.name!r} lists {node_label(node)} as a reader, which does not read it"
            )
        if node.graph is None:
            raise InvalidGraph(
                "ir-use-def", f"{value.name!r} is read by {node_label(node)}, which is in no graph"
            )


def _check_node_links(node: ir.Node) -> None:
    for index, value in enumerate(node.outputs):
        if value.producer() is not node or value.index() != index:
            raise InvalidGraph("ir-use-def", f"output {index} of {node_label(node)} does not point back")
    for index, used in enumerate(node.inputs):
        if used is not None and (node, index) not in used._uses:
            raise InvalidGraph("ir-use-def", f"input {index} of {node_label(node)} does not know its reader")


# --- types and constants ----------------------------------------------------------------------------


def _check_value(value: ir.Value) -> None:
    if value.name and value.type is None:
        raise InvalidGraph("ir-type", f"{value.name!r} has no dtype ({_place(value)})")
    if value.is_graph_input() and value.is_initializer():
        raise InvalidGraph("ir-constant", f"{value.name!r} is both an input and a constant")
    if value.is_initializer() and value.const_value is None:
        raise InvalidGraph("ir-constant", f"initializer {value.name!r} has no data")
    tensor = constant_tensor(value)
    if tensor is not None:
        _check_constant(value, tensor)


def _check_constant(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    if value.dtype != tensor.dtype:
        raise InvalidGraph(
            "ir-constant", f"constant {value.name!r} says {value.dtype} but holds {tensor.dtype} data"
        )
    if value.shape is None:
        raise InvalidGraph("ir-type", f"constant {value.name!r} has no shape")
    if tuple(value.shape.dims) != tuple(tensor.shape.dims):
        raise InvalidGraph(
            "ir-constant", f"constant {value.name!r} says {value.shape} but holds {tensor.shape}"
        )
    if isinstance(tensor, ir.Tensor):
        _check_array(value, tensor)


def _check_array(value: ir.Value, tensor: ir.Tensor[Array]) -> None:
    """Compare the array itself with what the tensor object says, without reading elements."""
    array = tensor.raw
    if getattr(array, "shape", None) is not None and tuple(array.shape) != tuple(tensor.shape.numpy()):
        raise InvalidGraph(
            "ir-constant", f"constant {value.name!r} says {tensor.shape} but its array is {array.shape}"
        )
    flags = getattr(array, "flags", None)
    if value.is_initializer() and flags is not None and flags.writeable:
        raise InvalidGraph("ir-constant", f"the array of initializer {value.name!r} can be written to")


# --- onnx's own checker -----------------------------------------------------------------------------


def _full_check(model: ir.Model) -> None:
    proto = skeleton(model, shapes=True)
    try:
        with bounded_memory(memory_for(proto)):
            onnx.checker.check_model(proto, full_check=True, check_custom_domain=True)
    except MemoryError as err:
        raise out_of_bounds() from err
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as err:
        raise InvalidGraph("ir-checker", f"onnx's checker refuses the graph: {_short(str(err))}") from err


def _short(text: str, limit: int = 600) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."
