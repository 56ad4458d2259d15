"""ResNet-50, MobileNetV2 and a BERT-base-like encoder as one list of steps, with weights from a seed.

ONNX graphs (`onnx_nets.py`) and torch modules (`torch_nets.py`) are made of the same list, so both have the
same weights. Convolutions have their BatchNorm folded in, as it is in any runtime. Sources: arXiv 1512.03385
(the stride in the 3x3 convolution, as torchvision has it), 1801.04381, 1810.04805 (post-norm, no embeddings).

Weights of big layers repeat every 17 outputs, biases do not: neighbours within a tile of a kernel stay
different, and a compiled network with hundreds of megabytes of weights packs into a few (`build.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Kind = TypeVar("Kind", bound=np.generic)
Option = int | float | str | tuple[int, ...]

PERIOD = 17
# Below this, weights do not repeat.
_SMALL = 1 << 14


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        op: conv, dense, add, relu, relu6, maxpool, mean, norm, gelu or attention.
        inputs: names of what it reads.
        output: name of what it makes.
        weights: names of its constants.
        options: sizes and the like.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    weights: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass
class Net:
    """A network with one input and one output.

    Attributes:
        name: for messages.
        shape: of the input, without the batch.
        classes: last size of the output.
        steps: in running order.
        weights: float32, by name.
        macs: multiply-accumulates of one sample.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    seed: int = 0
    steps: list[Step] = field(default_factory=list)
    weights: dict[str, Floats] = field(default_factory=dict)
    macs: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    @property
    def output(self) -> str:
        """Name of the last value."""
        return self.steps[-1].output

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(array.size for array in self.weights.values())

    def sample(self, batch: int, seed: int = 1) -> Floats:
        """Return random input; row n is the same in every batch."""
        rows = [np.random.default_rng((seed, row)).standard_normal(self.shape) for row in range(batch)]
        return np.stack(rows).astype(np.float32)

    def _weight(self, shape: tuple[int, ...], scale: float, around: float = 0.0, axis: int = 0) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = repeating(self._rng, shape, scale, around, axis)
        return name

    def _append(self, op: str, inputs: tuple[str, ...], weights: tuple[str, ...], **options: Option) -> str:
        self.steps.append(Step(op, inputs, f"v{len(self.steps)}", weights, options))
        return self.steps[-1].output

    def conv(
        self, x: str, inner: int, outer: int, size: int, side: int, *, stride: int = 1, groups: int = 1,
        gain: float = 1.0, act: str = "",
    ) -> str:  # fmt: skip
        """Append a square convolution with bias on images of `side` pixels, and what follows it."""
        each = inner // groups * size * size
        names = (self._weight((outer, inner // groups, size, size), gain * (2 / each) ** 0.5),
                 self._weight((outer,), 0.1))  # fmt: skip
        self.macs += each * outer * (-(-side // stride)) ** 2
        y = self._append("conv", (x,), names, stride=stride, pad=size // 2, groups=groups)
        return self.op(act, y) if act else y

    def dense(self, x: str, inner: int, outer: int, positions: int = 1) -> str:
        """Append a product by a matrix [inner, outer] with bias."""
        names = (self._weight((inner, outer), inner**-0.5, axis=1), self._weight((outer,), 0.1))
        self.macs += positions * inner * outer
        return self._append("dense", (x,), names, flat=int(positions == 1))

    def norm(self, x: str, width: int) -> str:
        """Append a LayerNormalization over the last axis."""
        return self._append("norm", (x,), (self._weight((width,), 0.1, 1.0), self._weight((width,), 0.1)))

    def op(self, op: str, *inputs: str, **options: Option) -> str:
        """Append an operation without weights."""
        return self._append(op, inputs, (), **options)


def repeating(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float, around: float = 0.0, axis: int = 0
) -> Floats:
    """Return random numbers; of big arrays, what makes an output (along `axis`) repeats every 17 outputs."""
    repeat = prod(shape) > _SMALL and shape[axis] > PERIOD
    few = tuple(PERIOD if repeat and at == axis else n for at, n in enumerate(shape))
    return repeated((rng.standard_normal(few) * scale + around).astype(np.float32), shape[axis], axis)


def repeated(block: npt.NDArray[Kind], size: int, axis: int) -> npt.NDArray[Kind]:
    """Return an array of `size` along an axis that repeats a smaller one."""
    return np.ascontiguousarray(block.take(np.arange(size) % block.shape[axis], axis))


def resnet50(size: int = 224, width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> Net:
    """Return ResNet-50: 4.1 billion multiply-accumulates, 25.5 million weights."""
    net = Net("ResNet-50", (3, size, size), 1000)
    x = net.conv("x", 3, width, 7, size, stride=2, act="relu")
    x, side, inner = net.op("maxpool", x, size=3, stride=2, pad=1), size // 4, width
    for stage, count in enumerate(blocks):
        middle = width << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            y = net.conv(x, inner, middle, 1, side, act="relu")
            y = net.conv(y, middle, middle, 3, side, stride=stride, act="relu")
            y = net.conv(y, middle, 4 * middle, 1, side // stride, gain=0.3)
            skip = x if block else net.conv(x, inner, 4 * middle, 1, side, stride=stride, gain=0.7)
            x = net.op("relu", net.op("add", y, skip))
            side, inner = side // stride, 4 * middle
    net.dense(net.op("mean", x), inner, net.classes)
    return net


# Expansion, channels, blocks, stride of the first one: table 2 of arXiv 1801.04381.
_MOBILE = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def mobilenet_v2(size: int = 224, last: int = 1280, rows: tuple[tuple[int, ...], ...] = _MOBILE) -> Net:
    """Return MobileNetV2: 300 million multiply-accumulates, 3.5 million weights."""
    net = Net("MobileNetV2", (3, size, size), 1000)
    x, side, inner = net.conv("x", 3, 32, 3, size, stride=2, act="relu6"), size // 2, 32
    for factor, outer, count, first in rows:
        for block in range(count):
            stride, wide = (1 if block else first), factor * inner
            y = net.conv(x, inner, wide, 1, side, act="relu6") if factor > 1 else x
            y = net.conv(y, wide, wide, 3, side, stride=stride, groups=wide, act="relu6")
            y = net.conv(y, wide, outer, 1, side // stride, gain=0.5)
            x = net.op("add", x, y) if stride == 1 and inner == outer else y
            side, inner = side // stride, outer
    x = net.conv(x, inner, last, 1, side, act="relu6")
    net.dense(net.op("mean", x), last, net.classes)
    return net


def encoder(layers: int = 12, width: int = 768, heads: int = 12, positions: int = 128) -> Net:
    """Return BERT-base's encoder: 11 billion multiply-accumulates at 128 positions, 85 million weights."""
    net, x = Net("BERT-base encoder", (positions, width), width), "x"
    for _ in range(layers):
        q, k, v = (net.dense(x, width, width, positions) for _ in range(3))
        y = net.op("attention", q, k, v, heads=heads, width=width, positions=positions)
        net.macs += 2 * positions * positions * width
        x = net.norm(net.op("add", x, net.dense(y, width, width, positions)), width)
        y = net.op("gelu", net.dense(x, width, 4 * width, positions))
        x = net.norm(net.op("add", x, net.dense(y, 4 * width, width, positions)), width)
    return net
