"""Small networks trained for few bits with straight-through gradients, and their QONNX graphs.

Weights and activations have power-of-two scales, so that integers and floats agree exactly. One bit is -1
and +1. Data: scikit-learn's bundled digits; `jets` is made by its `make_classification` in the shape of the
hls4ml jet-tagging data (16 features, 5 classes), which is not bundled here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits, make_classification
from sklearn.model_selection import train_test_split
from torch import nn

Floats = npt.NDArray[np.float32]
QONNX = "qonnx.custom_op.general"


@dataclass(frozen=True)
class Spec:
    """A network to train.

    Attributes:
        name: of the design.
        layers: outputs of dense layers; `c8` a 3x3 convolution to 8 channels, `d` a depthwise one, `p` a
            2x2 maximum.
        weight_bits, act_bits, input_bits: 1 is bipolar.
        data: `digits` or `jets`.
        sparsity: share of zero weights in every layer.
        norm: BatchNorm behind every layer but the last; always there with one bit.
        seed: of weights and batches.
    """

    name: str
    layers: tuple[int | str, ...]
    weight_bits: int
    act_bits: int
    input_bits: int
    data: str = "digits"
    sparsity: float = 0.0
    norm: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Data:
    """Training and test samples; [N, features] or [N, 1, 8, 8]."""

    train: Floats
    test: Floats
    train_labels: npt.NDArray[np.int64]
    test_labels: npt.NDArray[np.int64]


def data_of(spec: Spec) -> Data:
    """Return the samples of a spec; digits are 0 to 1, jets within -4 to 4."""
    if spec.data == "jets":
        x, y = make_classification(
            6000, 16, n_informative=12, n_redundant=4, n_classes=5, class_sep=1.5, random_state=7
        )
        x = np.clip(x / x.std(axis=0), -4, 4)
    else:
        x, y = load_digits(return_X_y=True)
        x = (x / 16).reshape(-1, 1, 8, 8) if any(isinstance(la, str) for la in spec.layers) else x / 16
    test = 540 if spec.data == "digits" else 2000
    parts = train_test_split(
        x.astype(np.float32), y.astype(np.int64), test_size=test, random_state=0, stratify=y
    )
    return Data(*parts)


def power(value: float) -> float:
    """Return the power of two next to `value`."""
    return 2.0 ** round(math.log2(max(value, 2.0**-20)))


def _through(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return `q` with the gradient of `x`."""
    return x + (q - x).detach()


