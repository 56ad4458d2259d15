"""Scan over recurrent cells: every cell of the body becomes a layer over all steps, one after the other."""

from __future__ import annotations

import onnx_ir as ir

from ....compiler.ir.walk import bodies, int_attribute, ints_attribute
from . import layers as L
from . import layers_sequence as S
from .layers_recurrent import Recurrent
from .read_recurrent import initial, take_rows, width_of
from .reader import Reader, Refused, covers, shape_of
from .scan_cells import Found, State, cells_of
from .scan_gates import behind


def scan(reader: Reader, node: ir.Node) -> None:
    """Read a Scan whose body is LSTM and GRU cells, one above the other."""
    (body,) = bodies(node)
    count = len(node.inputs) - 1
    turned = any(any(ints_attribute(node, name)) for name in _ORDERS)
    if turned or int_attribute(node, "num_scan_inputs", 1) != 1:
        raise Refused(
            node, "several inputs, or other axes and directions; the kernels run over the first axis"
        )
    states = [
        State(i, old, new)
        for i, (old, new) in enumerate(zip(body.inputs[:count], body.outputs[:count], strict=True))
    ]
    x = reader.real(node.inputs[count], node)
    cells = cells_of(states)
    known: dict[ir.Value, L.Tensor] = {body.inputs[count]: x}
    layers: dict[State, tuple[Recurrent, int]] = {}
    while ready := [cell for cell in cells if cell.source in known and cell.h not in layers]:
        _emit(reader, node, ready[0], known, layers)
    _outputs(reader, node, body, states, layers)


_ORDERS = ("scan_input_axes", "scan_input_directions", "scan_output_axes", "scan_output_directions")


def _emit(
    reader: Reader,
    node: ir.Node,
    found: Found,
    known: dict[ir.Value, L.Tensor],
    layers: dict[State, tuple[Recurrent, int]],
) -> None:
    """Write a cell as a layer over all steps, and its results of all steps as a tensor."""
    x, cell = known[found.source], found.cell
    steps, batch, size = x.shape
    if size != cell.input.shape[2]:
        raise Refused(node, f"a cell reads {cell.input.shape[2]} values of {size}")
    states = [
        initial(reader, node, state.index) if state is not None else None for state in (found.h, found.c)
    ]
    name = f"{node.outputs[found.h.index].name}_over_time"
    layer = Recurrent(
        (x, *(state for state in states if state is not None)),
        L.Tensor(name, (steps + 2, 1, batch, width_of(cell))),
        covers(node),
        found.kind,
        (cell,),
        (False,),
        (states[0] is not None, states[1] is not None),
    )
    results = L.Tensor(f"{name}_h", (steps, batch, cell.result))
    every = (steps, 1, batch, cell.result)
    view = S.Slice((layer.output,), results, covers(node), (0,) * 4, every, (1,) * 4, (0, 2, 3))
    reader.layers += [layer, view]
    reader.sequence.add(results.name)
    value = behind(found.h.new)
    assert value is not None, "a body's output is made by something"
    known[value] = known[found.h.new] = results
    layers[found.h] = (layer, steps)
    if found.c is not None:
        layers[found.c] = (layer, steps + 1)


def _outputs(
    reader: Reader,
    node: ir.Node,
    body: ir.Graph,
    states: list[State],
    layers: dict[State, tuple[Recurrent, int]],
) -> None:
    """Name the last states, and the results of all steps."""
    by_new = {behind(state.new): state for state in states if state in layers}
    for index, value in enumerate(node.outputs):
        if not value.uses() and not value.is_graph_output():
            continue
        last = index < len(states)
        state = states[index] if last else by_new.get(behind(body.outputs[index]))
        if state is None or state not in layers:
            raise Refused(node, f"output {value.name!r} is made by no LSTM or GRU cell that the engine knows")
        layer, row = layers[state]
        cell = layer.cells[0]
        is_h = row == layer.output.shape[0] - 2
        if not last and not is_h:
            raise Refused(node, f"output {value.name!r} collects a cell's inner state")
        rows = range(row, row + 1) if last else range(row)
        length = cell.result if is_h else cell.hidden
        shape_of(value, node)
        take_rows(reader, layer, value, node, rows, length, squeeze=last, directions=False)
