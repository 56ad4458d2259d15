"""What an event-driven network is: populations of counting neurons, integer synapses, threshold ladders.

A quantized activation `q` is a neuron's count `q - zero_point`. All the synapses into a neuron add up to an
integer accumulator, `bias + sum(weight * value(count))`. The quantizer behind it is a monotone function of
that integer, so that a ladder of integer thresholds says all of it:
`count = low + #{k: accumulator >= thresholds[k]}`. A neuron of count c fires +1 when the accumulator is at
`thresholds[c - low]` or above, and -1 (where a mode has that) when it is below the one it passed last,
`thresholds[c - low - 1]`. With evenly spaced thresholds this is integrate-and-fire with reset by subtraction;
a ladder also says what float32 scales and ties to even make of it, which one integer threshold cannot.

Counts and accumulators are ordered as in ONNX, channels first, without the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Weights = npt.NDArray[np.int32]
Reals = npt.NDArray[np.float64]
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an image.

    Attributes:
        kernel, strides, dilations: (height, width).
        pads: (top, left, bottom, right); what lies there is silent, of count 0.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    def out(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the image that comes out."""
        sizes = []
        for axis, size in enumerate((height, width)):
            reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            sizes.append((size + self.pads[axis] + self.pads[axis + 2] - reach) // self.strides[axis] + 1)
        return sizes[0], sizes[1]


@dataclass(frozen=True, eq=False)
class Dense:
    """All to all; the source is read flattened.

    Attributes:
        weights: int32 [outputs, inputs].
    """

    weights: Weights


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution.

    Attributes:
        weights: int32 [output channels, input channels / groups, kernel height, kernel width].
        window: as in ONNX.
        groups: as in ONNX; as many as input channels for a depthwise one.
    """

    weights: Weights
    window: Window
    groups: int = 1


@dataclass(frozen=True)
class SumPool:
    """Sums over windows, channel by channel; an average is its ladder's business."""

    window: Window


@dataclass(frozen=True)
class MaxPool:
    """The largest count of each window: no sum, so that all counts of the source must have settled."""

    window: Window


@dataclass(frozen=True)
class OneToOne:
    """Neuron i feeds neuron i of the layer, from channel `first` of it on: residual adds and concats."""

    first: int = 0


Synapses: TypeAlias = Dense | Conv | SumPool | MaxPool | OneToOne


@dataclass(frozen=True, eq=False)
class Connection:
    """Synapses from one population.

    Attributes:
        source: name of an input or a layer.
        synapses: what they add up.
        values: int64 [levels of the source], what each count stands for from the source's `low` on, where
            that is not the count itself: averages and sums of what DequantizeLinear rounded to float32,
            as integers of a common unit. None: the count.
    """

    source: str
    synapses: Synapses
    values: Integers | None = None


@dataclass(frozen=True, eq=False)
class Ladder:
    """When neurons fire.

    Attributes:
        low: count of a neuron below all thresholds; 0 behind a ReLU.
        thresholds: int64 [channels or 1, levels - 1], ascending; the accumulators from which on the count is
            `low + 1`, `low + 2` and so on. NEVER stands for those that cannot be reached.
        theta: distance of thresholds in accumulator steps [channels or 1], not rounded: what a device with
            one threshold would use.
        ties: thresholds for which float rounding of the model as written could decide otherwise, because a
            reachable accumulator lies within its rounding errors of the threshold; 0: exact for every input.
    """

    low: int
    thresholds: Integers
    theta: Reals
    ties: int = 0

    @property
    def high(self) -> int:
        """Return the largest count."""
        return self.low + int(self.thresholds.shape[1])


# A threshold beyond every accumulator.
NEVER = 2**62


@dataclass(frozen=True, eq=False)
class Input:
    """What enters: reals that are quantized as QuantizeLinear does, or integers as they are.

    Attributes:
        name: of the graph's input.
        population: name of the counts it becomes.
        shape: without the batch.
        scale: real = count * scale; None where the input is integers.
        zero: of the quantizer; count = q - zero.
        low, high: range of the counts.
        dtype: ONNX spelling of what is fed.
        by_quant: the quantizer is QONNX's, which adds the zero point before it rounds.
        fed: shape of the graph's input without the batch, where the model flattens it before it quantizes.
        axes: order in which the model takes the axes of `fed` (without the batch) before anything else, as
            Transpose says it; empty: as they are.
    """

    name: str
    population: str
    shape: Shape
    scale: float | None
    zero: int
    low: int
    high: int
    dtype: str = "FLOAT"
    by_quant: bool = False
    fed: Shape = ()
    axes: Shape = ()


@dataclass(frozen=True, eq=False)
class Layer:
    """A population with what feeds it.

    Attributes:
        name: of the ONNX value whose integers (less the zero point) are its counts.
        shape: [channels, height, width] or [neurons].
        connections: what adds up; all of one unit.
        bias: int64 [channels or 1], where the accumulator starts.
        ladder: when neurons fire; None for a readout, whose accumulators leave the network.
        scale: float64 [channels or 1]; real = count * scale, of a readout accumulator * scale + offset.
        offset: float64 [channels or 1], of a readout; 0 for all others.
        bounds: least and largest accumulator that any input can cause, partial sums in any order included.
        covers: names of the ONNX nodes it stands for.
        zero: what the ONNX value holds beyond the count where it is integers.
    """

    name: str
    shape: Shape
    connections: tuple[Connection, ...]
    bias: Integers
    ladder: Ladder | None
    scale: Reals
    offset: Reals
    bounds: tuple[int, int]
    covers: tuple[str, ...] = ()
    zero: int = 0

    @property
    def channels(self) -> int:
        """Return how many output channels it has; of a vector, its size."""
        size: int = self.shape[0]
        return size

    @property
    def accumulator_bits(self) -> int:
        """Return the width that no accumulator leaves."""
        return max(int(self.bounds[1]).bit_length(), int(-self.bounds[0] - 1).bit_length()) + 1


@dataclass(frozen=True, eq=False)
class Output:
    """What leaves: the layer's reals (or integers), by the name and shape of the graph's output.

    Attributes:
        name: of the graph's output.
        layer: the layer it shows.
        shape: without the batch.
        dtype: ONNX spelling.
        zero: added to counts where the output is integers.
        softmax: the host takes the Softmax over the last axis of what the layer shows.
    """

    name: str
    layer: str
    shape: Shape
    dtype: str = "FLOAT"
    zero: int = 0
    softmax: bool = False


@dataclass(frozen=True, eq=False)
class EventGraph:
    """A whole network; layers stand in an order in which they can run.

    Attributes:
        notes: what the user should know of the lowering.
    """

    inputs: tuple[Input, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[Output, ...]
    notes: tuple[str, ...] = field(default=())

    def layer(self, name: str) -> Layer:
        """Return a layer by name."""
        return next(layer for layer in self.layers if layer.name == name)

    def shape(self, source: str) -> Shape:
        """Return the shape of a population, an input's or a layer's."""
        return next(shape for name, shape in self._shapes() if name == source)

    def range(self, source: str) -> tuple[int, int]:
        """Return least and largest count of a population; a readout has none."""
        for entry in self.inputs:
            if entry.population == source:
                return entry.low, entry.high
        ladder = self.layer(source).ladder
        assert ladder is not None, f"{source} is a readout"
        return ladder.low, ladder.high

    def _shapes(self) -> Iterator[tuple[str, Shape]]:
        yield from ((entry.population, entry.shape) for entry in self.inputs)
        yield from ((layer.name, layer.shape) for layer in self.layers)
