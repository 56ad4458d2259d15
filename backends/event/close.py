"""Makes layers: a sum and the quantizer behind it become a ladder, with bounds that hold for every input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from .bounds import bounds
from .graph import Connection, Ladder, Layer, MaxPool, Reals, Shape
from .ladders import Quantizer, Sums, integer_ladder, real_ladder, term_error
from .operands import Refused
from .terms import Real, Sum

# Accumulators of the engine; sums of dequantized values have 64 bits.
_ACCUMULATOR_LIMIT = 2**31 - 1
_VALUE_LIMIT = 2**53


class Closer:
    """The populations so far, and how the next one comes about.

    Attributes:
        layers: in the order in which they were closed.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self._shapes: dict[str, Shape] = {}
        self._ranges: dict[str, tuple[int, int]] = {}
        self._quantizers: dict[str, tuple[float, int, int, int]] = {}

    def add_population(self, name: str, shape: Shape, counts: tuple[int, int]) -> None:
        """Note a population and the range of its counts."""
        self._shapes[name], self._ranges[name] = shape, counts

    def shape(self, population: str) -> Shape:
        """Return the shape of a population."""
        return self._shapes[population]

    def range(self, population: str) -> tuple[int, int]:
        """Return least and largest count."""
        return self._ranges[population]

    def close(self, total: Sum, quantizer: Quantizer, name: str, node: ir.Node) -> str:
        """Make a layer of a sum and its quantizer; returns its name."""
        whole = total.integer is not None and not quantizer.by_quant
        if whole and total.steps is not None:
            total = replace(total, bias=total.steps, offset=np.zeros(1), steps=None)
        sums = self._sums(total, node)
        clipped = Quantizer(
            quantizer.scale, quantizer.zero, quantizer.low, quantizer.high, quantizer.rounding,
            quantizer.by_quant, total.floor, total.ceiling,
        )  # fmt: skip
        if whole and total.integer is not None:
            ladder = integer_ladder(sums, clipped, total.integer)
        else:
            ladder = real_ladder(sums, clipped)
        return self._add(total, name, ladder, np.array([quantizer.scale]), sums, quantizer.zero)

    def readout(self, total: Sum, name: str, node: ir.Node) -> str:
        """Make a layer whose accumulators leave the network; returns its name."""
        if total.is_clipped or total.values:
            raise Refused(node, "an output behind a Relu, pooling or an Add without a quantizer")
        self._add(total, name, None, total.unit, self._sums(total, node), 0)
        return name

    def maximum(self, x: Real, synapses: MaxPool, name: str, shape: Shape, nodes: tuple[str, ...]) -> Real:
        """Make a layer of the largest counts of windows."""
        low, high = self.range(x.population)
        ladder = Ladder(low, np.arange(low + 1, high + 1)[None, :], np.ones(1))
        zero = np.zeros(1)
        layer = Layer(
            name, shape, (Connection(x.population, synapses),), zero.astype(np.int64), ladder,
            np.array([x.scale]), zero, (low, high), nodes,
        )  # fmt: skip
        self._keep(layer)
        return Real(name, x.scale, shape)

    def _add(self, total: Sum, name: str, ladder: Ladder | None, scale: Reals, sums: Sums, zero: int) -> str:
        offset = total.offset if ladder is None else np.zeros(1)
        reach = int(sums.low.min()), int(sums.high.max())
        layer = Layer(
            name, total.shape, total.connections, total.bias, ladder, np.asarray(scale, np.float64), offset,
            reach, total.nodes, zero,
        )  # fmt: skip
        self._keep(layer)
        return name

    def _keep(self, layer: Layer) -> None:
        self.layers.append(layer)
        ladder = layer.ladder
        counts = (ladder.low, ladder.high) if ladder is not None else layer.bounds
        self.add_population(layer.name, layer.shape, counts)

    def _sums(self, total: Sum, node: ir.Node) -> Sums:
        channels = total.shape[0]
        sources = [(self.range(c.source), self.shape(c.source)) for c in total.connections]
        low, high = bounds(total.connections, sources, total.bias, channels)
        limit = _VALUE_LIMIT if total.values else _ACCUMULATOR_LIMIT
        if -int(low.min()) > limit or int(high.max()) > limit:
            reach, bits = f"{low.min()} to {high.max()}", limit.bit_length() + 1
            raise Refused(node, f"an accumulator may reach {reach}, which leaves {bits} bits")
        terms = np.maximum(high - total.bias, total.bias - low) + np.abs(total.bias)
        error = np.zeros(channels) if total.values else term_error(terms, total.unit, total.exact)
        return Sums(low, high, total.unit, total.offset, error, total.divisor, total.exact)
