"""Channels at layers with weights: where they come from and where they are read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from ...compiler.ir import walk
from .channels_graph import Graph, Labels

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def take_constant(graph: Graph, node: ir.Node, port: int, axis: int, labels: Labels) -> bool:
    """Cut an operand along; False when it is not constant or has another size."""
    value = node.inputs[port] if len(node.inputs) > port else None
    if value is None:
        return True
    shape = walk.static_shape(value)
    if not walk.is_constant(value) or shape is None or shape[axis] != len(labels):
        return False
    graph.take(node, port, axis, labels)
    return True


def meet(
    graph: Graph, node: ir.Node, ports: Iterable[int], index: int, with_: Labels | None = None
) -> Labels | None:
    """Tie the operands of a broadcasting node along an axis counted from the end; return its labels."""
    shape = node.outputs[0].shape
    size = shape[index] if shape is not None and len(shape) >= -index else None
    why = f"{node.op_type} {node.name!r} joins them with channels that stay"
    found = [] if with_ is None else [with_]
    constants: list[int] = []
    stays = False
    for port in ports:
        value = node.inputs[port]
        if value is None or value.shape is None or len(value.shape) < -index:
            stays |= value is not None and value.shape is None
            continue
        labels, dim = graph.axis(value, index), value.shape[index]
        if labels is not None and len(labels) == size:
            found.append(labels)
        elif labels is not None:
            graph.fix(labels, f"{node.op_type} {node.name!r} broadcasts them")
        elif walk.is_constant(value):
            constants += [port] if dim == size and size != 1 else []
        else:
            stays |= dim != 1
    if stays:
        for labels in found:
            graph.fix(labels, why)
    for other in found[1:]:
        graph.tie(found[0], other, why)
    if not found or stays:
        return None
    for port in constants:
        graph.take(node, port, index, found[0])
    return found[0]


def _columns(
    graph: Graph, node: ir.Node, port: int, axis: int, source: tuple[ir.Value | None, int]
) -> Labels:
    """Tie the inputs of a layer's weight with what arrives."""
    columns = graph.weight(node, port, axis, "column")
    arriving = graph.axis(*source)
    if arriving is None:
        graph.fix(columns, f"{node.op_type} {node.name!r} reads channels that stay")
    else:
        graph.tie(arriving, columns, f"{node.op_type} {node.name!r} reads channels that stay")
        graph.reads(node, port, *source)
    return columns


def convolution(graph: Graph, node: ir.Node) -> None:
    """Conv: grouped ones lose the same places in every group, depthwise ones whole groups."""
    x, w = node.inputs[0], node.inputs[1]
    reason = graph.refuse_weight(node, 1)
    shape = walk.static_shape(w)
    if reason or shape is None or len(graph.of(x)) != len(shape):
        _refuse(graph, node, reason or f"the shape of {node.name!r} is not known")
        return
    _keep_others(graph, node, 1)
    groups = walk.int_attribute(node, "group", 1)
    rows: Labels | None
    if groups > 1 and shape[1] == 1:
        rows = _depthwise(graph, node, groups)
    elif groups > 1:
        rows = _grouped(graph, node, groups)
    else:
        columns = _columns(graph, node, 1, 1, (x, 1))
        rows = graph.weight(node, 1, 0, "row")
        graph.cost(node, [rows, columns])
    _bias(graph, node, rows)
    graph.set(node.outputs[0], [None, rows, *[None] * (len(shape) - 2)])


def _depthwise(graph: Graph, node: ir.Node, groups: int) -> Labels | None:
    arriving = graph.axis(node.inputs[0], 1)
    rows = graph.weight(node, 1, 0, "row")
    per_group = len(rows) // groups
    if arriving is None:
        graph.fix(rows, f"Conv {node.name!r} has a filter for each channel, and they stay")
        return None
    labels = arriving
    graph.tie(np.repeat(labels, per_group), rows, f"Conv {node.name!r} has a filter for each channel")
    graph.edit_attribute(node, "group", lambda kept: ir.AttrInt64("group", int(kept(labels).sum())))
    graph.cost(node, [rows])
    return rows


