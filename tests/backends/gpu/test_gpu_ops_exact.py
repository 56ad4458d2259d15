"""Quantized layers of random shapes: the emulated device gives the reference's integers.

Many layers are one model, since what takes time is starting TVM's compiler.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm", reason="apache-tvm is not installed")

from gpu_models import emulated

from pared.backends.reference import evaluate
from pared.compiler.ir.importer import import_model

Array = npt.NDArray[np.generic]
Attributes = dict[str, int | float | list[int]]


class Layers:
    """Collects quantized layers beside each other; random scales, zero points and data."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = onnx.GraphProto(name="g")
        self.feeds: dict[str, Array] = {}
        self._count = 0

    def name(self, base: str) -> str:
        """Return a new name."""
        self._count += 1
        return f"{base}{self._count}"

    def constant(self, array: npt.ArrayLike) -> str:
        """Add an initializer."""
        name = self.name("k")
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        """Add a node with one output."""
        name = self.name("v")
        self.graph.node.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def codes(self, shape: tuple[int, ...], kind: str) -> Array:
        """Return codes over the whole range of a type."""
        info = np.iinfo(kind)
        return self.rng.integers(info.min, info.max + 1, shape).astype(kind)

    def data(self, shape: tuple[int, ...]) -> str:
        """Add an input of 8 bits, dequantized."""
        kind, name = str(self.rng.choice(["int8", "uint8"])), self.name("x")
        self.feeds[name] = self.codes(shape, kind)
        element = TensorProto.INT8 if kind == "int8" else TensorProto.UINT8
        self.graph.input.append(helper.make_tensor_value_info(name, element, shape))
        scale, zero = np.float32(self.rng.uniform(0.01, 0.1)), self.codes((), kind)
        return self.node("DequantizeLinear", [name, self.constant(scale), self.constant(zero)])

    def weights(self, shape: tuple[int, ...], axis: int, zeros: str) -> str:
        """Add weights with a scale per channel; `zeros`: `none`, `one` for all, or one for `each` channel."""
        kind, channels = ("int8", shape[axis]) if zeros == "none" else ("uint8", shape[axis])
        scale = self.rng.uniform(0.001, 0.01, channels).astype(np.float32)
        given = [self.constant(self.codes(shape, kind)), self.constant(scale)]
        if zeros != "none":
            zero = self.codes((channels,), kind)
            given.append(self.constant(zero if zeros == "each" else np.full_like(zero, 128)))
        return self.node("DequantizeLinear", given, axis=axis)

    def quantized(self, value: str, scale: float, shape: int) -> None:
        """Add a quantizer and make its result an output."""
        kind = str(self.rng.choice(["int8", "uint8"]))
        name = self.node(
            "QuantizeLinear", [value, self.constant(np.float32(scale)), self.constant(self.codes((), kind))]
        )
        element = TensorProto.INT8 if kind == "int8" else TensorProto.UINT8
        axes = [f"{name}_{axis}" for axis in range(shape)]
        self.graph.output.append(helper.make_tensor_value_info(name, element, axes))

    def model(self) -> ir.Model:
        """Return what was collected."""
        opsets = [helper.make_opsetid("", 21)]
        return import_model(helper.make_model(self.graph, opset_imports=opsets, ir_version=10)).model

    def check(self) -> None:
        """Compare every code."""
        model = self.model()
        want: Mapping[str, Array] = evaluate(model, self.feeds)
        got = emulated(model).run(self.feeds)
        unlike = {name: int((got[name] != array).sum()) for name, array in want.items()}
        assert not any(unlike.values()), unlike
        assert any(np.unique(array).size > 5 for array in want.values())


def _convolution(layers: Layers, *, transposed: bool) -> None:
    """Add a convolution of random kernel, strides, dilations, pads and groups."""
    rng = layers.rng
    rank = int(rng.integers(1, 3))
    group = int(rng.choice([1, 1, 2, 3]))
    channels = group * int(rng.choice([1, 2, 5]))
    depth, outputs = channels // group, int(rng.choice([1, 3, 4]))
    kernel = [int(k) for k in rng.integers(1, 4, rank)]
    attributes: Attributes = {
        "strides": [int(s) for s in rng.integers(1, 4, rank)],
        "dilations": [int(d) for d in rng.integers(1, 3, rank)],
        "pads": [int(p) for p in rng.integers(0, 2 if transposed else 3, 2 * rank)],
        "group": group,
    }
    x = layers.data((int(rng.integers(1, 3)), channels, *(int(n) for n in rng.integers(7, 11, rank))))
    zeros = str(rng.choice(["none", "one", "each"]))
    if transposed:
        w = layers.weights((channels, outputs, *kernel), 1, zeros) if group == 1 else None
        if w is None:
            codes = layers.constant(layers.codes((channels, outputs, *kernel), "int8"))
            w = layers.node("DequantizeLinear", [codes, layers.constant(np.float32(0.004))])
    else:
        w = layers.weights((outputs * group, depth, *kernel), 0, zeros)
    y = layers.node("ConvTranspose" if transposed else "Conv", [x, w], **attributes)
    layers.quantized(layers.node("Relu", [y]) if rng.random() < 0.5 else y, rng.uniform(0.02, 0.2), rank + 2)


