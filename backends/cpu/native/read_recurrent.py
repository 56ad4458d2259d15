"""LSTM, GRU and RNN of ONNX, and what every recurrent layer is read with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import onnx_ir as ir

from ....compiler.ir.walk import attribute, int_attribute, producer
from . import layers as L
from . import layers_sequence as S
from .kernels.recurrent_f32 import GATES, Kind
from .kernels.window import padded
from .layers_recurrent import Cell, Recurrent
from .quantized import array_of, weights_of
from .reader import Reader, Refused, covers, input_of, shape_of, tensor_of

_DEFAULTS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
_REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def recurrent(reader: Reader, node: ir.Node) -> None:
    """Read an LSTM, GRU or RNN."""
    kind = cast(Kind, node.op_type.lower())
    relu = _check(node, kind)
    reverse = _REVERSE[_text(node, "direction", "forward")]
    x = reader.real(node.inputs[0], node)
    steps, batch, size = shape_of(input_of(node, 0), node)
    cells = _cells(node, kind, len(reverse), size)
    states = [initial(reader, node, 5), initial(reader, node, 6) if kind == "lstm" else None]
    layer = Recurrent(
        (x, *(state for state in states if state is not None)),
        L.Tensor(f"{node.outputs[0].name}_over_time", (steps + 2, len(reverse), batch, width_of(cells[0]))),
        covers(node),
        kind,
        cells,
        reverse,
        (states[0] is not None, states[1] is not None),
        kind == "gru" and bool(int_attribute(node, "linear_before_reset", 0)),
        relu,
    )
    reader.layers.append(layer)
    rows = (range(steps), range(steps, steps + 1), range(steps + 1, steps + 2))
    sizes = (cells[0].result, cells[0].result, cells[0].hidden)
    for number, (value, taken, length) in enumerate(zip(node.outputs, rows, sizes, strict=False)):
        if value.name and (value.uses() or value.is_graph_output()):
            take_rows(reader, layer, value, node, taken, length, squeeze=number > 0)


def width_of(cell: Cell) -> int:
    """Return the values of a row of the kernel's memory."""
    return padded(max(cell.hidden, cell.result))


def take_rows(
    reader: Reader,
    layer: Recurrent,
    value: ir.Value,
    node: ir.Node,
    rows: range,
    length: int,
    squeeze: bool,
    directions: bool = True,
) -> None:
    """Name rows of a recurrent layer's memory as a value: [rows, D, B, length], without axes that go."""
    _, count, batch, _ = layer.output.shape
    kept = ((0,) if not squeeze else ()) + ((1,) if directions else ()) + (2, 3)
    sizes = (len(rows), count, batch, length)
    layer_of = S.Slice(
        (layer.output,), tensor_of(value, node), covers(node), (rows.start, 0, 0, 0), sizes, (1,) * 4, kept
    )
    reader.emit(layer_of, value)
    reader.sequence.add(layer_of.output.name)


def _text(node: ir.Node, name: str, default: str) -> str:
    return str(attribute(node, name, default))


def _check(node: ir.Node, kind: Kind) -> bool:
    """Refuse what the kernel does not compute; say whether an RNN's function is Relu."""
    for name in ("clip", "input_forget", "layout"):
        if attribute(node, name, None) not in (None, 0, 0.0):
            raise Refused(node, f"{name} is set; the kernels do not have it")
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        raise Refused(node, "sequence_lens is given; the kernels run all steps")
    names = attribute(node, "activations", None)
    if names is None:
        return False
    assert isinstance(names, Sequence), "activations is a list"
    found = [str(name).lower() for name in names]
    wanted = _DEFAULTS[kind]
    if kind == "rnn" and set(found) == {"relu"}:
        return True
    if tuple(found) != wanted * (len(found) // len(wanted)):
        raise Refused(node, f"activations {found}; the kernels have {list(wanted)}")
    return False


def _cells(node: ir.Node, kind: Kind, directions: int, size: int) -> tuple[Cell, ...]:
    gates = GATES[kind]
    w, r = array_of(node.inputs[1]), array_of(node.inputs[2])
    if w is None or r is None or w.dtype != np.float32 or r.dtype != np.float32:
        raise Refused(node, "needs constant float32 weights")
    hidden = r.shape[2]
    bias = _array(node, 3, (directions, 2, gates, hidden))
    peepholes = _array(node, 7, (directions, 3, hidden)) if kind == "lstm" else None
    if bias is None:
        bias = np.zeros((directions, 2, gates, hidden), np.float32)
    integers = stored_integers(node, 2, gates)
    inputs = w.reshape(directions, gates, hidden, size).astype(np.float32)
    floats = r.reshape(directions, gates, hidden, hidden).astype(np.float32)
    cells = []
    for d in range(directions):
        cell = Cell(
            inputs[d], floats[d], bias[d, 0], bias[d, 1], None, None if peepholes is None else peepholes[d]
        )
        if integers is not None:
            q, scale = integers
            cell = replace(cell, recurrent=q.reshape(floats.shape)[d], scale=scale)
        cells.append(cell)
    return tuple(cells)


def stored_integers(node: ir.Node, index: int, gates: int) -> tuple[L.Floats, L.Floats] | None:
    """Return R as int8 [D, gates * H, K] and its scales [gates, H], where it is stored so."""
    if producer(node.inputs[index], "DequantizeLinear") is None:
        return None
    found = weights_of(node.inputs[index], 1)
    if isinstance(found, str):
        return None
    rows = found.q.shape[1]
    return found.q, np.ascontiguousarray(np.broadcast_to(found.scale, (rows,))).reshape(gates, -1)  # type: ignore[return-value]


def _array(node: ir.Node, index: int, shape: tuple[int, ...]) -> L.Floats | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return None
    array = array_of(value)
    if array is None:
        raise Refused(node, f"input {value.name!r} is not constant")
    return np.asarray(array, np.float32).reshape(shape)


def initial(reader: Reader, node: ir.Node, index: int) -> L.Tensor | None:
    """Return the tensor of an initial state, None where it is zero."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None:
        return None
    if not reader.is_constant(value):
        return reader.real(value, node)
    array = array_of(value)
    if array is None or array.any():
        raise Refused(node, f"the initial state {value.name!r} is a constant other than 0")
    return None
