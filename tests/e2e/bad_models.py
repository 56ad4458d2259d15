"""Broken and hostile models, each as bytes; the builders name what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


def model(
    nodes: Sequence[NodeProto],
    initializers: Sequence[TensorProto] = (),
    *,
    shape: Sequence[int | str] = (1, 4),
    opsets: Sequence[tuple[str, int]] = (("", 17),),
) -> ModelProto:
    """Return a model from `x` to `y`, both float of `shape`."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in "xy")
    graph = helper.make_graph(list(nodes), "g", [x], [y], initializer=list(initializers))
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return helper.make_model(graph, ir_version=8, opset_imports=imports)


def node(op: str, inputs: str, outputs: str, **attributes: object) -> NodeProto:
    """Return a node; names are separated by blanks."""
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"n_{op}_{outputs}", **attributes)


def small_model() -> ModelProto:
    """Return a good model: Gemm and Relu, float [1, 4] -> [1, 3]."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((4, 3)).astype(np.float32), "w")
    made = model([node("MatMul", "x w", "h"), node("Relu", "h", "y")], [weight])
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    return made


def image_model(size: int = 8) -> ModelProto:
    """Return a good convolutional model, float NCHW [1, 3, size, size] -> [1, 4, size, size]."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    made = model([node("Conv", "x w", "h", pads=[1, 1, 1, 1]), node("Relu", "h", "y")], [weight],
                 shape=(1, 3, size, size))  # fmt: skip
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    return made


def truncated() -> bytes:
    return small_model().SerializeToString()[:-20]


def empty() -> bytes:
    return b""


def text() -> bytes:
    return b"this is not a model\n" * 20


def picture() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + bytes(64)


def cycle() -> bytes:
    return model(
        [node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")]
    ).SerializeToString()


def duplicate_value() -> bytes:
    return model([node("Relu", "x", "h"), node("Neg", "x", "h"), node("Relu", "h", "y")]).SerializeToString()


def duplicate_initializer() -> bytes:
    one = numpy_helper.from_array(np.ones(4, np.float32), "w")
    return model([node("Add", "x w", "y")], [one, one]).SerializeToString()


def undefined_input() -> bytes:
    return model([node("Add", "x ghost", "y")]).SerializeToString()


def unknown_op() -> bytes:
    return model([node("Reluu", "x", "y")]).SerializeToString()


def unknown_domain() -> bytes:
    made = model([node("Magic", "x", "y", domain="com.example")], opsets=(("", 17), ("com.example", 1)))
    return made.SerializeToString()


def tensor_shorter_than_it_says() -> bytes:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.dims[0] = 400
    return model([node("Add", "x w", "y")], [weight]).SerializeToString()


def tensor_of_a_billion_elements() -> bytes:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[10**9], raw_data=b"1234")
    return model([node("Add", "x w", "y")], [weight]).SerializeToString()


def negative_size() -> bytes:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[-4], raw_data=bytes(16))
    return model([node("Add", "x w", "y")], [weight]).SerializeToString()


def external(location: str, **entries: str) -> bytes:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    return model([node("Add", "x w", "y")], [weight]).SerializeToString()


def external_outside() -> bytes:
    return external("../../../../etc/passwd")


def external_absolute() -> bytes:
    return external("/etc/passwd")


def external_missing() -> bytes:
    return external("weights.bin")


def deep_nesting(levels: int = 400) -> bytes:
    """Return If inside If inside If; built as bytes from inside out, since protobuf itself refuses it."""
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    inner = _branch([node("Identity", "x", "y0")], "y0")
    data = inner.SerializeToString()
    for level in range(1, levels):
        data = _wrapped(data, level)
    outer = model([], [condition])
    head = outer.graph.SerializeToString()
    graph = _field(1, _if(data, "y")) + head
    return ModelProto(ir_version=8, opset_import=outer.opset_import).SerializeToString() + _field(7, graph)


def _branch(nodes: Sequence[NodeProto], output: str) -> GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 4])
    return helper.make_graph(list(nodes), "b", [], [value])


def _wrapped(body: bytes, level: int) -> bytes:
    output = helper.make_tensor_value_info(f"y{level}", TensorProto.FLOAT, [1, 4])
    return (
        _field(1, _if(body, f"y{level}")) + GraphProto(name=f"b{level}", output=[output]).SerializeToString()
    )


def _if(body: bytes, output: str) -> bytes:
    """Return an If node whose branches are both `body`."""
    head = NodeProto(op_type="If", name=f"if_{output}", input=["c"], output=[output]).SerializeToString()
    then = onnx.AttributeProto(name="then_branch", type=onnx.AttributeProto.GRAPH).SerializeToString()
    other = onnx.AttributeProto(name="else_branch", type=onnx.AttributeProto.GRAPH, g=_branch(
        [node("Identity", "x", f"e_{output}")], f"e_{output}")).SerializeToString()  # fmt: skip
    return head + _field(5, then + _field(6, body)) + _field(5, other)


def _field(number: int, payload: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# What is wrong -> (how to build it, the reason codes that name it).
BAD_MODELS: dict[str, tuple[Callable[[], bytes], frozenset[str]]] = {
    "truncated": (truncated, frozenset({"truncated-model"})),
    "empty": (empty, frozenset({"empty-model"})),
    "text": (text, frozenset({"not-onnx"})),
    "picture": (picture, frozenset({"not-onnx"})),
    "cycle": (cycle, frozenset({"graph-cycle"})),
    "duplicate-value": (duplicate_value, frozenset({"duplicate-name"})),
    "duplicate-initializer": (duplicate_initializer, frozenset({"duplicate-initializer"})),
    "undefined-input": (undefined_input, frozenset({"undefined-value"})),
    "unknown-op": (unknown_op, frozenset({"unknown-op"})),
    "unknown-domain": (unknown_domain, frozenset({"unknown-domain"})),
    "tensor-shorter-than-it-says": (tensor_shorter_than_it_says, frozenset({"tensor-size"})),
    "tensor-of-a-billion-elements": (tensor_of_a_billion_elements, frozenset({"tensor-size"})),
    "negative-size": (negative_size, frozenset({"negative-dims"})),
    "external-outside": (external_outside, frozenset({"external-data-escape"})),
    "external-absolute": (external_absolute, frozenset({"external-data-escape"})),
    "external-missing": (external_missing, frozenset({"external-data-missing"})),
    "deep-nesting": (deep_nesting, frozenset({"too-deep"})),
}