@pytest.mark.parametrize("seed", range(3))
def test_convolutions_are_exact(seed: int) -> None:
    layers = Layers(seed)
    for _ in range(8):
        _convolution(layers, transposed=False)
    layers.check()


@pytest.mark.parametrize("seed", range(2))
def test_transposed_convolutions_are_exact(seed: int) -> None:
    layers = Layers(seed + 10)
    for _ in range(6):
        _convolution(layers, transposed=True)
    layers.check()


def test_products_are_exact() -> None:
    """By matrices with any zero points, and of two computed operands with any zero points."""
    layers = Layers(20)
    rng = layers.rng
    for zeros in ("none", "one", "each", "each"):
        rows, depth, columns = (int(n) for n in rng.integers(1, 70, 3))
        turned = int(rng.integers(0, 2))
        w = layers.weights((columns, depth) if turned else (depth, columns), 0 if turned else 1, zeros)
        layers.quantized(layers.node("Gemm", [layers.data((rows, depth)), w], transB=turned), 0.2, 2)
    for lead in ((), (2,), (2, 3), (1, 4)):
        rows, depth, columns = (int(n) for n in rng.integers(1, 40, 3))
        a, b = layers.data((*lead, rows, depth)), layers.data((*lead, depth, columns))
        layers.quantized(layers.node("MatMul", [a, b]), 0.3, len(lead) + 2)
    layers.check()


def test_pools_sums_joins_and_products_of_tensors_are_exact() -> None:
    """Floats between a dequantizer and a quantizer round as the model says, step by step."""
    layers = Layers(30)
    for op in ("Add", "Mul", "Sub"):
        a, b = layers.data((1, 5, 9, 8)), layers.data((1, 5, 9, 8))
        layers.quantized(layers.node(op, [a, b]), 0.05, 4)
    joined = [layers.data((1, 3, 6, 5)), layers.data((1, 4, 6, 5))]
    layers.quantized(layers.node("Concat", joined, axis=1), 0.04, 4)
    pooled = layers.node("MaxPool", [layers.data((1, 3, 9, 9))], kernel_shape=[3, 2], pads=[1, 0, 1, 1])
    layers.quantized(pooled, 0.05, 4)
    layers.check()


def test_averages_are_exact() -> None:
    """Quantized at the scale they come at: many means lie half way, and sums in float32 would move some."""
    layers = Layers(31)
    scale, zero = layers.constant(np.float32(0.0371)), layers.constant(np.uint8(117))
    layers.feeds["x"] = layers.codes((8, 64, 8, 8), "uint8")
    layers.graph.input.append(helper.make_tensor_value_info("x", TensorProto.UINT8, (8, 64, 8, 8)))
    wide = layers.node("DequantizeLinear", ["x", scale, zero])
    layers.quantized(layers.node("GlobalAveragePool", [wide]), 0.0371, 4)
    layers.quantized(layers.node("AveragePool", [wide], kernel_shape=[4, 4], strides=[2, 2]), 0.0371, 4)
    layers.check()


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "HardSwish", "Gelu", "Exp", "Softplus"])
def test_functions_between_quantizers_are_exact(op: str) -> None:
    """As a table of all codes: a chip's own exponential would miss some by a step."""
    layers = Layers(40)
    for _ in range(2):
        layers.quantized(layers.node(op, [layers.data((256, 3))]), 1 / 255, 2)
    layers.check()


def test_a_function_of_two_uses_is_a_table() -> None:
    """`x * sigmoid(x)`: one value, read twice."""
    layers = Layers(50)
    x = layers.data((1, 4, 8, 8))
    layers.quantized(layers.node("Mul", [x, layers.node("Sigmoid", [x])]), 0.02, 4)
    layers.check()


def test_a_function_of_two_values_is_no_table() -> None:
    """Near miss: two unlike inputs; the sigmoid is then computed, and may be a step off."""
    layers = Layers(60)
    x, y = layers.data((1, 200)), layers.data((1, 200))
    layers.quantized(layers.node("Mul", [x, layers.node("Sigmoid", [y])]), 0.02, 2)
    model = layers.model()
    (got,), (want,) = emulated(model).run(layers.feeds).values(), evaluate(model, layers.feeds).values()
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1
