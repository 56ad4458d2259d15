"""Small models that the tests of compiler/ir share, and onnxruntime as the judge of numerics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = np.ndarray


def value(
    name: str, shape: Sequence[int | str] | None = (1, 4), dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, None if shape is None else list(shape))


def proto(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    domains: Mapping[str, int] | None = None,
    ir_version: int = 8,
) -> ModelProto:
    """Return a model; without inputs and outputs, `x` and `y` of float [1, 4]."""
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(
        list(nodes), "g", list(inputs) or [value("x")], list(outputs) or [value("y")], tensors
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    return helper.make_model(graph, ir_version=ir_version, opset_imports=imports)


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: object) -> NodeProto:
    """Return a node; names are separated by blanks, `_` is a left-out input."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(
        op, names, outputs.split(), name=f"n_{outputs.split()[0]}", domain=domain, **attributes
    )


def body(
    name: str,
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> GraphProto:
    return helper.make_graph(list(nodes), name, list(inputs), list(outputs))


def if_model(then_reads: str = "h") -> ModelProto:
    """Return Relu(x) = h, then If(c, Neg(h), Abs(h))."""
    then = body("t", [node("Neg", then_reads, "yt")], [], [value("yt")])
    other = body("e", [node("Abs", "h", "ye")], [], [value("ye")])
    return proto(
        [node("Relu", "x", "h"), node("If", "c", "y", then_branch=then, else_branch=other)],
        [value("x"), value("c", (), TensorProto.BOOL)],
    )


def parsed(text: str) -> ir.Model:
    """Return a model from ONNX text, with what import guarantees."""
    from pared.compiler.ir.importer import import_model

    return import_model(onnx.parser.parse_model(text)).model


def run(model: bytes | ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Run in onnxruntime on one thread without optimizations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
