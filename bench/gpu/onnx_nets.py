"""ONNX graphs of the networks, of the chain of 4-bit products, and of the int8 product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from .nets import Net, Option, Step
from .products import Chain, Product

Array = npt.NDArray[np.generic]
_OPSET = 21
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class _Graph:
    """An ONNX graph under construction; floats are of one type."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: npt.NDArray[np.generic], name: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        array = array.astype(self.kind) if array.dtype.kind == "f" else array
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def node(self, op: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"n{len(self.nodes)}"
        made = helper.make_node(op, inputs, [name], name)
        made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(made)
        return name

    def model(self, x: onnx.ValueInfoProto, y: onnx.ValueInfoProto, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, [x], [y], self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
        made.ir_version = 10
        return made


def net_model(net: Net, batch: int, kind: str = "float32") -> onnx.ModelProto:
    """Return a network's graph from `x` to `y` for one batch size, in `float32` or `float16`."""
    graph = _Graph(kind)
    for name, array in net.weights.items():
        graph.constant(array, name)
    for step in net.steps:
        _RULES[step.op](graph, step, {**step.options, "batch": batch})
    graph.nodes[-1].output[0] = "y"
    sizes = [batch, *(net.shape[:-1] if len(net.shape) == 2 else ()), net.classes]
    x = helper.make_tensor_value_info("x", _TYPES[kind], [batch, *net.shape])
    return graph.model(x, helper.make_tensor_value_info("y", _TYPES[kind], sizes), net.name)


def _conv(graph: _Graph, step: Step, options: Mapping[str, Option]) -> None:
    pad, stride = options["pad"], options["stride"]
    graph.node(
        "Conv", *step.inputs, *step.weights, output=step.output,
        pads=[pad] * 4, strides=[stride] * 2, group=options["groups"],
    )  # fmt: skip


def _dense(graph: _Graph, step: Step, options: Mapping[str, Option]) -> None:
    # Exporters write a product of images' features as Gemm, of sequences as MatMul and Add.
    weight, bias = step.weights
    if options.get("flat"):
        graph.node("Gemm", *step.inputs, weight, bias, output=step.output)
        return
    graph.node("Add", graph.node("MatMul", *step.inputs, weight), bias, output=step.output)


def _mean(graph: _Graph, step: Step, options: Mapping[str, Option]) -> None:
    pooled = graph.node("GlobalAveragePool", *step.inputs)
    graph.node("Flatten", pooled, output=step.output)


def _maxpool(graph: _Graph, step: Step, options: Mapping[str, Option]) -> None:
    size, stride, pad = (options[key] for key in ("size", "stride", "pad"))
    graph.node(
        "MaxPool", *step.inputs, output=step.output,
        kernel_shape=[size] * 2, strides=[stride] * 2, pads=[pad] * 4,
    )  # fmt: skip


def _relu6(graph: _Graph, step: Step, options: Mapping[str, Option]) -> None:
    graph.node("Clip", *step.inputs, graph.number(0.0), graph.number(6.0), output=step.output)


def _norm(graph: _Graph, step: Step, options: Mapping[str, Option]) -> None:
    graph.node("LayerNormalization", *step.inputs, *step.weights, output=step.output, epsilon=1e-5)


def _gelu(graph: _Graph, step: Step, options: Mapping[str, Option]) -> None:
    (x,) = step.inputs
    inner = graph.node("Erf", graph.node("Div", x, graph.number(2**0.5)))
    outer = graph.node("Mul", x, graph.node("Add", inner, graph.number(1.0)))
    graph.node("Mul", outer, graph.number(0.5), output=step.output)


def _attention(graph: _Graph, step: Step, options: Mapping[str, Option]) -> None:
    batch, positions, heads, width = (int(str(options[k])) for k in ("batch", "positions", "heads", "width"))
    split = graph.constant(np.array([batch, positions, heads, width // heads]))
    q, k, v = (graph.node("Reshape", name, split) for name in step.inputs)
    left, values = (graph.node("Transpose", name, perm=[0, 2, 1, 3]) for name in (q, v))
    right = graph.node("Transpose", k, perm=[0, 2, 3, 1])
    scores = graph.node("Div", graph.node("MatMul", left, right), graph.number((width / heads) ** 0.5))
    mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), values)
    whole = graph.constant(np.array([batch, positions, width]))
    graph.node("Reshape", graph.node("Transpose", mixed, perm=[0, 2, 1, 3]), whole, output=step.output)


def _plain(op: str) -> Callable[[_Graph, Step, Mapping[str, Option]], None]:
    def rule(graph: _Graph, step: Step, options: Mapping[str, Option]) -> None:
        graph.node(op, *step.inputs, output=step.output)

    return rule


_RULES: Mapping[str, Callable[[_Graph, Step, Mapping[str, Option]], None]] = {
    "conv": _conv, "dense": _dense, "mean": _mean, "maxpool": _maxpool, "relu": _plain("Relu"),
    "relu6": _relu6, "add": _plain("Add"), "norm": _norm, "gelu": _gelu, "attention": _attention,
}  # fmt: skip


def chain_model(chain: Chain) -> onnx.ModelProto:
    """Return the chain of products by 4-bit weights, scales per block of rows: `x` to `y`, float16."""
    graph, x = _Graph("float16"), "x"
    for number, (codes, scales) in enumerate(chain.layers()):
        weight = _int4(graph, codes, f"q{number}")
        scale = graph.constant(scales, f"s{number}")
        real = graph.node("DequantizeLinear", weight, scale, axis=0, block_size=chain.block)
        last = number == chain.count - 1
        x = graph.node("MatMul", x, real, output="y" if last else "")
    sizes = [1, chain.width]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, sizes) for name in ("x", "y")]
    return graph.model(ports[0], ports[1], chain.name)


def _int4(graph: _Graph, codes: npt.NDArray[np.int8], name: str) -> str:
    """Store integers from -8 to 7 in halves of bytes, the first one low."""
    flat = codes.reshape(-1).view(np.uint8) & 15
    packed = (flat[::2] | (flat[1::2] << 4)).astype(np.uint8)
    graph.constants.append(
        helper.make_tensor(name, TensorProto.INT4, codes.shape, packed.tobytes(), raw=True)
    )
    return name


def product_model(product: Product) -> onnx.ModelProto:
    """Return the int8 product with its scales: `x` int8 to `y` int8."""
    graph = _Graph("float32")
    sizes: Sequence[int] = (product.size, product.size)
    zero = graph.constant(np.array(0, np.int8))
    one = graph.number(product.x_scale)
    weight = graph.constant(product.weights(), "w")
    left = graph.node("DequantizeLinear", "x", one, zero)
    right = graph.node("DequantizeLinear", weight, graph.number(product.w_scale), zero)
    total = graph.node("MatMul", left, right)
    graph.node("QuantizeLinear", total, graph.number(product.y_scale), zero, output="y")
    ports = [helper.make_tensor_value_info(name, TensorProto.INT8, sizes) for name in ("x", "y")]
    return graph.model(ports[0], ports[1], product.name)