class Quantizer(nn.Module):
    """An activation quantizer; the scale settles on the first batches.

    Attributes:
        scale: power of two.
    """

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__()
        self.bits, self.signed, self.scale, self.seen = bits, signed, 1.0, 0.0

    @property
    def ends(self) -> tuple[int, int]:
        """Lowest and highest integer."""
        if self.signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def settle(self, x: torch.Tensor) -> None:
        """Follow the range of a batch."""
        if self.bits == 1:
            return
        reach = float(torch.quantile(x.detach().abs().flatten()[:100_000], 0.995))
        self.seen = reach if not self.seen else 0.9 * self.seen + 0.1 * reach
        self.scale = power(self.seen / self.ends[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return quantized values."""
        if self.bits == 1:
            q = torch.where(x >= 0, 1.0, -1.0)
            return _through(torch.clamp(x, -1, 1), q)
        low, high = self.ends
        held = torch.clamp(x, low * self.scale, high * self.scale)
        return _through(held, torch.clamp(torch.round(x / self.scale), low, high) * self.scale)


class Layer(nn.Module):
    """Weights, [BatchNorm], and what they are quantized to."""

    def __init__(self, spec: Spec, weights: nn.Linear | nn.Conv2d, last: bool) -> None:
        super().__init__()
        self.spec, self.weights = spec, weights
        self.mask: torch.Tensor | None = None
        outputs = weights.weight.shape[0]
        normed = (spec.norm or spec.act_bits == 1) and not last
        kind = nn.BatchNorm2d if isinstance(weights, nn.Conv2d) else nn.BatchNorm1d
        self.norm = kind(outputs) if normed else None

    def quantized(self) -> tuple[torch.Tensor, float]:
        """Return quantized weights and their scale."""
        w = self.weights.weight if self.mask is None else self.weights.weight * self.mask
        if self.spec.weight_bits == 1:
            return _through(torch.clamp(w, -1, 1), torch.where(w >= 0, 1.0, -1.0)), 1.0
        top = 2 ** (self.spec.weight_bits - 1) - 1
        scale = power(float(torch.quantile(w.detach().abs().flatten(), 0.98)) / top)
        return _through(w, torch.clamp(torch.round(w / scale), -top, top) * scale), scale

    def prune(self) -> None:
        """Fix the mask of the smallest weights."""
        size = self.weights.weight.detach().abs()
        self.mask = (size >= torch.quantile(size.flatten(), self.spec.sparsity)).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's sums, normalized."""
        w, bias = self.quantized()[0], self.weights.bias
        if isinstance(self.weights, nn.Conv2d):
            y = nn.functional.conv2d(x, w, bias, padding=1, groups=self.weights.groups)
        else:
            y = nn.functional.linear(x, w, bias)
        return y if self.norm is None else self.norm(y)


@dataclass
class Net:
    """A trained network: layers and quantizers in order, and its test accuracy in percent."""

    spec: Spec
    entry: Quantizer
    layers: list[Layer] = field(default_factory=list)
    quantizers: list[Quantizer] = field(default_factory=list)
    top1: float = 0.0


class Module(nn.Module):
    """The network as torch runs it."""

    def __init__(self, spec: Spec, features: int, classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.entry = Quantizer(spec.input_bits, spec.data == "jets" or spec.input_bits == 1)
        self.layers: list[Layer] = []
        self.quantizers: list[Quantizer] = []
        channels, size = features, 8
        steps = [*spec.layers, classes]
        for index, step in enumerate(steps):
            if step == "p":
                size //= 2
                continue
            if isinstance(step, int) and index and isinstance(steps[index - 1], str):
                channels *= size * size
            made, channels = _weights(step, channels, spec)
            last = index + 1 == len(steps)
            self.layers.append(Layer(spec, made, last))
            if not last:
                self.quantizers.append(Quantizer(spec.act_bits, spec.act_bits == 1))
        self.held = nn.ModuleList([*self.layers, *self.quantizers])

    def forward(self, x: torch.Tensor, settling: bool = False) -> torch.Tensor:
        """Return logits."""
        if settling:
            self.entry.settle(x)
        if self.spec.input_bits == 1:
            x = 2 * x - 0.75
        x, place = self.entry.forward(x), 0
        for step in self.spec.layers:
            if step == "p":
                x = nn.functional.max_pool2d(x, 2)
                continue
            x = x.flatten(1) if isinstance(step, int) else x
            quantizer = self.quantizers[place]
            y = self.layers[place].forward(x)
            y = y if self.spec.act_bits == 1 else torch.relu(y)
            if settling:
                quantizer.settle(y)
            x, place = quantizer.forward(y), place + 1
        return self.layers[place].forward(x.flatten(1))


def _weights(step: int | str, channels: int, spec: Spec) -> tuple[nn.Linear | nn.Conv2d, int]:
    bias = not (spec.norm or spec.act_bits == 1)
    if isinstance(step, int):
        return nn.Linear(channels, step, bias=bias), step
    if step == "d":
        return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias), channels
    outputs = int(step[1:])
    return nn.Conv2d(channels, outputs, 3, padding=1, bias=bias), outputs


def train(spec: Spec, epochs: int = 40) -> Net:
    """Train on the spec's data; one thread, seeded."""
    torch.manual_seed(spec.seed)
    torch.set_num_threads(1)
    data = data_of(spec)
    module = Module(spec, data.train.shape[1], int(data.train_labels.max()) + 1)
    x, y = torch.from_numpy(data.train), torch.from_numpy(data.train_labels)
    optimizer = torch.optim.Adam(module.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        if spec.sparsity and epoch == epochs // 3:
            for layer in module.layers:
                layer.prune()
        order = torch.randperm(len(x))
        for batch in (order[start : start + 64] for start in range(0, len(x), 64)):
            loss = nn.functional.cross_entropy(module(x[batch], settling=epoch < 4), y[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        schedule.step()
    module.eval()
    with torch.no_grad():
        guess = module(torch.from_numpy(data.test)).argmax(1).numpy()
    top1 = 100 * float((guess == data.test_labels).mean())
    return Net(spec, module.entry, module.layers, module.quantizers, top1)


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, npt.NDArray[np.generic]] = {"zero": np.zeros((), np.float32)}

    def array(self, name: str, value: npt.ArrayLike) -> str:
        self.arrays[name] = np.asarray(value, np.float32)
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes: int | str | list[int]) -> str:
        domain = QONNX if op.endswith("Quant") else ""
        node = helper.make_node(op, inputs, [output], name=output, domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return output

    def quant(self, source: str, output: str, bits: int, scale: float, signed: bool, narrow: bool) -> str:
        step = self.array(f"{output}_s", scale)
        if bits == 1:
            return self.add("BipolarQuant", [source, step], output)
        width = self.array(f"{output}_b", bits)
        inputs = [source, step, "zero", width]
        return self.add(
            "Quant", inputs, output, signed=int(signed), narrow=int(narrow), rounding_mode="ROUND"
        )


def qonnx(net: Net) -> onnx.ModelProto:
    """Return the network as QONNX; input `x`, output `y`, batch size free."""
    spec, graph = net.spec, _Graph()
    convolutional = any(isinstance(step, str) for step in spec.layers)
    current = "x"
    if spec.input_bits == 1:
        graph.array("two", 2.0)
        graph.array("shift", -0.75)
        current = graph.add("Add", [graph.add("Mul", ["x", "two"], "x2"), "shift"], "x3")
    current = graph.quant(current, "xq", spec.input_bits, net.entry.scale, net.entry.signed, False)
    scale, place = (1.0 if spec.input_bits == 1 else net.entry.scale), 0
    flat = False
    for index, step in enumerate([*spec.layers, "end"]):
        if step == "p":
            current = graph.add("MaxPool", [current], f"p{index}", kernel_shape=[2, 2], strides=[2, 2])
            continue
        if not flat and convolutional and (step == "end" or isinstance(step, int)):
            current, flat = graph.add("Flatten", [current], f"f{index}"), True
        y = _layer(graph, net.layers[place], current, scale, f"l{place}")
        if step == "end":
            graph.nodes[-1].output[0] = "y"
            break
        quantizer = net.quantizers[place]
        if spec.act_bits > 1:
            y = graph.add("Relu", [y], f"l{place}_r")
        current = graph.quant(y, f"l{place}_q", spec.act_bits, quantizer.scale, quantizer.signed, False)
        scale, place = (1.0 if spec.act_bits == 1 else quantizer.scale), place + 1
    shape = [1, 8, 8] if convolutional else [net.layers[0].weights.weight.shape[1]]
    return _model(graph, shape, int(net.layers[-1].weights.weight.shape[0]))


def _layer(graph: _Graph, layer: Layer, source: str, scale: float, name: str) -> str:
    """Add weights, bias on the grid of the sums, and BatchNorm; return the result's name."""
    quantized, step = layer.quantized()
    raw = graph.array(f"{name}_raw", quantized.detach().numpy())
    bits = layer.spec.weight_bits
    w = graph.quant(raw, f"{name}_w", bits, 1.0 if bits == 1 else step, True, True)
    bias = layer.weights.bias
    extra = []
    if bias is not None:
        grid = scale * step
        extra = [graph.array(f"{name}_b", np.rint(bias.detach().numpy() / grid) * grid)]
    if isinstance(layer.weights, nn.Conv2d):
        group = layer.weights.groups
        result = graph.add("Conv", [source, w, *extra], name, pads=[1, 1, 1, 1], group=group)
    else:
        result = graph.add("Gemm", [source, w, *extra], name, transB=1)
    if layer.norm is None:
        return result
    norm = layer.norm
    assert norm.running_mean is not None, "BatchNorm keeps statistics"
    assert norm.running_var is not None, "BatchNorm keeps statistics"
    parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    names = [graph.array(f"{name}_n{i}", part.detach().numpy()) for i, part in enumerate(parts)]
    return graph.add("BatchNormalization", [result, *names], f"{name}_n")


def _model(graph: _Graph, shape: list[int], classes: int) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *shape])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", classes])]
    arrays = [numpy_helper.from_array(np.asarray(a), name) for name, a in graph.arrays.items()]
    made = helper.make_graph(graph.nodes, "net", inputs, outputs, arrays)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(QONNX, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)
