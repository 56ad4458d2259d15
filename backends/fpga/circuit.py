"""Integer layers as a circuit of adders, comparisons and multiplexers, traced with da4ml.

Every multiplication by a constant becomes shared additions (distributed arithmetic with common
subexpressions, https://arxiv.org/abs/2507.04535). What a wire's integers carry beside the variable costs
nothing: zero points, the +1/-1 of bipolar values and biases stay with the
signal as `q = gain * v + bias` and end in the next thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from ...compiler.errors import UnsupportedOp
from .counters import Counter, add, counter, objects, tree
from .graph import Conv, Dense, Ints, Layer, Mix, Move, Network, Pool, Requant, Wire
from .mst import DEPTH, multiply
from .neurons import quantizer_of, small_neurons
from .simulate import windows

if TYPE_CHECKING:
    from da4ml.trace import FixedVariable
    from da4ml.types import CombLogic, Pipeline

Variables: TypeAlias = npt.NDArray[np.object_]

# Beyond that many products, unrolled, tracing takes minutes and no small device holds the result.
MOST_PRODUCTS = 400_000
_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Signal:
    """A traced tensor: `q = gain * variables + bias`, bias int64 of the same shape."""

    variables: Variables
    gain: int
    bias: Ints


@dataclass(frozen=True, eq=False)
class Circuit:
    """A network as combinational logic.

    Attributes:
        logic: inputs and outputs flat, in the network's order.
        gains: per output value, `q = gain * v + bias`.
        biases: see `gains`.
        input_biases: per input value; `v = (q - bias) / gain`, as for outputs.
        input_gains: see `input_biases`.
    """

    logic: CombLogic
    gains: Ints
    biases: Ints
    input_gains: Ints
    input_biases: Ints

    def enter(self, network: Network, codes: Mapping[str, Ints]) -> Ints:
        """Return what the ports take, [N, inputs], for integers of the network's inputs."""
        columns = [codes[wire.name].reshape(len(codes[wire.name]), -1) for wire in network.inputs]
        return np.asarray((np.concatenate(columns, axis=1) - self.input_biases) // self.input_gains)

    def leave(self, network: Network, values: Ints) -> dict[str, Ints]:
        """Return the integers of the network's outputs from what the ports give, [N, outputs]."""
        wires = [network.wires[name] for name in network.outputs]
        ends = np.cumsum([int(np.prod(wire.shape, dtype=np.int64)) for wire in wires])[:-1]
        parts = np.split(values * self.gains + self.biases, ends, axis=1)
        return {wire.name: part.reshape(-1, *wire.shape) for wire, part in zip(wires, parts, strict=True)}


def trace(network: Network, tree_depth: int = DEPTH, tables: bool = True) -> Circuit:
    """Return the circuit of a network.

    Args:
        network: integer layers.
        tree_depth: see mst.py; 0 computes the channels of binary layers without a spanning tree.
        tables: neurons of few input bits may become truth tables, see neurons.py.

    Raises:
        UnsupportedOp: `fpga-too-large`: a layer with more products than can be unrolled; names it.
    """
    check_size(network)
    return _Tracer(network, tree_depth, tables).trace()


def products(layer: Layer, wires: Mapping[str, Wire]) -> int:
    """Return how many multiplications by non-zero constants a layer unrolls into."""
    if isinstance(layer, Dense):
        return int(np.count_nonzero(layer.weights))
    if isinstance(layer, Conv):
        return int(np.count_nonzero(layer.weights)) * int(np.prod(layer.output.shape[1:]))
    return 0


def check_size(network: Network) -> None:
    """Refuse networks whose layers are too large to be unrolled."""
    for layer in network.layers:
        count = products(layer, network.wires)
        if count > MOST_PRODUCTS:
            raise UnsupportedOp(
                "fpga-too-large",
                f"node {layer.name!r} unrolls into {count} products, at most {MOST_PRODUCTS} are taken",
                "use a smaller or sparser layer (--sparsity), fewer channels, or another target",
            )


class _Tracer:
    def __init__(self, network: Network, tree_depth: int, tables: bool) -> None:
        from da4ml.trace import FixedVariable, HWConfig

        self._network, self._tree_depth, self._with_tables = network, tree_depth, tables
        self._tables: dict[str, Mapping[int, FixedVariable]] = {}
        self._signals: dict[str, Signal] = {}
        self._solutions: dict[tuple[object, ...], Pipeline] = {}
        self._variable, self._hardware = FixedVariable, HWConfig(1, -1, -1)

    def trace(self) -> Circuit:
        from da4ml.trace import comb_trace

        entering = [self._input(wire) for wire in self._network.inputs]
        for wire, signal in zip(self._network.inputs, entering, strict=True):
            self._signals[wire.name] = signal
        for layer in self._network.layers:
            self._signals[layer.output.name] = self._rules[type(layer)](self, layer)
        leaving = [self._signals[name] for name in self._network.outputs]
        logic = comb_trace(_flat(entering), _flat(leaving), keep_dead_inputs=True)
        return Circuit(logic, _gains(leaving), _biases(leaving), _gains(entering), _biases(entering))

    def _input(self, wire: Wire) -> Signal:
        top = (wire.most - wire.least) // wire.step
        made = [self._new(0, top) for _ in range(int(np.prod(wire.shape, dtype=np.int64)))]
        return Signal(objects(made, wire.shape), wire.step, np.full(wire.shape, wire.least))

    def _new(self, low: int, high: int) -> FixedVariable:
        return self._variable(float(low), float(high), 1.0, hwconf=self._hardware)

    def _constant(self, value: int) -> FixedVariable:
        return self._variable(float(value), float(value), 1.0, hwconf=self._hardware)

    def _product(self, rows: Ints, vector: Variables) -> Variables:
        """Return `rows @ vector`, large matrices in blocks: the optimizer's time grows with the square."""
        used = np.flatnonzero(rows.any(axis=0))
        blocks = [used[i : i + _BLOCK] for i in range(0, used.size, _BLOCK)]
        if not blocks:
            return objects([self._constant(0)] * len(rows), (len(rows),))
        parts = []
        for first in range(0, len(rows), _BLOCK):
            some = rows[first : first + _BLOCK]
            terms = [self._block(some[:, block], vector[block]) for block in blocks]
            parts += [tree(list(column), add) for column in zip(*terms, strict=True)]
        return objects(parts, (len(rows),))

    def _block(self, rows: Ints, vector: Variables) -> Variables:
        return multiply(rows, vector, self._additions, self._tree_depth)

    def _additions(self, rows: Ints, vector: Variables) -> Pipeline:
        """Equal matrices on equal ranges are optimized once."""
        from da4ml.cmvm import solve

        ranges = [(float(v.low), float(v.high), float(v.step)) for v in vector]
        latencies = [float(v.latency) for v in vector]
        key = (rows.tobytes(), rows.shape, tuple(ranges), tuple(latencies))
        if key not in self._solutions:
            matrix = np.ascontiguousarray(rows.T, np.float32)
            depth = 2 if matrix.size <= _BLOCK * _BLOCK // 2 else 0
            self._solutions[key] = solve(
                matrix, qintervals=ranges, latencies=latencies, hard_dc=depth, adder_size=1, carry_size=-1
            )  # fmt: skip
        return self._solutions[key]

    def _centred(self, name: str) -> tuple[Signal, Ints]:
        """Return a signal and the bias of `q - zero`."""
        signal = self._signals[name]
        return signal, signal.bias - self._network.wires[name].zero

    def _dense(self, layer: Layer) -> Signal:
        assert isinstance(layer, Dense)
        signal, bias = self._centred(layer.inputs[0])
        tables = self._small(layer, signal, bias)
        summed = [c for c in range(len(layer.weights)) if c not in tables]
        sums = objects([self._constant(0)] * len(layer.weights), layer.output.shape)
        if summed:
            sums[summed] = self._product(layer.weights[summed], signal.variables)
        return Signal(sums, signal.gain, layer.weights @ bias)

    def _small(self, layer: Dense, signal: Signal, bias: Ints) -> Mapping[int, FixedVariable]:
        """Make the quantized channels that are cheaper as tables; `_requant` takes them from here."""
        behind = quantizer_of(self._network, layer) if self._with_tables else None
        if behind is None:
            return {}
        found = small_neurons(layer, behind, (signal.variables, signal.gain, bias), self._additions)
        made = {channel: one.lookup(signal.variables) for channel, one in found.items()}
        return self._tables.setdefault(behind.output.name, made)

    def _conv(self, layer: Layer) -> Signal:
        assert isinstance(layer, Conv)
        signal, bias = self._centred(layer.inputs[0])
        kernel = tuple(int(n) for n in layer.weights.shape[2:])
        how = (layer.strides, layer.pads, layer.dilations)
        places = np.arange(signal.variables.size, dtype=np.int64).reshape(1, *signal.variables.shape)
        seen = windows(places, kernel, how, -1)[0]  # [C, *out, *kernel], -1 in the padding
        out, outputs = layer.output.shape[1:], layer.output.shape[0]
        flat, flat_bias = signal.variables.reshape(-1), bias.reshape(-1)
        variables, biases = np.empty(layer.output.shape, object), np.zeros(layer.output.shape, np.int64)
        depth, share = layer.weights.shape[1], outputs // layer.group
        for group in range(layer.group):
            rows = layer.weights[group * share : (group + 1) * share].reshape(share, -1)
            for place in np.ndindex(*out):
                index = seen[(slice(group * depth, (group + 1) * depth), *place)].reshape(-1)
                inside = index >= 0
                there = (slice(group * share, (group + 1) * share), *place)
                variables[there] = self._product(rows[:, inside], flat[index[inside]])
                biases[there] = rows[:, inside] @ flat_bias[index[inside]]
        return Signal(variables, signal.gain, biases)

    def _pool(self, layer: Layer) -> Signal:
        assert isinstance(layer, Pool)
        signal, bias = self._centred(layer.inputs[0])
        largest = layer.kind == "max"
        places = np.arange(signal.variables.size, dtype=np.int64).reshape(1, *signal.variables.shape)
        how = (layer.strides, layer.pads, (1,) * len(layer.kernel))
        seen = windows(places, layer.kernel, how, -1)[0]
        flat, flat_bias = signal.variables.reshape(-1), (signal.bias if largest else bias).reshape(-1)
        variables, biases = np.empty(layer.output.shape, object), np.zeros(layer.output.shape, np.int64)
        for place in np.ndindex(*layer.output.shape):
            index = seen[place].reshape(-1)
            index = index[index >= 0]
            variables[place] = tree(list(flat[index]), _larger if largest else add)
            biases[place] = flat_bias[index[0]] if largest else flat_bias[index].sum()
        return Signal(variables, signal.gain, biases)

    def _mix(self, layer: Layer) -> Signal:
        assert isinstance(layer, Mix)
        total: Variables | None = None
        bias = np.zeros(layer.output.shape, np.int64)
        for name, factor in zip(layer.inputs, layer.factors, strict=True):
            signal, own = self._centred(name)
            part = signal.variables * (factor * signal.gain)
            total = part if total is None else total + part
            bias = bias + factor * own
        assert total is not None, f"{layer.name} sums nothing"
        return Signal(total, 1, bias)

    def _move(self, layer: Layer) -> Signal:
        assert isinstance(layer, Move)
        signals = [self._signals[name] for name in layer.inputs]
        variables = np.concatenate([s.variables.reshape(-1) for s in signals])[layer.order]
        bias = np.concatenate([s.bias.reshape(-1) for s in signals])[layer.order]
        shape = layer.output.shape
        return Signal(variables.reshape(shape), signals[0].gain, bias.reshape(shape))

    def _requant(self, layer: Layer) -> Signal:
        assert isinstance(layer, Requant)
        signal, wire = self._signals[layer.inputs[0]], self._network.wires[layer.inputs[0]]
        lows, highs = (np.broadcast_to(bound, wire.shape) for bound in (wire.low, wire.high))
        counts = np.empty(layer.output.shape, object)
        cache: dict[tuple[int, ...], Counter] = {}
        tables = self._tables.get(layer.output.name, {})
        for place in np.ndindex(*layer.output.shape):
            if place[0] in tables:
                counts[place] = tables[place[0]]
                continue
            channel = 0 if layer.axis is None else place[layer.axis]
            v: FixedVariable = signal.variables[place]
            bias = int(signal.bias[place])
            # da4ml's interval may be wider than what the layer can give
            low = max(int(v.low), -((bias - int(lows[place])) // signal.gain))
            high = min(int(v.high), (int(highs[place]) - bias) // signal.gain)
            key = channel, bias, low, high
            if key not in cache:
                cache[key] = counter(layer, channel, (signal.gain, bias), (low, high))
            counts[place] = cache[key](v)
        return Signal(counts, layer.output.step, np.full(layer.output.shape, layer.start))

    _rules: Mapping[type[Layer], Callable[[_Tracer, Layer], Signal]] = {
        Dense: _dense,
        Conv: _conv,
        Pool: _pool,
        Mix: _mix,
        Move: _move,
        Requant: _requant,
    }


def _larger(a: FixedVariable, b: FixedVariable) -> FixedVariable:
    return a.max_of(b)


def _flat(signals: list[Signal]) -> list[FixedVariable]:
    return [v for signal in signals for v in signal.variables.reshape(-1)]


def _gains(signals: list[Signal]) -> Ints:
    return np.concatenate([np.full(signal.variables.size, signal.gain, np.int64) for signal in signals])


def _biases(signals: list[Signal]) -> Ints:
    return np.concatenate([signal.bias.reshape(-1) for signal in signals])
