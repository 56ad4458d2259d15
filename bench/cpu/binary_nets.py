"""ResNet-18 with binary 3x3 layers as a QONNX model, random weights.

    python -m pared.bench.cpu.binary_nets {shortcuts|plain} FILE

The first convolution, the 1x1 convolutions of the shortcuts and the last layer are int8. `shortcuts`: a
real-valued stream with a shortcut around every binary layer (Bi-Real Net, arXiv 1808.00278); `plain`: none,
every layer reads and writes bits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

QONNX = "qonnx.custom_op.general"
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
Array = npt.NDArray[np.float32]


class BinaryNet:
    """A QONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, array: Array | float) -> str:
        """Add a constant and return its name."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def random(self, *shape: int) -> Array:
        """Return normal random numbers."""
        return self.rng.standard_normal(shape, dtype=np.float32)

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: int | str | list[int]) -> str:
        """Add a node and return its output's name."""
        name = f"v{len(self.nodes)}"
        made = helper.make_node(op, inputs, [name], name, domain=domain)
        made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(made)
        return name

    def sign(self, x: str, scale: Array | float = 1.0) -> str:
        """Quantize to -scale and +scale."""
        return self.node("BipolarQuant", x, self.constant(scale), domain=QONNX)

    def int8(self, x: str, scale: Array | float) -> str:
        """Quantize to signed 8 bits."""
        parameters = [self.constant(value) for value in (scale, 0.0, 8.0)]
        return self.node("Quant", x, *parameters, domain=QONNX, signed=1, narrow=0, rounding_mode="ROUND")

    def int8_weight(self, step: float, *shape: int) -> tuple[str, str]:
        """Add weights [outputs, inputs, ...] of 8 bits with a scale per output, and a bias.

        The bias is a multiple of the data's `step` times the weights' scale, as integer accelerators have it.
        """
        spread = np.sqrt(np.float32(2 / np.prod(shape[1:])))
        scale = (
            self.rng.uniform(0.9, 1.1, (shape[0], *[1] * (len(shape) - 1))).astype(np.float32) * spread / 32
        )
        unit = scale.reshape(-1) * np.float32(step)
        bias = np.rint(self.random(shape[0]) * np.float32(0.1) / unit) * unit
        return self.int8(self.constant(self.random(*shape) * spread), scale), self.constant(bias)

    def normalize(self, x: str, channels: int) -> str:
        """Add a BatchNorm with random statistics."""
        rng = self.rng
        arrays = (
            rng.uniform(0.5, 1.5, channels), rng.normal(0, 0.3, channels), rng.normal(0, 0.3, channels),
            rng.uniform(0.5, 1.5, channels),
        )  # fmt: skip
        return self.node(
            "BatchNormalization", x, *[self.constant(array.astype(np.float32)) for array in arrays]
        )

    def binary_conv(self, x: str, inputs: int, outputs: int, stride: int) -> str:
        """Add a 3x3 convolution of signs by signs with a scale per output channel, and its BatchNorm."""
        scale = self.rng.uniform(0.5, 1.5, (outputs, 1, 1, 1)).astype(np.float32)
        weight = self.sign(
            self.constant(self.random(outputs, inputs, 3, 3)), scale / np.float32(3 * inputs**0.5)
        )
        y = self.node("Conv", self.sign(x), weight, strides=[stride, stride], pads=[1, 1, 1, 1])
        return self.normalize(y, outputs)

    def int8_conv(self, x: str, shape: tuple[int, int, int], stride: int, step: float) -> str:
        """Add an int8 convolution of `shape` (inputs, outputs, kernel), its input and output quantized."""
        inputs, outputs, kernel = shape
        weight = self.int8_weight(step, outputs, inputs, kernel, kernel)
        strides, pads = [stride, stride], [kernel // 2] * 4
        return self.int8(self.node("Conv", self.int8(x, step), *weight, strides=strides, pads=pads), 1 / 24)

    def shorten(self, x: str, inputs: int, outputs: int, stride: int) -> str:
        """Return what is added around a layer: `x`, or its mean over 2x2 pixels through an int8 layer."""
        if stride == 1 and inputs == outputs:
            return x
        mean = self.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        return self.int8_conv(mean, (inputs, outputs, 1), 1, 1 / 16)

    def model(self, name: str) -> onnx.ModelProto:
        """Return the model from x [1, 3, 224, 224] to y [1, 1000]."""
        ports = [
            helper.make_tensor_value_info(port, onnx.TensorProto.FLOAT, shape)
            for port, shape in (("x", (1, 3, 224, 224)), ("y", (1, 1000)))
        ]
        graph = helper.make_graph(self.nodes, name, ports[:1], ports[1:], self.constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(QONNX, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def binary_resnet18(shortcuts: bool) -> onnx.ModelProto:
    """Return the binarized ResNet-18."""
    net = BinaryNet()
    x = net.int8_conv("x", (3, 64, 7), 2, 1 / 32)
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = net.int8(x, 1 / 24)
    inputs = 64
    for outputs, first in STAGES:
        for stride in (first, 1, 1, 1):
            y = net.binary_conv(x, inputs, outputs, stride)
            x = net.node("Add", y, net.shorten(x, inputs, outputs, stride)) if shortcuts else y
            inputs = outputs
    mean = net.node("Flatten", net.node("GlobalAveragePool", x))
    last = [net.int8(mean, 1 / 32), *net.int8_weight(1 / 32, 1000, 512)]
    net.nodes.append(helper.make_node("Gemm", last, ["y"], name="fc", transB=1))
    return net.model("binary_resnet18")


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(binary_resnet18(sys.argv[1] == "shortcuts").SerializeToString())