def _grouped(graph: Graph, node: ir.Node, groups: int) -> Labels:
    why = f"Conv {node.name!r} has {groups} groups, which must stay equal"
    columns = graph.weight(node, 1, 1, "column")
    arriving = graph.axis(node.inputs[0], 1)
    if arriving is None:
        graph.fix(columns, f"Conv {node.name!r} reads channels that stay")
    else:
        grid = arriving.reshape(groups, -1)
        graph.tie_rows(grid, why)
        graph.tie(grid[0], columns, why)
        graph.reads(node, 1, node.inputs[0], 1)
    rows = graph.weight(node, 1, 0, "row")
    graph.tie_rows(rows.reshape(groups, -1), why)
    graph.cost(node, [rows, columns])
    return rows


def deconvolution(graph: Graph, node: ir.Node) -> None:
    """ConvTranspose, without groups."""
    reason = graph.refuse_weight(node, 1)
    shape = walk.static_shape(node.inputs[1])
    if reason is None and walk.int_attribute(node, "group", 1) > 1:
        reason = f"ConvTranspose {node.name!r} has groups"
    if reason or shape is None:
        _refuse(graph, node, reason or f"the shape of {node.name!r} is not known")
        return
    _keep_others(graph, node, 1)
    columns = _columns(graph, node, 1, 0, (node.inputs[0], 1))
    rows = graph.weight(node, 1, 1, "row")
    graph.cost(node, [rows, columns])
    _bias(graph, node, rows)
    graph.set(node.outputs[0], [None, rows, *[None] * (len(shape) - 2)])


def gemm(graph: Graph, node: ir.Node) -> None:
    """Gemm with a constant second operand."""
    reason = graph.refuse_weight(node, 1)
    if reason or walk.is_constant(node.inputs[0]):
        _refuse(graph, node, reason or f"Gemm {node.name!r} has a constant on the left")
        return
    wide = walk.int_attribute(node, "transB", 0)
    turned = walk.int_attribute(node, "transA", 0)
    columns = _columns(graph, node, 1, wide, (node.inputs[0], 0 if turned else 1))
    rows = graph.weight(node, 1, 1 - wide, "row")
    batch = graph.axis(node.inputs[0], 1 if turned else 0)
    graph.fix(batch, f"Gemm {node.name!r} takes them as samples")
    graph.cost(node, [rows, columns])
    joined = meet(graph, node, [2], -1, rows) if len(node.inputs) > 2 else rows
    graph.set(node.outputs[0], [None, joined])


def matmul(graph: Graph, node: ir.Node) -> None:
    """MatMul: with a matrix of weights on either side, or of two activations (attention)."""
    operands = [graph.of(value) for value in node.inputs]
    ranks = [0 if value is None or value.shape is None else len(value.shape) for value in node.inputs]
    constant = [walk.is_constant(value) for value in node.inputs]
    stored = [port for port in (0, 1) if graph.is_dequantized(node.inputs[port])]
    if stored:
        _refuse(graph, node, graph.refuse_weight(node, stored[0]) or "")
        return
    if min(ranks) < 2 or all(constant):
        graph.stop(node, f"MatMul {node.name!r} is not of matrices")
        return
    if any(constant) and ranks[constant.index(True)] == 2:
        _layer(graph, node, constant.index(True), operands, ranks)
        return
    for port in (0, 1):
        if constant[port] or not any(isinstance(d, int) for d in list(node.inputs[port].shape or ())):  # type: ignore[union-attr]
            graph.fix(
                graph.axis(node.inputs[1 - port], port - 2), f"MatMul {node.name!r} multiplies constants"
            )
    inner = graph.tie(operands[0][-1], operands[1][-2], f"MatMul {node.name!r} sums over them")
    rank = max(ranks)
    batch = [meet(graph, node, (0, 1), index) for index in range(-rank, -2)]
    outer = operands[0][-2], operands[1][-1]
    graph.cost(node, [*batch, *outer, inner])
    graph.set(node.outputs[0], [*batch, *outer])


