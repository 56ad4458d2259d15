"""LSTM, GRU and RNN: the inputs' product of all steps at once, then one kernel per step.

A step's kernel sums the state's products of all gates of a unit and closes with the cell's formula. A GRU
whose reset gate comes first needs two, since its candidate sums what all units' resets left. The kernel reads
the step's number from memory, so that all steps share it. States are float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute
from ..schedules.base import MARK
from .activations import activations_of
from .loops import checked_steps, stacked, step_number
from .walk import Array, Emitter, Rule, dtype_of, shape_of

if TYPE_CHECKING:
    from tvm import te, tirx

    from .activations import Activation
    from .walk import Expr

    # Of one unit of one sample: a gate's sum or what the inputs gave it; a tensor's element in one of its
    # rows; from these the new states.
    _Gate: TypeAlias = Callable[[int], tirx.Expr]
    _Other: TypeAlias = Callable[[int, int], tirx.Expr]
    _Cell: TypeAlias = Callable[[_Gate, _Gate, _Other], list[tirx.Expr]]

# Gates and states of a cell.
_CELLS = {"LSTM": (4, 2), "GRU": (3, 1), "RNN": (1, 1)}


@dataclass(frozen=True)
class _Direction:
    """One direction of a node.

    Attributes:
        node: LSTM, GRU or RNN.
        inputs: products of all inputs with the biases, [steps, batch, gates, units].
        weights: of the state, [gates, units, units].
        bias: beside the state's sum of the candidate of a GRU that resets last, [1, units], or None.
        peepholes: [3, units], of an LSTM, or None.
        lengths: steps of every sample, [batch, 1], or None.
        functions: the cell's activations.
    """

    node: ir.Node
    inputs: Expr
    weights: Array
    bias: Array | None
    peepholes: Array | None
    lengths: Expr | None
    functions: Sequence[Activation]


def _recurrent(emitter: Emitter, node: ir.Node) -> list[Expr]:
    from tvm import relax

    x, batch_first = emitter.operand(node, 0), bool(int_attribute(node, "layout", 0))
    kind = dtype_of(x)
    x = emitter.emit(relax.op.permute_dims(x, (1, 0, 2))) if batch_first else x
    steps = checked_steps(node, shape_of(x)[0])
    directions = emitter.array(node, 1).shape[0]
    tracks, ends = [], []
    for number in range(directions):
        direction = _direction(emitter, node, x, number, directions)
        backward = number == 1 or attribute(node, "direction", "forward") == "reverse"
        start = _start(emitter, node, number, (shape_of(x)[1], direction.weights.shape[-1]))
        order = range(steps - 1, -1, -1) if backward else range(steps)
        shown, states = _run(emitter, direction, order, start)
        tracks.append(stacked(emitter, shown[::-1] if backward else shown))
        ends.append(states)
    finals = [stacked(emitter, [states[i] for states in ends]) for i in range(len(ends[0]))]
    results = [stacked(emitter, tracks, 1), *finals]  # [steps, directions, batch, units], then the states
    if batch_first:
        orders = [(2, 0, 1, 3), *[(1, 0, 2)] * len(finals)]
        results = [
            emitter.emit(relax.op.permute_dims(item, order))
            for item, order in zip(results, orders, strict=True)
        ]
    return [item if kind == "float32" else emitter.emit(relax.op.astype(item, kind)) for item in results]


def _direction(emitter: Emitter, node: ir.Node, x: Expr, number: int, directions: int) -> _Direction:
    from tvm import relax

    gates, count = _CELLS[node.op_type]
    w, r = (emitter.array(node, index)[number].astype(np.float32) for index in (1, 2))
    (steps, batch, features), units = shape_of(x), r.shape[-1]
    given, holes = emitter.maybe_array(node, 3), emitter.maybe_array(node, 5 + count)
    bias = np.zeros((2, gates, units), np.float32)
    if given is not None:
        bias = given[number].reshape(2, gates, units).astype(np.float32)
    resets_last = node.op_type == "GRU" and bool(int_attribute(node, "linear_before_reset", 0))
    own = bias[1, 2:].copy() if resets_last else None
    if resets_last:
        bias[1, 2] = 0
    lines = emitter.emit(relax.op.reshape(x, (steps * batch, features)))
    lines = emitter.emit(relax.op.astype(lines, "float32")) if dtype_of(x) != "float32" else lines
    product = emitter.emit(relax.op.matmul(lines, emitter.constant(w.T), out_dtype="float32"))
    product = emitter.emit(relax.op.add(product, emitter.constant((bias[0] + bias[1]).reshape(-1))))
    lengths = emitter.optional(node, 4)
    return _Direction(
        node,
        emitter.emit(relax.op.reshape(product, (steps, batch, gates, units))),
        r.reshape(gates, units, units),
        own,
        None if holes is None else holes[number].reshape(3, units).astype(np.float32),
        None if lengths is None else emitter.emit(relax.op.reshape(lengths, (batch, 1))),
        activations_of(node, directions)[number],
    )


def _start(emitter: Emitter, node: ir.Node, number: int, shape: tuple[int, int]) -> Expr:
    """Return the initial states of one direction, [states, batch, units]."""
    from tvm import relax

    states, axis = [], int_attribute(node, "layout", 0)
    for index in range(5, 5 + _CELLS[node.op_type][1]):
        given = emitter.optional(node, index)
        if given is None:
            states.append(emitter.constant(np.zeros((1, *shape), np.float32)))
            continue
        part = emitter.emit(relax.op.strided_slice(given, [axis], [number], [number + 1]))
        part = emitter.emit(relax.op.reshape(part, (1, *shape)))
        narrow = dtype_of(part) != "float32"
        states.append(emitter.emit(relax.op.astype(part, "float32")) if narrow else part)
    return states[0] if len(states) == 1 else emitter.emit(relax.op.concat(states, axis=0))


def _row(emitter: Emitter, states: Expr, index: int) -> Expr:
    """Return one state, [batch, units]."""
    from tvm import relax

    count, *shape = shape_of(states)
    if count > 1:
        states = emitter.emit(relax.op.strided_slice(states, [0], [index], [index + 1]))
    return emitter.emit(relax.op.reshape(states, shape))


def _run(
    emitter: Emitter, direction: _Direction, order: Sequence[int], states: Expr
) -> tuple[list[Expr], list[Expr]]:
    """Emit the steps; returns what every step shows, in running order, and the states at the end."""
    step = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[direction.node.op_type]
    count, shown = shape_of(states)[0], []
    for number in order:
        states = step(emitter, direction, step_number(emitter, number), states)
        shown.append(_row(emitter, states, count if direction.lengths is not None else 0))
    return shown, [_row(emitter, states, index) for index in range(count)]


def _kernel(
    emitter: Emitter, direction: _Direction, number: Expr, gates: slice, summed: tuple[Expr, int],
    further: Sequence[Expr], cell: _Cell, *, states: int = 0, kept: int = 0,
) -> Expr:  # fmt: skip
    """Emit one kernel: sums of a state with the weights of `gates`, then the cell's formula.

    Args:
        emitter: takes the kernel.
        direction: inputs and weights.
        number: of the step, as a buffer.
        gates: which gates are summed.
        summed: [rows, batch, units] and the row to sum; the formula's tensor 0.
        further: tensors 1, 2, ... of the formula, [rows, batch or 1, units].
        cell: the formula.
        states: how many results are new states, which stay as they are where a sample has ended; the
            first is shown once more, as 0 there.
        kept: which tensor has the states before.

    Returns:
        [results, batch, units].
    """
    from tvm import te, tirx

    weights = emitter.constant(direction.weights[gates])
    source, row = summed
    _, batch, units = shape_of(source)
    ends = [] if direction.lengths is None or not states else [direction.lengths]

    def step(x: te.Tensor, at: te.Tensor, w: te.Tensor, *tensors: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, units), name="k")
        sums = te.compute(
            (batch, w.shape[0], units),
            lambda b, g, u: te.sum(tensors[0](row, b, k) * w(g, u, k), axis=k),
            name="sums",
            attrs={MARK: "recurrent"},
        )

        def results(b: tirx.Expr, u: tirx.Expr) -> list[tirx.Expr]:
            def other(tensor: int, index: int) -> tirx.Expr:
                return tensors[tensor](index, b if int(tensors[tensor].shape[1]) > 1 else 0, u)

            found = cell(lambda g: sums(b, g, u), lambda g: x(at(0), b, g, u), other)
            if not ends:
                return found
            going, zero = at(0) < tensors[-1](b, 0), tirx.const(0, "float32")
            stays = [tirx.Select(going, new, other(kept, index)) for index, new in enumerate(found)]
            return [*stays, tirx.Select(going, found[0], zero)]

        count = len(results(tirx.const(0), tirx.const(0)))

        def element(i: tirx.Expr, b: tirx.Expr, u: tirx.Expr) -> tirx.Expr:
            total, *rest = reversed(results(b, u))
            for index, result in zip(reversed(range(len(rest))), rest, strict=True):
                total = tirx.if_then_else(i == index, result, total)
            return total

        return te.compute((count, batch, units), element, name="states")

    operands = [direction.inputs, number, weights, source, *further, *ends]
    return emitter.emit(emitter.compute("recurrent_step", step, *operands))


def _lstm(emitter: Emitter, direction: _Direction, number: Expr, states: Expr) -> Expr:
    from tvm import tirx

    f, g, h = direction.functions
    coupled = bool(int_attribute(direction.node, "input_forget", 0))
    holes = [] if direction.peepholes is None else [emitter.constant(direction.peepholes[:, None])]

    def formula(total: _Gate, given: _Gate, other: _Other) -> list[tirx.Expr]:
        before = other(0, 1)
        i, o, forget, c = (total(gate) + given(gate) for gate in range(4))
        i = f(i + other(1, 0) * before if holes else i)
        if coupled:
            forget = tirx.const(1, "float32") - i
        else:
            forget = f(forget + other(1, 2) * before if holes else forget)
        after = forget * before + i * g(c)
        return [f(o + other(1, 1) * after if holes else o) * h(after), after]

    return _kernel(emitter, direction, number, slice(0, 4), (states, 0), holes, formula, states=2)


def _rnn(emitter: Emitter, direction: _Direction, number: Expr, states: Expr) -> Expr:
    (f,) = direction.functions

    def formula(total: _Gate, given: _Gate, other: _Other) -> list[tirx.Expr]:
        return [f(total(0) + given(0))]

    return _kernel(emitter, direction, number, slice(0, 1), (states, 0), [], formula, states=1)


def _gru(emitter: Emitter, direction: _Direction, number: Expr, states: Expr) -> Expr:
    from tvm import tirx

    f, g = direction.functions
    one = tirx.const(1, "float32")
    if direction.bias is not None:

        def resets_last(total: _Gate, given: _Gate, other: _Other) -> list[tirx.Expr]:
            z, reset = f(total(0) + given(0)), f(total(1) + given(1))
            candidate = g(given(2) + reset * (total(2) + other(1, 0)))
            return [(one - z) * candidate + z * other(0, 0)]

        bias = [emitter.constant(direction.bias[None])]
        return _kernel(emitter, direction, number, slice(0, 3), (states, 0), bias, resets_last, states=1)

    def gates(total: _Gate, given: _Gate, other: _Other) -> list[tirx.Expr]:
        z = f(total(0) + given(0))
        return [z * other(0, 0), f(total(1) + given(1)) * other(0, 0), one - z]

    parts = _kernel(emitter, direction, number, slice(0, 2), (states, 0), [], gates)

    def blend(total: _Gate, given: _Gate, other: _Other) -> list[tirx.Expr]:
        return [other(0, 2) * g(total(0) + given(2)) + other(0, 0)]

    old = [states] if direction.lengths is not None else []
    return _kernel(emitter, direction, number, slice(2, 3), (parts, 1), old, blend, states=1, kept=len(old))


RULES: dict[str, Rule] = dict.fromkeys(_CELLS, _recurrent)
