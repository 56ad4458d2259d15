"""A model without its weights, as protobuf: what the C++ shape inference and checker of onnx are given.

Constants above a small limit become inputs of the main graph with their dtype and shape, so a model with
1 GB of weights costs as much here as one with none. Names must be unique across graphs (the verifier
sees to that), because the constants of bodies are lifted to the main graph.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from ..ops.common import PARED_DOMAIN
from ..ops.size_guard import guards_of
from .walk import all_graphs, bodies, constant_tensor

# Shape inference reads values of shape-like constants (Reshape, Pad, Resize, ...): a handful of int64.
KEPT_BYTES = 2048


def skeleton(model: ir.Model, *, shapes: bool = False, longest: int | None = None) -> onnx.ModelProto:
    """Return `model` as a ModelProto whose constants over `KEPT_BYTES` are inputs instead.

    With `shapes` the known types of intermediate values and the shapes of outputs are written too;
    without, only what cannot be derived is: inputs, constants and the dtype of outputs. With `longest`
    (import's own call) guards stand in front of computed sizes, and of vectors of more than so many elements
    where inference follows content (0: it follows none).
    """
    # Before IR version 4 onnx overlooks constants that are not inputs too; import makes them constants.
    proto = onnx.ModelProto(ir_version=min(max(model.ir_version, 10), 13))
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    if longest is not None and PARED_DOMAIN not in model.opset_imports:
        proto.opset_import.add(domain=PARED_DOMAIN, version=1)
    proto.graph.name = model.graph.name or "main"
    _fill(proto.graph, model.graph, shapes, longest)
    for graph in all_graphs(model):
        _lift_constants(proto.graph, graph)
    if shapes:
        _drop_unranked_outputs(proto.graph)
    return proto


def _drop_unranked_outputs(graph: onnx.GraphProto) -> None:
    """Leave out what onnx's checker refuses and onnxruntime runs: model outputs of unknown rank."""
    for index in reversed(range(len(graph.output))):
        kind = graph.output[index].type
        if kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape"):
            del graph.output[index]


def _fill(proto: onnx.GraphProto, graph: ir.Graph, shapes: bool, longest: int | None) -> None:
    for value in graph.inputs:
        ir.serde.serialize_value_into(proto.input.add(), value)
    for value in graph.initializers.values():
        if not value.is_graph_input() and not _is_lifted(value):
            tensor = proto.initializer.add()
            assert value.const_value is not None, f"initializer {value.name!r} without a tensor"
            ir.serde.serialize_tensor_into(tensor, value.const_value)
            tensor.name = value.name or ""
    for node in graph:
        _fill_node(proto, node, shapes, longest)
    for value in graph.outputs:
        _fill_output(proto.output.add(), value, shapes)


def _fill_node(proto: onnx.GraphProto, node: ir.Node, shapes: bool, longest: int | None) -> None:
    if node.op_type == "Constant" and not node.domain and _is_lifted(node.outputs[0]):
        return
    if longest is not None:
        proto.node.extend(guards_of(node, longest))
    made = proto.node.add(op_type=node.op_type, domain=node.domain, name=node.name or "")
    made.input.extend("" if value is None else value.name or "" for value in node.inputs)
    made.output.extend(value.name or "" for value in node.outputs)
    nested = bool(bodies(node))
    for attr in node.attributes.values():
        if nested and attr.type == ir.AttributeType.GRAPH:
            body = made.attribute.add(name=attr.name, type=onnx.AttributeProto.GRAPH)
            body.g.name = attr.as_graph().name or attr.name
            _fill(body.g, attr.as_graph(), shapes, longest)
        else:
            ir.serde.serialize_attribute_into(made.attribute.add(), attr)
    if shapes:
        for value in node.outputs:
            if value.type is not None and value.name and not value.is_graph_output():
                ir.serde.serialize_value_into(proto.value_info.add(), value)


def _fill_output(info: onnx.ValueInfoProto, value: ir.Value, shapes: bool) -> None:
    if shapes or value.type is None or not isinstance(value.type, ir.TensorType):
        ir.serde.serialize_value_into(info, value)
        return
    info.name = value.name or ""
    info.type.tensor_type.elem_type = value.type.dtype.value


def _is_lifted(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    # A string tensor has no byte size; they are labels, never weights.
    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return False
    return tensor.nbytes > KEPT_BYTES or isinstance(tensor, ir.ExternalTensor)


def _lift_constants(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    constants = [value for value in graph.initializers.values() if not value.is_graph_input()]
    constants += [node.outputs[0] for node in graph if node.op_type == "Constant" and not node.domain]
    for value in constants:
        if _is_lifted(value):
            tensor = constant_tensor(value)
            assert tensor is not None
            info = proto.input.add(name=value.name or "")
            info.type.tensor_type.elem_type = tensor.dtype.value
            for dim in tensor.shape.numpy():
                info.type.tensor_type.shape.dim.add(dim_value=int(dim))
