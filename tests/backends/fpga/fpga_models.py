"""Small quantized models, written here node by node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from pared.compiler.ir.importer import import_model

QONNX = "qonnx.custom_op.general"
Floats = npt.NDArray[np.float32]


def model(
    nodes: Sequence[onnx.NodeProto],
    arrays: dict[str, npt.NDArray[np.generic]],
    x: Sequence[int],
    y: Sequence[int],
) -> ir.Model:
    """Return an imported model from `x` [N, *x] to `y` [N, *y]."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *x])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", *y])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    domains = [("", 21), (QONNX, 1), ("finn.custom_op.general", 1)]
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains]
    return import_model(helper.make_model(graph, opset_imports=opsets, ir_version=10)).model


def quant(source: str, result: str, scale: str, bits: str, **how: int) -> onnx.NodeProto:
    """Return a QONNX quantizer without zero point; `scale` and `bits` are initializers."""
    return helper.make_node("Quant", [source, scale, "zero", bits], [result], domain=QONNX, **how)


def mlp(bits: int = 3, seed: int = 0, sizes: tuple[int, int, int] = (8, 4, 3)) -> ir.Model:
    """Return a QONNX network of two layers with power-of-two scales."""
    rng = np.random.default_rng(seed)
    top = 2 ** (bits - 1)
    first, second = (
        (rng.integers(1 - top, top, shape) * 0.25).astype(np.float32)
        for shape in ((sizes[1], sizes[0]), (sizes[2], sizes[1]))
    )
    arrays = {"w1": first, "w2": second, "s": np.float32(0.25), "zero": np.float32(0), "b": np.float32(bits)}
    nodes = [
        quant("x", "xq", "s", "b", signed=1, narrow=0),
        quant("w1", "w1q", "s", "b", signed=1, narrow=1),
        helper.make_node("Gemm", ["xq", "w1q"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        quant("r", "rq", "s", "b", signed=0, narrow=0),
        quant("w2", "w2q", "s", "b", signed=1, narrow=1),
        helper.make_node("Gemm", ["rq", "w2q"], ["y"], transB=1),
    ]
    return model(nodes, arrays, [sizes[0]], [sizes[2]])


def qdq_conv(rng: np.random.Generator, relu: bool, stride: int, pads: int, group: int) -> ir.Model:
    """Return a QDQ convolution, per channel, with zero points and an int32 bias, and a maximum."""
    channels, outputs, size = 4, 4, 6
    w = rng.integers(-127, 128, (outputs, channels // group, 3, 3), dtype=np.int8)
    w_scale = rng.uniform(0.001, 0.02, outputs).astype(np.float32)
    x_scale, y_scale = np.float32(rng.uniform(0.01, 0.1)), np.float32(rng.uniform(0.05, 0.3))
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "xs": x_scale,
        "xz": np.uint8(rng.integers(0, 256)), "ys": y_scale, "yz": np.uint8(rng.integers(0, 256)),
        "w": w, "ws": w_scale, "b": rng.integers(-500, 500, outputs, dtype=np.int32), "bs": w_scale * x_scale,
    }  # fmt: skip
    out = (size + 2 * pads - 3) // stride + 1
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], axis=0),
        helper.make_node(
            "Conv", ["xd", "wd", "bd"], ["c"], strides=[stride] * 2, pads=[pads] * 4, group=group
        ),
        *([helper.make_node("Relu", ["c"], ["r"])] if relu else []),
        helper.make_node("QuantizeLinear", ["r" if relu else "c", "ys", "yz"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "ys", "yz"], ["cd"]),
        helper.make_node("MaxPool", ["cd"], ["y"], kernel_shape=[2, 2]),
    ]
    return model(nodes, arrays, [channels, size, size], [outputs, out - 1, out - 1])


def binary(rng: np.random.Generator, sizes: tuple[int, int, int] = (9, 6, 3)) -> ir.Model:
    """Return a layer of +1/-1 weights and activations behind a BatchNorm, and a second layer."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "w1": rng.normal(size=sizes[:2]).astype(np.float32), "one": np.float32(1),
        "w2": rng.normal(size=sizes[1:]).astype(np.float32),
        "gamma": rng.normal(size=sizes[1]).astype(np.float32),
        "beta": rng.normal(size=sizes[1]).astype(np.float32),
        "mean": rng.normal(size=sizes[1]).astype(np.float32),
        "var": rng.uniform(0.5, 2, sizes[1]).astype(np.float32),
    }  # fmt: skip
    nodes = [
        *(
            helper.make_node("BipolarQuant", [a, "one"], [b], domain=QONNX)
            for a, b in (("x", "xq"), ("w1", "w1q"), ("w2", "w2q"))
        ),
        helper.make_node("MatMul", ["xq", "w1q"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("BipolarQuant", ["n", "one"], ["nq"], domain=QONNX),
        helper.make_node("MatMul", ["nq", "w2q"], ["y"]),
    ]
    return model(nodes, arrays, [sizes[0]], [sizes[2]])


def residual(ratio: float = 2.0, zero: int = 100) -> ir.Model:
    """Return the quantized sum of two quantized inputs' halves, whose scales have a ratio."""
    scale = np.float32(0.125)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "s": scale, "z": np.uint8(zero), "t": np.float32(scale * ratio), "u": np.uint8(7),
        "v": np.float32(0.5), "o": np.uint8(3),
    }  # fmt: skip
    pairs = [("x", "s", "z", "a"), ("x", "t", "u", "b"), ("sum", "v", "o", "y")]
    nodes = []
    for source, s, z, result in pairs:
        if source == "sum":
            nodes.append(helper.make_node("Add", ["a", "b"], ["sum"]))
        nodes.append(helper.make_node("QuantizeLinear", [source, s, z], [f"{result}q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{result}q", s, z], [result]))
    return model(nodes, arrays, [5], [5])


def joined(ratio: float = 1.6, axis: int = 1, zero: int = 7) -> ir.Model:
    """Return a quantized joint of one input at two scales, [N, 2, 3] each,."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "s": np.float32(0.125), "z": np.uint8(100), "t": np.float32(0.125 * ratio), "u": np.uint8(zero),
        "v": np.float32(0.3), "o": np.uint8(90),
    }  # fmt: skip
    pairs = [("x", "s", "z", "a"), ("x", "t", "u", "b"), ("both", "v", "o", "y")]
    nodes = []
    for source, scale, offset, result in pairs:
        if source == "both":
            nodes.append(helper.make_node("Concat", ["b", "a", "b"], ["both"], axis=axis))
        nodes.append(helper.make_node("QuantizeLinear", [source, scale, offset], [f"{result}q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{result}q", scale, offset], [result]))
    return model(nodes, arrays, [2, 3], [6, 3] if axis == 1 else [2, 9])


def curve(rng: np.random.Generator) -> ir.Model:
    """Return a layer of 8 bits with float scales behind a sigmoid of 8 bits."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "xs": np.float32(0.031), "z": np.uint8(128), "w": rng.integers(-127, 128, (3, 6), dtype=np.int8),
        "ws": rng.uniform(0.002, 0.01, 3).astype(np.float32), "ys": np.float32(1 / 255), "yz": np.uint8(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
        helper.make_node("Gemm", ["xd", "wd"], ["h"], transB=1),
        helper.make_node("Sigmoid", ["h"], ["g"]),
        helper.make_node("QuantizeLinear", ["g", "ys", "yz"], ["gq"]),
        helper.make_node("DequantizeLinear", ["gq", "ys", "yz"], ["y"]),
    ]
    return model(nodes, arrays, [6], [3])
