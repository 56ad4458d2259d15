"""Walks a quantized model and cuts it into host head, integer layers and host tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...compiler.errors import UnsupportedOp
from ...compiler.ops.constants import constant_expression
from .graph import Layer, Network, Wire
from .layers import LAYERS, Place
from .refuse import at
from .requant import Held, is_monotone, requantize
from .submodel import constant_value, cut
from .weights import Grid, grid_of

_WITH_WEIGHTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"})


class _Host:
    """A value that the host has before anything is quantized."""


@dataclass(frozen=True)
class _Tail:
    """A value that the host makes of what leaves the circuit; `why` the circuit does not make it."""

    why: UnsupportedOp | None = None


_State = Held | _Host | _Tail


def read_network(model: ir.Model) -> Network:
    """Return the integers of a quantized model; `model` is not edited.

    Raises:
        UnsupportedOp: `fpga-...`: not quantized, a float operator between integers, weights or quantizers
            that are no integers, an accumulator of more than 32 bits; names the node.
    """
    return _Reader(model).read()


class _Reader:
    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.states: dict[ir.Value, _State] = {}
        self.layers: list[Layer] = []
        self.wires: dict[str, Wire] = {}
        self.inputs: list[tuple[Wire, ir.Value]] = []

    def read(self) -> Network:
        for value in self.graph.inputs:
            self.states[value] = _Host()
        for node in self.graph:
            self._node(node)
        return self._network()

    def _node(self, node: ir.Node) -> None:
        states = [self.states[v] for v in node.inputs if v is not None and v in self.states]
        if not states:
            return
        grid = grid_of(node)
        held = [state for state in states if isinstance(state, Held)]
        if any(isinstance(state, _Tail) for state in states) or len(held) not in (0, len(states)):
            self._behind(node, states)
        elif grid is not None:
            self._quantizer(node, grid, held)
        elif node.op_type == "DequantizeLinear":
            self._dequantize(node, held)
        elif held:
            self._integer(node, held)
        else:
            self._all(node, _Host())

    def _all(self, node: ir.Node, state: _State) -> None:
        for value in node.outputs:
            self.states[value] = state

    def _behind(self, node: ir.Node, states: Sequence[_State]) -> None:
        """Leave a node behind what the circuit does not compute to the host, unless it is a layer.

        Quantizers too: onnxruntime's tool puts a pair of them behind the last Softmax.
        """
        why = next(
            (state.why for state in states if isinstance(state, _Tail) and state.why is not None), None
        )
        if _is_layer(node):
            raise why or UnsupportedOp(
                "fpga-float-between",
                at(
                    node,
                    "reads what the circuit does not compute (a float operator, or a value of the host)",
                ),
                "quantize every layer, or exclude the last ones only",
            )
        self._all(node, _Tail(why))

    def _quantizer(self, node: ir.Node, grid: Grid, held: list[Held]) -> None:
        output = node.outputs[0]
        if not held:
            wire = _entry(node, output, grid)
            self.inputs.append((wire, output))
            self._keep(wire, output)
            return
        same = held[0].source is held[0].value and _is_same(held[0].wire, grid)
        if same:
            self.states[output] = Held(held[0].wire, output, output)
            return
        layer = requantize(node, held[0], grid)
        self.layers.append(layer)
        self._keep(layer.output, output)

    def _keep(self, wire: Wire, value: ir.Value) -> None:
        self.wires[wire.name] = wire
        self.states[value] = Held(wire, value, value)

    def _dequantize(self, node: ir.Node, held: list[Held]) -> None:
        if not held:  # the model's input is integers
            source, output = node.inputs[0], node.outputs[0]
            assert source is not None, f"{node.name} has no data"
            wire = _integer_entry(node, source)
            self.inputs.append((wire, source))
            self._keep(wire, output)
            return
        wire = held[0].wire
        scale, zero = _parameters(node)
        if scale is None or np.float64(np.float32(scale)) != wire.unit or zero != wire.zero:
            raise UnsupportedOp(
                "fpga-quantizer",
                at(node, "its scale or zero point is not its quantizer's"),
                "use the same ones",
            )
        self.states[node.outputs[0]] = Held(wire, node.outputs[0], node.outputs[0])

    def _integer(self, node: ir.Node, held: list[Held]) -> None:
        rule = LAYERS.get(node.op_type) if node.domain == "" else None
        if rule is not None:
            try:
                result = rule(Place(node, held, self._append))
            except UnsupportedOp as err:
                if _is_layer(node):
                    raise
                self._all(node, _Tail(err))
                return
            if result is not None:
                self.states[node.outputs[0]] = result
                return
        monotone = len(held) == 1 and is_monotone(node, held[0].value)
        if monotone and all(
            v is None or v in self.states or constant_value(v) is not None for v in node.inputs
        ):
            one = held[0]
            self.states[node.outputs[0]] = replace(one, value=node.outputs[0])
        elif _is_layer(node):
            raise UnsupportedOp(
                "fpga-op",
                at(node, f"no circuit for {node.op_type} in this form"),
                "exclude it, or rewrite it",
            )
        else:
            self._all(node, _Tail(_no_circuit(node)))

    def _append(self, layer: Layer) -> Wire:
        self.layers.append(layer)
        self.wires[layer.output.name] = layer.output
        return layer.output

    def _network(self) -> Network:
        leaving = self._leaving()
        if not self.inputs or not leaving:
            raise _not_quantized(self.graph)
        layers = _used(self.layers, [held.wire.name for held in leaving])
        for node in (
            n for n in self.graph if _is_layer(n) and isinstance(self.states.get(n.outputs[0]), _Host)
        ):
            raise UnsupportedOp(
                "fpga-float-between",
                at(node, "stands before the first quantizer"),
                "quantize the model's input",
            )
        head = cut(self.graph, list(self.graph.inputs), [value for _, value in self.inputs], shaped=True)
        tail = cut(self.graph, [held.source for held in leaving], list(self.graph.outputs), shaped=True)
        wires = dict(self.wires)
        entering = tuple(wire for wire, _ in self.inputs)
        return Network(entering, tuple(held.wire.name for held in leaving), layers, wires, head, tail)

    def _leaving(self) -> list[Held]:
        """Return what the host reads of the circuit: each source once, in graph order."""
        found: dict[ir.Value, Held] = {}
        for value in self.graph.outputs:
            state = self.states.get(value)
            if isinstance(state, Held):
                found[state.source] = state
        for node in self.graph:
            if any(isinstance(self.states.get(v), _Tail) for v in node.outputs):
                for operand in node.inputs:
                    state = None if operand is None else self.states.get(operand)
                    if isinstance(state, Held):
                        found[state.source] = state
        return list(found.values())


def _is_same(wire: Wire, grid: Grid) -> bool:
    """Say whether a quantizer changes nothing on a wire."""
    inside = grid.low <= wire.least and wire.most <= grid.high and grid.step == wire.step
    line = wire.unit.size == 1 and wire.unit.item() == grid.unit and not wire.offset.any()
    return inside and line and wire.zero == grid.zero


def _entry(node: ir.Node, output: ir.Value, grid: Grid) -> Wire:
    return Wire(
        output.name or "", _shape(node, output), np.asarray(grid.low), np.asarray(grid.high),
        np.asarray(grid.unit), np.zeros(()), grid.zero, grid.step,
    )  # fmt: skip


def _integer_entry(node: ir.Node, source: ir.Value) -> Wire:
    scale, zero = _parameters(node)
    dtype = source.dtype
    if scale is None or dtype is None or dtype.bitwidth > 16:
        raise UnsupportedOp(
            "fpga-quantizer", at(node, "needs one constant scale and at most 16 bits"), "quantize per tensor"
        )
    low = -(1 << (dtype.bitwidth - 1)) if dtype.is_signed() else 0
    high = low + (1 << dtype.bitwidth) - 1
    unit = np.asarray(np.float64(np.float32(scale)))
    return Wire(
        source.name or "", _shape(node, source), np.asarray(low), np.asarray(high), unit, np.zeros(()), zero
    )  # fmt: skip


def _parameters(node: ir.Node) -> tuple[float | None, int]:
    scale = constant_expression(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = np.zeros((), np.int64) if given is None else constant_expression(given)
    if scale is None or scale.size != 1 or zero is None:
        return None, 0
    return float(scale.reshape(())), int(zero.reshape(()))


def _shape(node: ir.Node, value: ir.Value) -> tuple[int, ...]:
    """Return the sizes behind the batch axis."""
    if value.shape is None or any(not isinstance(size, int) for size in list(value.shape)[1:]):
        raise UnsupportedOp(
            "fpga-shape",
            at(node, f"the sizes of {value.name!r} are not known ({value.shape})"),
            "bind them with --shape",
        )
    return tuple(int(size) for size in list(value.shape)[1:] if isinstance(size, int))


def _used(layers: list[Layer], wanted: list[str]) -> tuple[Layer, ...]:
    """Drop layers that nothing reads."""
    needed, kept = set(wanted), []
    for layer in reversed(layers):
        if layer.output.name in needed:
            kept.append(layer)
            needed.update(layer.inputs)
    return tuple(reversed(kept))


def _is_layer(node: ir.Node) -> bool:
    """Say whether a node has weights enough that the host should not compute it in silence."""
    return node.op_type in _WITH_WEIGHTS and node.domain == ""


def _no_circuit(node: ir.Node) -> UnsupportedOp:
    taken = ", ".join(sorted(LAYERS))
    return UnsupportedOp(
        "fpga-op",
        at(node, f"no circuit for {node.op_type}; layers are {taken}"),
        "exclude it, or move it last",
    )


def _not_quantized(graph: ir.Graph) -> UnsupportedOp:
    return UnsupportedOp(
        "fpga-not-quantized",
        f"graph {graph.name!r}: no quantizer lies between its inputs and its outputs",
        "give --precision int8 (or w4a4, ...) and --calib-data, or a quantized model",
    )
