"""Models that `native` takes in part only: Asinh has no kernel of its own."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from pared.compiler.backend import Array
from pared.compiler.ir.importer import import_model

CHANNELS = 16
SMALL, LARGE = 5, 24  # a convolution of the large size is worth a border


def quantized(seed: int, *, middle: str, signed: bool = False) -> ir.Model:
    """Two quantized convolutions with `middle`, ONNX text from float `d` to float `m`, between quantizers.

    The tensor `q1` between them is read by the middle and by the second convolution, and is an output.
    """
    rng = np.random.default_rng(seed)
    kind = "int8" if signed else "uint8"
    zeros = (-3, 5) if signed else (120, 131)
    body = f"""
        x = DequantizeLinear(q, sx, zx)
        w1 = DequantizeLinear(v1, sw)
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
        r1 = Relu(c1)
        q1 = QuantizeLinear(r1, sy, zy)
        d = DequantizeLinear(q1, sy, zy)
        {middle}
        qm = QuantizeLinear(m, sy, zy)
        dm = DequantizeLinear(qm, sy, zy)
        w2 = DequantizeLinear(v2, sw)
        c2 = Conv<pads = [1, 1, 1, 1]>(dm, w2)
        q2 = QuantizeLinear(c2, sy, zy)
    """
    shape = f"{kind}[1, {CHANNELS}, {SMALL}, {SMALL}]"
    head = f"({shape} q) => ({shape} q1, {shape} q2)"
    weights: dict[str, Array] = {
        name: rng.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8) for name in ("v1", "v2")
    }
    weights |= {
        "sx": np.float32(0.031), "sy": np.float32(0.047), "sw": np.float32(0.0021),
        "zx": np.array(zeros[0], kind), "zy": np.array(zeros[1], kind),
    }  # fmt: skip
    return _imported(body, head, weights)


def floats(batch: int | str = "N", middle: str = "m = Asinh(r1)", size: int = SMALL) -> ir.Model:
    """Two float convolutions with `middle` between them."""
    rng = np.random.default_rng(0)
    body = f"""
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
        r1 = Relu(c1)
        {middle}
        c2 = Conv<pads = [1, 1, 1, 1]>(m, w2)
        y = Relu(c2)
    """
    shape = f"float[{batch}, {CHANNELS}, {size}, {size}]"
    weights: dict[str, Array] = {
        name: rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 12 for name in ("w1", "w2")
    }
    return _imported(body, f"({shape} x) => ({shape} y)", weights)


def _imported(body: str, head: str, weights: dict[str, Array]) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 21]> g {head} {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    return import_model(proto).model


def dense() -> ir.Model:
    """A quantized product whose bias is an Add of its own."""
    rng = np.random.default_rng(0)
    body = """
        x = DequantizeLinear(q, s, z)
        w = DequantizeLinear(v, s)
        p = MatMul(x, w)
        b = Add(p, a)
        r = Relu(b)
        y = QuantizeLinear(r, s, z)
    """
    weights: dict[str, Array] = {
        "v": rng.integers(-127, 128, (32, 16)).astype(np.int8),
        "a": rng.standard_normal(16).astype(np.float32),
        "s": np.float32(0.02),
        "z": np.uint8(128),
    }
    return _imported(body, "(uint8[1, 32] q) => (uint8[1, 16] y)", weights)


def control_flow() -> onnx.ModelProto:
    """A convolution before an If whose branches read its result from outside."""
    rng = np.random.default_rng(0)
    shape = [1, CHANNELS, SMALL, SMALL]
    ports = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xyab"}
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    branches = {
        "then_branch": helper.make_graph([helper.make_node("Asinh", ["c"], ["a"])], "t", [], [ports["a"]]),
        "else_branch": helper.make_graph([helper.make_node("Neg", ["c"], ["b"])], "e", [], [ports["b"]]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("If", ["flag"], ["y"], "choice", **branches),
    ]
    weight = (rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 12).astype(np.float32)
    graph = helper.make_graph(
        nodes, "g", [ports["x"], flag], [ports["y"]], [numpy_helper.from_array(weight, "w")]
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
