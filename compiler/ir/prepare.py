"""Small edits of the ModelProto that spare the IR from forms it cannot hold; made after the guards."""

from __future__ import annotations

import onnx

from .guards import nested_graphs

# TensorAnnotation keys that name other tensors; QDQ nodes say the same and do not go stale.
_TENSOR_KEYS = frozenset({"SCALE_TENSOR", "ZERO_POINT_TENSOR"})


def prepare(proto: onnx.ModelProto, notes: list[str]) -> None:
    """Edit `proto` in place: pass-through outputs of bodies and quantization annotations."""
    for graph in nested_graphs(proto):
        _keep_literal_annotations(graph, notes)
        if graph is not proto.graph:
            _separate_outer_outputs(graph)


def _separate_outer_outputs(body: onnx.GraphProto) -> None:
    """Put an Identity behind values of an outer graph that a body returns."""
    own = {info.name for info in body.input} | {tensor.name for tensor in body.initializer}
    own.update(name for node in body.node for name in node.output)
    for info in body.output:
        if info.name not in own:
            outer, info.name = info.name, f"{body.name or 'body'}_{info.name}_returned"
            body.node.add(op_type="Identity", input=[outer], output=[info.name])


def _keep_literal_annotations(graph: onnx.GraphProto, notes: list[str]) -> None:
    """Keep annotations that are facts (FINN data types); drop those that name scale tensors."""
    dropped = 0
    for index in reversed(range(len(graph.quantization_annotation))):
        annotation = graph.quantization_annotation[index]
        if any(entry.key in _TENSOR_KEYS for entry in annotation.quant_parameter_tensor_names):
            del graph.quantization_annotation[index]
            dropped += 1
    if dropped:
        notes.append(f"{dropped} quantization annotations were dropped; quantization is in the operators")
