"""Channels through operators that join, take apart and fill up axes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from ...compiler.ir import walk
from .channels_graph import Array, Graph, Kept, Labels


def concat(graph: Graph, node: ir.Node) -> None:
    """Join index ranges along the axis; other axes are tied."""
    shape = node.outputs[0].shape
    if shape is None or all(labels is None for value in node.inputs for labels in graph.of(value)):
        return
    axis = walk.int_attribute(node, "axis", 0) % len(shape)
    why = f"Concat {node.name!r} joins them with channels that stay"
    found: list[Labels | None] = []
    for index in range(len(shape)):
        pieces = [graph.axis(value, index) for value in node.inputs]
        if index == axis:
            found.append(_joined(graph, node, axis, pieces))
        elif all(piece is None for piece in pieces):
            found.append(None)
        else:
            tied = pieces[0]
            for piece in pieces[1:]:
                tied = graph.tie(tied, piece, why)
            found.append(tied)
    graph.set(node.outputs[0], found)


def _joined(graph: Graph, node: ir.Node, axis: int, pieces: list[Labels | None]) -> Labels | None:
    if all(piece is None for piece in pieces):
        return None
    ranges: list[Labels] = []
    for value, piece in zip(node.inputs, pieces, strict=True):
        size = None if value is None or value.shape is None else value.shape[axis]
        if not isinstance(size, int):
            for labels in pieces:
                graph.fix(labels, f"Concat {node.name!r} has parts of unknown size")
            return None
        ranges.append(np.zeros(size, np.int64) if piece is None else piece)
    return np.concatenate(ranges)


def split(graph: Graph, node: ir.Node) -> None:
    """Give each output its range; the sizes become constants that follow."""
    axes = graph.of(node.inputs[0])
    if all(labels is None for labels in axes):
        return
    axis = walk.int_attribute(node, "axis", 0) % len(axes)
    sizes = [None if out.shape is None else out.shape[axis] for out in node.outputs]
    labels = axes[axis]
    if labels is None:
        for output in node.outputs:
            graph.set(output, axes)
        return
    fixed = [size for size in sizes if isinstance(size, int)]
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if len(fixed) != len(sizes) or (given is not None and not walk.is_constant(given)):
        graph.stop(node, f"Split {node.name!r} has parts of unknown size")
        return
    bounds = list(itertools.accumulate([0, *fixed]))
    ranges = [labels[a:b] for a, b in itertools.pairwise(bounds)]
    for output, part in zip(node.outputs, ranges, strict=True):
        graph.set(output, [*axes[:axis], part, *axes[axis + 1 :]])
    if given is None:
        _spell_out(graph, node, fixed)

    def follow(array: Array, kept: Kept) -> Array:
        return np.array([kept(part).sum() for part in ranges], np.int64)

    graph.edit(node, 1, follow)


def _spell_out(graph: Graph, node: ir.Node, sizes: list[int]) -> None:
    """Turn equal parts into given ones, when the edits are made."""
    graph.spelled[node] = np.array(sizes, np.int64)


def slice_(graph: Graph, node: ir.Node) -> None:
    """Take every index of a range; step 1 along cut axes."""
    axes = list(graph.of(node.inputs[0]))
    if all(labels is None for labels in axes):
        return
    values = [walk.constant(value) for value in node.inputs[1:]]
    if any(value is None for value in values):
        graph.stop(node, f"Slice {node.name!r} has computed bounds")
        return
    starts, ends, *rest = (value.reshape(-1).astype(np.int64) for value in values if value is not None)
    along = rest[0] if rest else np.arange(len(starts))
    steps = rest[1] if len(rest) > 1 else np.ones(len(starts), np.int64)
    for place, (start, end, axis, step) in enumerate(zip(starts, ends, along, steps, strict=True)):
        labels = axes[axis]
        if labels is None:
            continue
        if step != 1:
            graph.fix(labels, f"Slice {node.name!r} takes every {step}-th channel")
            axes[axis] = None
            continue
        low, high, _ = slice(int(start), int(end)).indices(len(labels))
        axes[axis] = labels[low:high]
        _follow(graph, node, place, labels, (low, high))
    if any(labels is None and graph.axis(node.inputs[0], i) is not None for i, labels in enumerate(axes)):
        graph.stop(node, f"Slice {node.name!r} takes channels apart")
        return
    graph.set(node.outputs[0], axes)


def _follow(graph: Graph, node: ir.Node, place: int, labels: Labels, bounds: tuple[int, int]) -> None:
    """Move both bounds of a slice by what goes before them."""

    def moved(bound: int) -> None:
        def edit(array: Array, kept: Kept) -> Array:
            new = array.copy()
            new[place] = kept(labels[: bounds[bound]]).sum()
            return new

        graph.edit(node, 1 + bound, edit)

    moved(0)
    moved(1)


def gather(graph: Graph, node: ir.Node) -> None:
    """Pick by constant indices, which are renumbered; other axes go through."""
    axes = graph.of(node.inputs[0])
    chosen = node.inputs[1]
    for labels in graph.of(chosen):
        graph.fix(labels, f"Gather {node.name!r} takes them as indices")
    if all(labels is None for labels in axes) or chosen is None or chosen.shape is None:
        graph.stop(node, f"Gather {node.name!r} has indices of unknown rank")
        return
    axis = walk.int_attribute(node, "axis", 0) % len(axes)
    labels, indices = axes[axis], walk.constant(chosen)
    middle: list[Labels | None] = [None] * len(chosen.shape)
    if labels is not None and (indices is None or indices.ndim != 1):
        graph.fix(labels, f"Gather {node.name!r} picks single channels")
    elif labels is not None and indices is not None:
        picked = labels
        middle = [labels[indices]]

        def renumber(array: Array, kept: Kept) -> Array:
            stay = kept(picked)
            places = array % len(stay)
            new: Array = (np.cumsum(stay) - 1)[places[stay[places]]].astype(array.dtype)
            return new

        graph.edit(node, 1, renumber)
    graph.set(node.outputs[0], [*axes[:axis], *middle, *axes[axis + 1 :]])


def pad(graph: Graph, node: ir.Node) -> None:
    """Added channels are constant and can go like others; other axes may be padded in any mode."""
    axes = list(graph.of(node.inputs[0]))
    if all(labels is None for labels in axes):
        return
    amounts = walk.constant(node.inputs[1])
    chosen = walk.constant(node.inputs[3]) if len(node.inputs) > 3 else np.arange(len(axes))
    mode = walk.attribute(node, "mode", "constant")
    if amounts is None or chosen is None:
        graph.stop(node, f"Pad {node.name!r} has computed amounts")
        return
    count = len(chosen)
    for place, axis in enumerate(int(a) % len(axes) for a in chosen):
        labels, before, after = axes[axis], int(amounts[place]), int(amounts[place + count])
        if labels is None or (before, after) == (0, 0):
            continue
        if mode != "constant" or min(before, after) < 0:
            graph.stop(node, f"Pad {node.name!r} repeats or crops channels")
            return
        front, back = graph.fresh(before), graph.fresh(after)
        axes[axis] = np.concatenate([front, labels, back])
        graph.size(node, 1, place, front)
        graph.size(node, 1, place + count, back)
    graph.set(node.outputs[0], axes)
