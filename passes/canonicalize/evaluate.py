"""Evaluation of constant nodes in onnxruntime, optimisations off, with sizes told beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, shape_inference

from ...compiler.ir.walk import Array

if TYPE_CHECKING:
    import onnxruntime as ort

# Inputs up to this many elements are shown to shape inference: enough for any list of sizes.
_DATA_ELEMENTS = 1024
_IR_VERSION = 10
Outcome = dict[ir.Value, Array]


def sizes_by_inference(
    node: ir.Node, opset: int, constants: Mapping[ir.Value, Array]
) -> list[tuple[int, ...]] | None:
    """Return the shapes of the outputs of `node` as its inputs' data imply them; None where they do not."""
    schema = _schema(node, opset)
    if schema is None:
        return None
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, TensorProto] = {}
    for value in node.inputs:
        if value is not None:
            assert value.name is not None
            array = constants[value]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            types[value.name] = helper.make_tensor_type_proto(kind, array.shape)
            if array.size <= _DATA_ELEMENTS:
                data[value.name] = onnx.numpy_helper.from_array(np.asarray(array), value.name)
    try:
        found = shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),
            types,
            data,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=_IR_VERSION,
        )
    except (shape_inference.InferenceError, RuntimeError, ValueError):
        return None
    shapes = [_static(found.get(output.name or "")) for output in node.outputs if output.name]
    known = [shape for shape in shapes if shape is not None]
    return known if len(known) == len(shapes) else None


def _schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def _static(kind: onnx.TypeProto | None) -> tuple[int, ...] | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def run_nodes(nodes: Sequence[ir.Node], opset: int, constants: Mapping[ir.Value, Array]) -> Outcome:
    """Run nodes (in topological order) on constants; return all their outputs.

    Constants go in as feeds, not as initializers, so nothing is copied into the model. Raises what
    onnxruntime raises.
    """
    outputs = [value for node in nodes for value in node.outputs if value.name]
    inputs = {value for node in nodes for value in node.inputs if value is not None}.difference(outputs)
    feeds = {str(value.name): np.asarray(constants[value]) for value in inputs}
    names = [str(value.name) for value in outputs]
    results = _session(nodes, opset, feeds, names).run(names, feeds)
    return dict(zip(outputs, (np.asarray(result) for result in results), strict=True))


def _session(
    nodes: Sequence[ir.Node], opset: int, feeds: Mapping[str, Array], outputs: Sequence[str]
) -> ort.InferenceSession:
    import onnxruntime as ort

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    protos = [ir.serde.serialize_node(node) for node in nodes]
    graph = helper.make_graph(
        protos, "constants", inputs, [onnx.ValueInfoProto(name=name) for name in outputs]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
