"""A BERT-like encoder with random weights: 4 layers, 256 wide, 4 heads, 128 positions; 436 million MACs.

Written as exporters write it: projections as MatMul and Add, heads by Reshape and Transpose, scores divided
by the root of their width, GELU by Erf (arXiv 1810.04805; post-norm).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

LAYERS, WIDTH, HEADS, POSITIONS = 4, 256, 4, 128


class _Graph:
    """An ONNX graph under construction."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def random(self, *shape: int, scale: float = 1.0, around: float = 0.0) -> str:
        values = self._rng.standard_normal(shape) * scale + around
        return self.constant(values.astype(np.float32))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def node(self, op: str, *inputs: str, **attributes: float | Sequence[int]) -> str:
        name = f"v{len(self.nodes)}"
        made = helper.make_node(op, inputs, [name], name)
        made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(made)
        return name

    def dense(self, x: str, inner: int, outer: int) -> str:
        weight = self.random(inner, outer, scale=inner**-0.5)
        return self.node("Add", self.node("MatMul", x, weight), self.random(outer, scale=0.1))

    def norm(self, x: str, width: int) -> str:
        scale = self.random(width, scale=0.1, around=1.0)
        return self.node("LayerNormalization", x, scale, self.random(width, scale=0.1), epsilon=1e-12)

    def gelu(self, x: str) -> str:
        inner = self.node("Erf", self.node("Div", x, self.number(2**0.5)))
        return self.node(
            "Mul", self.node("Mul", x, self.node("Add", inner, self.number(1.0))), self.number(0.5)
        )

    def attention(self, x: str, width: int, heads: int, positions: int) -> str:
        shape = self.constant(np.array([1, positions, heads, width // heads]))
        q, k, v = (self.node("Reshape", self.dense(x, width, width), shape) for _ in range(3))
        left = self.node("Transpose", q, perm=[0, 2, 1, 3])
        right = self.node("Transpose", k, perm=[0, 2, 3, 1])
        scores = self.node("Div", self.node("MatMul", left, right), self.number((width / heads) ** 0.5))
        values = self.node("Transpose", v, perm=[0, 2, 1, 3])
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), values)
        whole = self.constant(np.array([1, positions, width]))
        joined = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), whole)
        return self.dense(joined, width, width)


def encoder(
    layers: int = LAYERS, width: int = WIDTH, heads: int = HEADS, positions: int = POSITIONS, seed: int = 0
) -> onnx.ModelProto:
    """Return the encoder, `x` to `y`, both [1, positions, width]; the same seed gives the same weights."""
    graph, x = _Graph(seed), "x"
    for _ in range(layers):
        x = graph.norm(graph.node("Add", x, graph.attention(x, width, heads, positions)), width)
        wide = graph.gelu(graph.dense(x, width, 4 * width))
        x = graph.norm(graph.node("Add", x, graph.dense(wide, 4 * width, width)), width)
    graph.nodes[-1].output[0] = "y"
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, positions, width]) for name in "xy"
    ]
    made = helper.make_graph(graph.nodes, "encoder", ports[:1], ports[1:], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
