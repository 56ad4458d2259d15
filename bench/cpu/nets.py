"""Architectures that the onnx package does not bring, with random weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

# t (expansion), c (channels), n (repeats), s (stride): table 2 of arXiv 1801.04381.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Net:
    """An ONNX graph under construction; weights are random."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        """Add a weight [outputs, inputs, ...] and return its name."""
        name = f"w{len(self.weights)}"
        array = self.rng.standard_normal(shape, dtype=np.float32) * np.sqrt(2 / np.prod(shape[1:])).astype(
            np.float32
        )
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, **attributes: int | list[int]) -> str:
        """Add a node and return its output's name, which is its own too."""
        name = f"v{len(self.nodes)}"
        made = helper.make_node(op, inputs, [name], name)
        made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(made)
        return name

    def conv(
        self, x: str, shape: tuple[int, int, int], stride: int = 1, group: int = 1, relu: bool = True
    ) -> str:
        """Add a convolution of `shape` (inputs, outputs, kernel), with a Relu6 behind it if wanted."""
        inputs, outputs, kernel = shape
        weight = self.weight(outputs, inputs // group, kernel, kernel)
        pads = [kernel // 2] * 4
        y = self.node("Conv", x, weight, strides=[stride, stride], pads=pads, group=group)
        return self.node("Clip", y, "zero", "six") if relu else y

    def model(self, name: str, x: str, channels: int) -> onnx.ModelProto:
        """Return the model that ends in a mean over `x` [1, channels, H, W] and 1000 classes."""
        mean = self.node("Flatten", self.node("GlobalAveragePool", x))
        inputs = [mean, self.weight(1000, channels)]
        self.nodes.append(helper.make_node("Gemm", inputs, ["y"], name="fc", transB=1))
        limits = [numpy_helper.from_array(np.array(v, np.float32), n) for v, n in ((0, "zero"), (6, "six"))]
        ports = [
            helper.make_tensor_value_info(port, onnx.TensorProto.FLOAT, shape)
            for port, shape in (("x", (1, 3, 224, 224)), ("y", (1, 1000)))
        ]
        graph = helper.make_graph(self.nodes, name, ports[:1], ports[1:], [*self.weights, *limits])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def mobilenet_v2() -> onnx.ModelProto:
    """Return MobileNetV2 for 224 x 224 with random weights, normalization folded."""
    net = Net()
    x, channels = net.conv("x", (3, 32, 3), 2), 32
    for expansion, outputs, repeats, stride in _STAGES:
        for i in range(repeats):
            y, wide, step = x, channels * expansion, stride if i == 0 else 1
            y = net.conv(y, (channels, wide, 1)) if expansion > 1 else y
            y = net.conv(y, (wide, wide, 3), step, wide)
            y = net.conv(y, (wide, outputs, 1), relu=False)
            x = net.node("Add", x, y) if step == 1 and channels == outputs else y
            channels = outputs
    return net.model("mobilenet_v2", net.conv(x, (320, 1280, 1)), 1280)


def resnet18() -> onnx.ModelProto:
    """Return ResNet-18 for 224 x 224 (arXiv 1512.03385) with random weights, normalization folded."""
    net = Net()
    x = net.node("Relu", net.conv("x", (3, 64, 7), 2, relu=False))
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for outputs, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first, 1):
            y = net.node("Relu", net.conv(x, (channels, outputs, 3), stride, relu=False))
            y = net.conv(y, (outputs, outputs, 3), relu=False)
            same = stride == 1 and channels == outputs
            short = x if same else net.conv(x, (channels, outputs, 1), stride, relu=False)
            x, channels = net.node("Relu", net.node("Add", y, short)), outputs
    return net.model("resnet18", x, 512)