def _layer(
    graph: Graph, node: ir.Node, port: int, operands: list[tuple[Labels | None, ...]], ranks: list[int]
) -> None:
    """MatMul with a matrix of weights at `port`."""
    reason = graph.refuse_weight(node, port)
    if reason:
        _refuse(graph, node, reason)
        return
    other, axes = node.inputs[1 - port], operands[1 - port]
    reading = ranks[1 - port] - (1 if port == 1 else 2)
    columns = _columns(graph, node, port, 0 if port == 1 else 1, (other, reading))
    rows = graph.weight(node, port, 1 if port == 1 else 0, "row")
    graph.cost(node, [rows, columns])
    found = list(axes)
    found[reading] = rows
    graph.set(node.outputs[0], found)


def cell(graph: Graph, node: ir.Node) -> None:
    """LSTM, GRU and RNN: a hidden unit goes from all gates and from both directions."""
    hidden_states = [v for v in node.inputs[5:7] if v is not None and not walk.is_constant(v)]
    reason = graph.refuse_weight(node, 1) or graph.refuse_weight(node, 2)
    if hidden_states:
        reason = f"the first state of {node.name!r} is computed"
    if reason or any(
        v is not None and not walk.is_constant(v) for v in (*node.inputs[3:4], *node.inputs[7:8])
    ):
        _refuse(graph, node, reason or f"{node.name!r} has parameters that are not constant")
        return
    gates = _GATES[node.op_type]
    graph.fix(graph.axis(node.inputs[0], 0), f"{node.op_type} {node.name!r} takes them as steps")
    graph.fix(graph.axis(node.inputs[0], 1), f"{node.op_type} {node.name!r} takes them as samples")
    columns = _columns(graph, node, 1, 2, (node.inputs[0], 2))
    hidden = graph.weight(node, 2, 2, "column")
    why = f"{node.op_type} {node.name!r} has the same units in all gates"
    for port in (1, 2):
        graph.tie(np.tile(hidden, gates), graph.weight(node, port, 1, "row"), why)
    _cell_constants(graph, node, hidden, gates)
    share = len(columns) / (len(columns) + len(hidden))
    graph.cost(node, [hidden, columns], share)
    graph.cost(node, [hidden, hidden], 1 - share)
    for output in node.outputs:
        if output.name and output.shape is not None:
            graph.set(output, [*[None] * (len(output.shape) - 1), hidden])


def _cell_constants(graph: Graph, node: ir.Node, hidden: Labels, gates: int) -> None:
    ports = {3: (1, 2 * gates), 5: (2, 1), 6: (2, 1), 7: (1, 3)}
    for port, (axis, times) in ports.items():
        if not take_constant(graph, node, port, axis, np.tile(hidden, times)):
            graph.fix(hidden, f"operand {port} of {node.name!r} has another size")
    graph.edit_attribute(
        node, "hidden_size", lambda kept: ir.AttrInt64("hidden_size", int(kept(hidden).sum()))
    )


def _bias(graph: Graph, node: ir.Node, rows: Labels | None) -> None:
    if rows is not None and not take_constant(graph, node, 2, 0, rows):
        graph.fix(rows, f"{node.op_type} {node.name!r} has a bias that is not constant")


def _keep_others(graph: Graph, node: ir.Node, channel: int) -> None:
    """Only channels go through a convolution."""
    for index, labels in enumerate(graph.of(node.inputs[0])):
        if index != channel:
            graph.fix(labels, f"{node.op_type} {node.name!r} takes them as positions")


def _refuse(graph: Graph, node: ir.Node, reason: str) -> None:
    """Keep what a layer reads and what it makes."""
    graph.stop(node, reason)
    kept = graph.fresh(1)
    graph.fix(kept, reason)
    graph.layers.setdefault(node, []).append(kept)
