"""Recurrent cells in the body of a Scan, as TensorFlow's cells come out of the exporter.

    GRU   new = u * h + (1 - u) * tanh([x, r * h] C + b),   [r, u] = sigmoid([x, h] G + b)
    LSTM  c' = sigmoid(f) * c + sigmoid(i) * tanh(g),  h' = sigmoid(o) * tanh(c')  [, times a projection]

Operands in any order, products joined or apart, peepholes, a forget bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import producer
from .kernels.recurrent_f32 import Kind
from .layers import Floats
from .layers_recurrent import Cell
from .quantized import array_of
from .scan_gates import Gate, behind, gate_of, is_one


@dataclass(frozen=True)
class State:
    """A value that a body hands to its next step: `old` is read, `new` written, `index` among the states."""

    index: int
    old: ir.Value
    new: ir.Value


@dataclass(frozen=True, eq=False)
class Found:
    """A cell in a body: which states it keeps and what it reads.

    Attributes:
        source: the value that it reads besides its states.
        h, c: its states; a GRU has no c.
    """

    kind: Kind
    cell: Cell
    source: ir.Value
    h: State
    c: State | None = None


def cells_of(states: Sequence[State]) -> list[Found]:
    """Return the cells whose states these are; states that are no cell's are left out."""
    found: list[Found] = []
    for state in states:
        cell = _gru(state)
        if cell is None:
            cell = next((lstm for other in states if (lstm := _lstm(state, other)) is not None), None)
        if cell is not None:
            found.append(cell)
    return found


def _two(value: ir.Value | None, op_type: str) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """Return the operands of a node in both orders, nothing where it is another node."""
    node = producer(behind(value), op_type)
    if node is None or len(node.inputs) != 2:
        return []
    one, other = (behind(v) for v in node.inputs)
    return [(one, other), (other, one)]


def _gru(state: State) -> Found | None:
    for kept, mixed in _two(state.new, "Add"):
        for u, h in _two(kept, "Mul"):
            for rest, new in _two(mixed, "Mul"):
                minus = producer(rest, "Sub")
                if h is not state.old or minus is None:
                    continue
                if is_one(minus.inputs[0]) and behind(minus.inputs[1]) is u:
                    return _gru_of(state, gate_of(u), gate_of(new))
    return None


def _gru_of(state: State, update: Gate | None, new: Gate | None) -> Found | None:
    if update is None or new is None or (update.function, new.function) != ("sigmoid", "tanh"):
        return None
    for term in new.terms:
        for r, h in _two(term.value, "Mul"):
            reset = gate_of(r)
            if h is not state.old or reset is None or reset.function != "sigmoid":
                continue
            return _found("gru", [update, reset, new], (state.old, state.old, term.value), state)
    return None


def _lstm(h: State, c: State) -> Found | None:
    """Return the LSTM whose result and state these are."""
    result, projection = h.new, None
    node = producer(behind(h.new), "MatMul")
    if node is not None:
        weight = array_of(node.inputs[1])
        if weight is None or weight.ndim != 2 or node.inputs[0] is None:
            return None
        result, projection = node.inputs[0], np.ascontiguousarray(weight.T, np.float32)
    for o, squashed in _two(result, "Mul"):
        node = producer(squashed, "Tanh")
        if node is None or behind(node.inputs[0]) is not behind(c.new):
            continue
        for kept, added in _two(c.new, "Add"):
            for f, old in _two(kept, "Mul"):
                for i, g in _two(added, "Mul"):
                    gates = [gate_of(value) for value in (i, o, f, g)]
                    if old is c.old and _are_lstm(gates):
                        return _found(
                            "lstm", [gate for gate in gates if gate], (h.old,) * 4, h, c, projection
                        )
    return None


def _are_lstm(gates: Sequence[Gate | None]) -> bool:
    wanted = ("sigmoid", "sigmoid", "sigmoid", "tanh")
    return all(gate is not None and gate.function == name for gate, name in zip(gates, wanted, strict=True))


def _found(
    kind: Kind,
    gates: Sequence[Gate],
    recurrent: Sequence[ir.Value],
    h: State,
    c: State | None = None,
    projection: Floats | None = None,
) -> Found | None:
    """Sort the terms of all gates into the input's and the recurrent ones."""
    inputs, own, scales = [], [], []
    source: ir.Value | None = None
    for gate, state in zip(gates, recurrent, strict=True):
        mine = [term for term in gate.terms if term.value is state]
        others = [term for term in gate.terms if term.value is not state]
        if len(mine) != 1 or len(others) != 1 or source not in (None, others[0].value):
            return None
        source = others[0].value
        inputs.append(others[0].weight.T)
        own.append(mine[0].weight.T)
        scales.append(mine[0].scale)
    peepholes = _peepholes(gates, c)
    if source is None or peepholes is False:
        return None
    bias = np.stack([gate.bias for gate in gates])
    weights, scale = np.stack(own), None
    if all(one is not None for one in scales):
        scale = np.stack([one for one in scales if one is not None])
        weights = np.rint(weights / scale[..., None]).astype(np.int8)
    factors = None if isinstance(peepholes, bool) else peepholes
    cell = Cell(np.stack(inputs), weights, bias, np.zeros_like(bias), scale, factors, projection)
    return Found(kind, cell, source, h, c)


def _peepholes(gates: Sequence[Gate], c: State | None) -> Floats | bool:
    """Return the factors of i, o, f; True: there are none, False: they multiply something else."""
    if not any(gate.peepholes for gate in gates):
        return True
    if c is None or gates[3].peepholes:
        return False
    made = []
    for gate, state in zip(gates[:3], (c.old, behind(c.new), c.old), strict=True):
        if len(gate.peepholes) > 1 or any(value is not state for value, _ in gate.peepholes):
            return False
        made.append(gate.peepholes[0][1] if gate.peepholes else np.zeros_like(gate.bias))
    return np.stack(made)
