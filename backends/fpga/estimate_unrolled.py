"""Cost and depth of every layer as unrolled logic, in seconds: small parts are traced, the rest is computed.

A layer repeats itself: a convolution at every place, a requantization for every channel, a matrix in blocks.
One block, some channels, one window are traced as they are compiled (circuit.py); formulas of
estimate_matrix.py carry them over to the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .circuit import trace
from .estimate_live import live_values, with_live_weights
from .estimate_matrix import Block, block_cost, block_depth, blocks, joining_cost
from .graph import Conv, Dense, Ints, Layer, Mix, Network, Pool, Requant, Wire

_MOST_DIGITS = 3000  # of a traced block: about half a second
_ALL_DIGITS = 9000  # of all traced blocks of a network
_FEWEST_ROWS = 8
_CHANNELS = 3
_ALL_CHANNELS = 40
_MOST_WINDOW = 256


@dataclass(frozen=True)
class Cost:
    """A layer as unrolled logic.

    Attributes:
        output: the wire that it makes.
        kind: `dense`, `conv`, `pool`, `mix`, `move` or `requant`.
        cost: da4ml's unit, bits of adders.
        depth: adders on the longest way.
        bits_in, bits_out: of all values that enter and leave.
        traced: share of the cost that stands on a traced part.
    """

    output: str
    kind: str
    cost: float
    depth: float
    bits_in: int
    bits_out: int
    traced: float


def layer_costs(network: Network, *, tracing: bool = True) -> list[Cost]:
    """Return the cost of every layer.

    Args:
        network: of any size.
        tracing: False uses formulas alone, where there are some (matrices).
    """
    return _Walk(network, tracing).costs()


class _Walk:
    def __init__(self, network: Network, tracing: bool) -> None:
        self._network, self._tracing = network, tracing
        self._digits, self._channels = 0, 0
        self._live = live_values(network)
        self._gains = {wire.name: wire.step for wire in network.inputs}

    def costs(self) -> list[Cost]:
        return [self._cost(layer) for layer in self._network.layers]

    def _cost(self, layer: Layer) -> Cost:
        cost, depth, traced = self._figures(with_live_weights(layer, self._live))
        wires = [self._network.wires[name] for name in layer.inputs]
        self._gains[layer.output.name] = self._gain(layer)
        bits = sum(self._bits(wire) for wire in wires)
        kind = type(layer).__name__.lower()
        return Cost(layer.output.name, kind, cost, depth, bits, self._bits(layer.output), traced)

    def _gain(self, layer: Layer) -> int:
        if isinstance(layer, Requant):
            return layer.output.step
        return 1 if isinstance(layer, Mix) else self._gains[layer.inputs[0]]

    def _bits(self, wire: Wire) -> int:
        top = self._tops(wire)
        return int(np.ceil(np.log2(top + 1)).sum())

    def _tops(self, wire: Wire) -> Ints:
        """Return the largest unsigned integer of every value."""
        span = np.broadcast_to((wire.high - wire.low) // self._gains[wire.name], wire.shape)
        return np.maximum(span, 1)

    def _figures(self, layer: Layer) -> tuple[float, float, float]:
        if isinstance(layer, Dense):
            return self._matrices([layer.weights], layer, 1.0)
        if isinstance(layer, Conv):
            share = len(layer.weights) // layer.group
            rows = layer.weights.reshape(layer.group, share, -1)
            return self._matrices(list(rows), layer, _places(layer, self._network.wires))
        if isinstance(layer, Requant):
            return self._requant(layer)
        if isinstance(layer, Pool):
            return self._pool(layer)
        return self._mix(layer) if isinstance(layer, Mix) else (0.0, 0.0, 1.0)

    def _matrices(self, matrices: list[Ints], layer: Layer, times: float) -> tuple[float, float, float]:
        """Trace one block where that is quick; the others cost by formula, corrected by its error."""
        top = int(self._tops(self._network.wires[layer.inputs[0]]).max())
        parts = [block for matrix in matrices for block in blocks(matrix)]
        known = [block_cost(block, top) for block in parts]
        joins = sum(joining_cost(matrix, top) for matrix in matrices)
        most = max((-(-matrix.shape[1] // 64) for matrix in matrices), default=1)
        depth = max((block_depth(block) for block in parts), default=0) + max(most - 1, 0).bit_length()
        ratio, traced = self._correction(parts, known, top, layer)
        return times * (ratio * sum(known) + joins), float(depth), traced

    def _correction(
        self, parts: list[Block], known: list[float], top: int, layer: Layer
    ) -> tuple[float, float]:
        """Return traced cost over formula, and the share of the formula's cost that was traced."""
        got = want = 0.0
        for block, cost in zip(parts, known, strict=True):
            left = min(_MOST_DIGITS, _ALL_DIGITS - self._digits)
            part = block if block.digits <= left else _first_rows(block, left)
            if not self._tracing or (part is not block and (want or len(part.rows) < _FEWEST_ROWS)):
                break
            self._digits += part.digits
            alone = Dense("part", ("x",), _wire("y", (len(part.rows),), 0, 1), part.rows)
            got += self._trace(alone, [_wire("x", (part.rows.shape[1],), 0, top)])[0]
            want += cost if part is block else block_cost(part, top)
        return (got / want, want / sum(known)) if want and got else (1.0, 0.0)

    def _count(self, layer: Layer) -> int:
        return int(np.count_nonzero(self._live[layer.output.name]))

    def _requant(self, layer: Requant) -> tuple[float, float, float]:
        """Trace some channels and take their mean for all."""
        wire = self._network.wires[layer.inputs[0]]
        gain, count = self._gains[wire.name], self._count(layer)
        found = [self._trace(*one) for one in self._sampled(layer, wire, gain)]
        if not count:
            return 0.0, 0.0, 1.0
        if not found:
            levels = layer.thresholds.shape[1]
            return count * wire.bits * min(0.3 * levels, 2.5), 1.0 + levels.bit_length() / 2, 0.0
        mean = float(np.mean([cost for cost, _ in found]))
        return count * mean, max(depth for _, depth in found), 1.0

    def _sampled(self, layer: Requant, wire: Wire, gain: int) -> Iterator[tuple[Requant, list[Wire]]]:
        axis = layer.axis
        mask = self._live[layer.output.name]
        alive = np.zeros(1, np.int64)
        if axis is not None:
            alive = np.flatnonzero(np.moveaxis(mask, axis, 0).reshape(mask.shape[axis], -1).any(axis=1))
        lows, highs = (_per_channel(bound, wire, axis) for bound in (wire.low, wire.high))
        for place in sorted({int(c) for c in np.linspace(0, max(alive.size - 1, 0), _CHANNELS)}):
            if self._channels >= _ALL_CHANNELS or not mask.any():
                return
            self._channels += 1
            channel = int(alive[place])
            low, high = int(lows[channel % lows.size]), int(highs[channel % highs.size])
            entry = _wire("x", (1,), low, low + (high - low) // gain * gain, gain)
            rows, signs = layer.thresholds[channel : channel + 1], layer.sign[channel : channel + 1]
            output = _wire("y", (1,), layer.output.least, layer.output.most, layer.output.step)
            yield (
                replace(layer, inputs=("x",), output=output, thresholds=rows, sign=signs, axis=None),
                [entry],
            )

    def _pool(self, layer: Pool) -> tuple[float, float, float]:
        wire = self._network.wires[layer.inputs[0]]
        count, window = self._count(layer), int(np.prod(layer.kernel))
        top = int(self._tops(wire).max())
        if window > _MOST_WINDOW:
            bits = np.log2(top + 1)
            return count * (window - 1) * (bits + (2 if layer.kind == "sum" else bits)), np.log2(window), 0.0
        ends = (0, top) if layer.kind == "max" else (0, top * window)
        rank = len(layer.kernel)
        alone = replace(
            layer, inputs=("x",), output=_wire("y", (1, *[1] * rank), *ends), strides=(1,) * rank,
            pads=(0,) * (2 * rank),
        )  # fmt: skip
        cost, depth = self._trace(alone, [_wire("x", (1, *layer.kernel), 0, top)])
        return count * cost, depth, 1.0

    def _mix(self, layer: Mix) -> tuple[float, float, float]:
        count = self._count(layer)
        entries = []
        for index, name in enumerate(layer.inputs):
            wire, gain = self._network.wires[name], self._gains[name]
            span = (wire.most - wire.least) // gain * gain
            entries.append(_wire(f"x{index}", (1,), wire.least, wire.least + span, gain))
        alone = replace(layer, inputs=tuple(e.name for e in entries), output=_wire("y", (1,), 0, 1))
        cost, depth = self._trace(alone, entries)
        return count * cost, depth, 1.0

    def _trace(self, layer: Layer, entries: list[Wire]) -> tuple[float, float]:
        """Return cost and depth of one small layer by itself."""
        wires = {wire.name: wire for wire in [*entries, layer.output]}
        part = replace(
            self._network, inputs=tuple(entries), outputs=(layer.output.name,), layers=(layer,), wires=wires
        )
        logic = trace(part).logic
        return float(logic.cost), float(max(logic.out_latency, default=0.0))


def _first_rows(block: Block, digits: int) -> Block:
    """Return the first rows, with about so many digits."""
    return Block(block.rows[: len(block.rows) * max(digits, 0) // max(block.digits, 1)])


def _wire(name: str, shape: tuple[int, ...], low: int, high: int, step: int = 1) -> Wire:
    return Wire(name, shape, np.asarray(low), np.asarray(high), np.ones(()), np.zeros(()), 0, step)


def _per_channel(bound: Ints, wire: Wire, axis: int | None) -> Ints:
    if axis is None:
        return np.asarray(bound.min() if bound is wire.low else bound.max()).reshape(1)
    spread = np.moveaxis(np.broadcast_to(bound, wire.shape), axis, 0)
    return np.asarray(spread.reshape(wire.shape[axis], -1)[:, 0])


def _places(layer: Conv, wires: dict[str, Wire]) -> float:
    """Return how often the weights are used: output places, those at padded edges by their share of taps."""
    total, rank = 1.0, len(layer.strides)
    for axis in range(rank):
        size, out = wires[layer.inputs[0]].shape[1 + axis], layer.output.shape[1 + axis]
        taps = layer.weights.shape[2 + axis]
        at = np.arange(out)[:, None] * layer.strides[axis] - layer.pads[axis]
        seen = at + np.arange(taps) * layer.dilations[axis]
        total *= float(((seen >= 0) & (seen < size)).sum()) / taps
    return total
