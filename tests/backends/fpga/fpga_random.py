"""Random small quantized models: quantizers, chains of float operators and windows that the front reads."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from fpga_models import QONNX, model
from onnx import NodeProto, helper

Array = npt.NDArray[np.generic]

_TYPES = {"uint8": np.uint8, "int8": np.int8, "uint4": ml_dtypes.uint4, "int4": ml_dtypes.int4}
_CHAIN = (
    "norm",
    "Relu",
    "negative",
    "scale",
    "shift",
    "from",
    "quotient",
    "Clip",
    "LeakyRelu",
    "Neg",
    "curve",
)


class Random:
    """Builds a model from a seed; `exact` ones have power-of-two scales only."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.arrays: dict[str, Array] = {}
        self.exact = bool(self.rng.random() < 0.5)
        self.rank = int(self.rng.choice([0, 1, 2], p=[0.3, 0.25, 0.45]))
        self.channels = int(self.rng.choice([2, 4])) if self.rank else int(self.rng.integers(3, 10))
        self.size = [int(n) for n in self.rng.integers(4, 7, self.rank)]

    def model(self) -> tuple[ir.Model, Array]:
        """Return the model and 40 samples."""
        shape = [self.channels, *self.size]
        x = self.quantized("x")
        for _ in range(self.rng.integers(1, 4)):
            x = self.layer(x)
        self.nodes.append(helper.make_node("Identity", [x], ["y"]))
        data = self.rng.normal(0, float(self.rng.choice([0.5, 2, 6])), (40, *shape)).astype(np.float32)
        data = np.round(data * 16) / 16 if self.exact else data
        return model(self.nodes, self.arrays, shape, [self.channels, *self.size]), data

    def const(self, value: npt.ArrayLike) -> str:
        """Return the name of a new initializer."""
        name = f"c{len(self.arrays)}"
        self.arrays[name] = np.asarray(value)
        return name

    def floats(self, value: npt.ArrayLike) -> str:
        """Return the name of a new float32 initializer."""
        return self.const(np.asarray(value, np.float32))

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        """Return what a new node makes."""
        name = f"v{len(self.nodes)}"
        node = helper.make_node(op, list(inputs), [name], domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def chance(self, share: float = 0.5) -> bool:
        """Toss a coin."""
        return bool(self.rng.random() < share)

    def scale(self, low: int, high: int) -> np.float32:
        """Return a scale of 2^low to 2^high."""
        power = self.rng.integers(low, high) if self.exact else self.rng.uniform(low, high)
        return np.float32(2.0**power)

    def quantized(self, x: str) -> str:
        """Quantize activations in some way."""
        kind = self.rng.choice(["qdq", "quant", "bipolar"], p=[0.45, 0.45, 0.1])
        if kind == "bipolar":
            return self.add("BipolarQuant", x, self.const(self.scale(-2, 1)), domain=QONNX)
        if kind == "qdq":
            dtype = _TYPES[str(self.rng.choice(list(_TYPES)))]
            ends = ml_dtypes.iinfo(dtype)
            zero = int(self.rng.integers(ends.min, int(ends.max) + 1)) if self.chance(0.6) else 0
            how = self.const(self.scale(-4, 1)), self.const(np.array(zero).astype(dtype))
            return self.add("DequantizeLinear", self.add("QuantizeLinear", x, *how), *how)
        zero = float(self.rng.integers(-3, 4)) if self.chance(0.3) else 0.0
        return self.add(
            "Quant", x, self.const(self.scale(-4, 1)), self.floats(zero),
            self.floats(self.rng.integers(2, 7)), domain=QONNX,
            signed=int(self.chance()), narrow=int(self.chance()),
            rounding_mode=str(self.rng.choice(["ROUND", "FLOOR", "CEIL", "ROUND_TO_ZERO"])),
        )  # fmt: skip

    def weights(self, shape: list[int], axis: int) -> str:
        """Return quantized weights, per tensor or per output."""
        outputs, each = shape[axis], self.chance()
        scale = np.array([self.scale(-5, -1) for _ in range(outputs)]) if each else self.scale(-5, -1)
        wide = [outputs if i == axis else 1 for i in range(len(shape))] if each else []
        kind = self.rng.choice(["qdq", "quant", "bipolar"])
        if kind == "qdq":
            w = (self.rng.integers(-128, 128, shape) // int(self.rng.choice([1, 32]))).astype(np.int8)
            inputs = [self.const(w), self.floats(scale)]
            if self.chance(0.3):
                inputs.append(self.const(self.rng.integers(-3, 4, outputs if each else ()).astype(np.int8)))
            return self.add("DequantizeLinear", *inputs, **({"axis": axis} if each else {}))
        inputs = [self.floats(self.rng.normal(0, 0.5, shape)), self.floats(np.reshape(scale, wide))]
        if kind == "bipolar":
            return self.add("BipolarQuant", *inputs, domain=QONNX)
        bits = self.floats(self.rng.integers(2, 9))
        narrow = int(self.chance())
        return self.add("Quant", *inputs, self.floats(0), bits, domain=QONNX, signed=1, narrow=narrow)

    def layer(self, x: str) -> str:
        """Return a layer's result, mostly quantized again."""
        kind = (
            str(self.rng.choice(["conv", "conv", "max", "average", "global", "sum"]))
            if self.rank
            else "dense"
        )
        if kind == "max" and self.chance(0.7):
            return self.pool(x, "MaxPool")
        made = {
            "dense": self.dense, "conv": self.conv, "max": lambda x: self.pool(x, "MaxPool"),
            "average": lambda x: self.pool(x, "AveragePool"), "global": self.everywhere, "sum": self.sum,
        }[kind](x)  # fmt: skip
        return self.quantized(self.chain(made))

    def bias(self, outputs: int) -> list[str]:
        """Return no bias or one."""
        return [self.floats(np.round(self.rng.normal(0, 4, outputs)) / 8)] if self.chance() else []

    def dense(self, x: str) -> str:
        """Return a Gemm or MatMul."""
        inputs, self.channels = self.channels, int(self.rng.integers(2, 6))
        if self.chance():
            return self.add("MatMul", x, self.weights([inputs, self.channels], 1))
        across = int(self.chance())
        shape = [self.channels, inputs] if across else [inputs, self.channels]
        w = self.weights(shape, 0 if across else 1)
        return self.add("Gemm", x, w, *self.bias(self.channels), transB=across)

    def conv(self, x: str) -> str:
        """Return a convolution of any groups, strides, dilations and uneven padding that fits."""
        group = int(self.rng.choice([1, 2, self.channels])) if self.channels % 2 == 0 else 1
        outputs = group * int(self.rng.integers(1, 3))
        kernel, strides, dilations = (
            [int(n) for n in self.rng.integers(1, top, self.rank)] for top in (4, 3, 3)
        )
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        least = [max(0, r - n) for r, n in zip(reach, self.size, strict=True)]
        pads = [n + int(self.rng.integers(0, 3)) for n in [*least, *[0] * self.rank]]
        w = self.weights([outputs, self.channels // group, *kernel], 0)
        self.channels = outputs
        self.resize(reach, strides, pads)
        return self.add(
            "Conv", x, w, *self.bias(outputs), group=group, strides=strides, dilations=dilations, pads=pads,
            kernel_shape=kernel,
        )  # fmt: skip

    def resize(self, reach: list[int], strides: list[int], pads: list[int]) -> None:
        """Keep the spatial size."""
        for i, (r, s) in enumerate(zip(reach, strides, strict=True)):
            self.size[i] = (self.size[i] + pads[i] + pads[i + self.rank] - r) // s + 1

    def pool(self, x: str, op: str) -> str:
        """Return a pooling."""
        kernel = [int(self.rng.integers(1, min(n, 3) + 1)) for n in self.size]
        strides = [int(n) for n in self.rng.integers(1, 3, self.rank)]
        padded = op == "MaxPool" and self.chance()
        pads = [int(self.rng.integers(0, k)) if padded else 0 for k in kernel * 2]
        self.resize(kernel, strides, pads)
        return self.add(op, x, kernel_shape=kernel, strides=strides, pads=pads)

    def everywhere(self, x: str) -> str:
        """Return the mean over all places."""
        self.size = [1] * self.rank
        return self.add("GlobalAveragePool", x)

    def sum(self, x: str) -> str:
        """Return the sum of a tensor and its quantized positive part, or twice the tensor."""
        return self.add("Add", x, self.quantized(self.add("Relu", x)) if self.chance() else x)

    def chain(self, x: str) -> str:
        """Return up to two float operators behind a layer."""
        for kind in self.rng.choice(_CHAIN, self.rng.integers(0, 3)):
            x = self.step(x, str(kind))
        return x

    def step(self, x: str, kind: str) -> str:
        """Return one float operator."""
        shape = [1, self.channels, *[1] * self.rank]
        factor = 2.0 ** (self.rng.integers(-1, 2, shape) if self.exact else self.rng.uniform(-1, 1, shape))
        factor *= self.rng.choice([-1, 1], shape)
        shift = np.round(self.rng.normal(0, 8, shape)) / 8
        if kind == "norm":
            parts = [self.floats(self.rng.normal(size=self.channels)) for _ in range(3)]
            spread = self.floats(self.rng.uniform(0.5, 2, self.channels))
            return self.add("BatchNormalization", x, *parts, spread)
        if kind == "curve":
            return self.add(str(self.rng.choice(["Sigmoid", "Tanh", "HardSigmoid", "Elu"])), x)
        if kind == "LeakyRelu":
            return self.add("LeakyRelu", x, alpha=float(self.rng.choice([0.125, 0.1])))
        if kind == "Clip":
            return self.add("Clip", x, self.floats(-0.75), self.floats(1.5))
        if kind in ("Relu", "Neg"):
            return self.add(kind, x)
        op, first, second = {
            "negative": ("Mul", x, self.floats(-np.abs(factor))), "scale": ("Mul", self.floats(factor), x),
            "shift": ("Add", x, self.floats(shift)), "from": ("Sub", self.floats(shift), x),
            "quotient": ("Div", x, self.floats(factor)),
        }[kind]  # fmt: skip
        return self.add(op, first, second)
