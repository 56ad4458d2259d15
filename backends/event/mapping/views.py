"""Layers as devices see them: images of neurons, and fans of synapses that come in from other populations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from ..bounds import bounds
from ..graph import Connection, Conv, Dense, EventGraph, Layer, MaxPool, Shape, SumPool, Window
from ..layout import image_of

Kind: TypeAlias = Literal["dense", "conv", "depthwise", "sum", "max", "one"]
Image: TypeAlias = tuple[int, int, int]
Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Fan:
    """Synapses from one population.

    Attributes:
        source: of the events.
        kind: `dense` reads the source flattened; `one` is neuron to neuron.
        image: (channels, height, width) of the source; for `dense` (inputs, 1, 1).
        window: how the kernel moves; 1x1 for `dense` and `one`.
        groups: as in ONNX.
        weight_bits: that signed weights take; 1 where there are none.
        weights: how many numbers are stored, each once.
        counts: least and largest count of the source.
        is_input: whether the source is an input of the graph.
        dense_image: of `dense` over an image: its (height, width).
        first: of `one`: the channel of the layer that it starts at.
    """

    source: str
    kind: Kind
    image: Image
    window: Window
    groups: int
    weight_bits: int
    weights: int
    counts: Span
    is_input: bool
    dense_image: tuple[int, int] = (1, 1)
    first: int = 0

    @property
    def inputs_per_output(self) -> int:
        """Return how many channels of the source one channel of the layer reads."""
        return self.image[0] // self.groups


@dataclass(frozen=True)
class View:
    """A layer.

    Attributes:
        name: of the layer.
        image: (channels, height, width); a vector is channels of one pixel.
        fans: what feeds it.
        state_bits: that accumulators may take, for every input.
        counts: least and largest count; None for a readout.
        biased: whether any bias is not 0.
        even: whether the thresholds of every neuron are equally far apart, as one integer threshold with
            reset by subtraction has them.
    """

    name: str
    image: Image
    fans: tuple[Fan, ...]
    state_bits: int
    counts: Span | None
    biased: bool
    even: bool

    @property
    def neurons(self) -> int:
        """Return how many there are."""
        channels, height, width = self.image
        return channels * height * width

    @property
    def kind(self) -> str:
        """Return what it is, in a word."""
        return "add" if len(self.fans) > 1 else self.fans[0].kind


def views(graph: EventGraph) -> tuple[View, ...]:
    """Return all layers as devices see them."""
    return tuple(_view(graph, layer) for layer in graph.layers)


def _view(graph: EventGraph, layer: Layer) -> View:
    height, width, channels = image_of(layer.shape)
    ladder = layer.ladder
    return View(
        layer.name,
        (channels, height, width),
        tuple(_fan(graph, layer, connection) for connection in layer.connections),
        _state_bits(graph, layer),
        None if ladder is None else (ladder.low, ladder.high),
        bool(np.any(layer.bias)),
        ladder is None or not np.any(np.diff(ladder.thresholds, 2, axis=1)),
    )


def _state_bits(graph: EventGraph, layer: Layer) -> int:
    """Return the bits of the accumulator; an average is the sum of counts, not of what they stand for."""
    if all(isinstance(c.synapses, SumPool) and c.values is not None for c in layer.connections):
        plain = tuple(replace(c, values=None) for c in layer.connections)
        sources = [(graph.range(c.source), graph.shape(c.source)) for c in plain]
        low, high = bounds(plain, sources, np.zeros(1, np.int64), layer.channels)
        return max(int(high.max()).bit_length(), int(-low.min() - 1).bit_length()) + 1
    return layer.accumulator_bits


def _fan(graph: EventGraph, layer: Layer, connection: Connection) -> Fan:
    source, synapses = connection.source, connection.synapses
    shape = graph.shape(source)
    height, width, channels = image_of(shape)
    window, groups, kind, first = Window((1, 1)), channels, "one", 0
    image, stored = (channels, height, width), 0
    bits = _unit_bits(connection)
    if isinstance(synapses, Dense):
        kind, groups, stored = "dense", 1, int(synapses.weights.size)
        image, bits = (int(np.prod(shape)), 1, 1), _bits(synapses.weights)
    elif isinstance(synapses, Conv):
        groups, window, stored = synapses.groups, synapses.window, int(synapses.weights.size)
        kind, bits = "conv" if groups == 1 else "depthwise", _bits(synapses.weights)
    elif isinstance(synapses, SumPool | MaxPool):
        window, kind = synapses.window, "sum" if isinstance(synapses, SumPool) else "max"
    else:
        first = synapses.first
    is_input = any(entry.population == source for entry in graph.inputs)
    return Fan(
        source, _kind(kind), image, window, groups, bits, stored, graph.range(source), is_input,
        _plane(shape) if kind == "dense" else (1, 1), first,
    )  # fmt: skip


def _kind(text: str) -> Kind:
    kinds: tuple[Kind, ...] = ("dense", "conv", "depthwise", "sum", "max", "one")
    return next(kind for kind in kinds if kind == text)


def _plane(shape: Shape) -> tuple[int, int]:
    return (shape[1], shape[2]) if len(shape) == 3 else (1, 1)


def _bits(weights: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> int:
    """Return the bits of two's complement that hold all weights."""
    if not weights.size:
        return 1
    return max(int(weights.max()).bit_length(), int(-int(weights.min()) - 1).bit_length()) + 1


def _unit_bits(connection: Connection) -> int:
    """Return the bits of a weight that stands for what one count adds: 1 for the count itself."""
    if connection.values is None or isinstance(connection.synapses, SumPool):
        return 1  # an average is the sum of counts, up to float rounding
    return int(np.abs(np.diff(connection.values)).max(initial=0)).bit_length() + 1


def reach(window: Window, axis: int, outputs: Span, size: int) -> Span:
    """Return the range of source positions along an axis that a range of outputs reads."""
    step, pad = window.strides[axis], window.pads[axis]
    length = window.dilations[axis] * (window.kernel[axis] - 1) + 1
    return max(0, outputs[0] * step - pad), min(size, (outputs[1] - 1) * step - pad + length)
