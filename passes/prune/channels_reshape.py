"""Where the entries of an axis are after a reshape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ...compiler.ir import walk
from .channels_graph import Axes, Graph, Labels

_LARGEST = 1 << 22
"""Entries of a merged axis; beyond, it is kept."""

Sizes = list[int]


def reshape(graph: Graph, node: ir.Node, shape_port: int | None = None) -> None:
    """Carry labels through Reshape, Flatten, Squeeze and Unsqueeze.

    Axes are matched by their sizes. A merged axis has each channel's entries where they lie; an axis that is
    split is cut along its outermost part (heads of attention), or, when the parts are exchanged and merged
    again (channel shuffle), along the innermost, the same in all parts.
    """
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None, node
    axes = graph.of(source)
    if all(labels is None for labels in axes):
        return
    why = f"{node.op_type} {node.name!r} mixes channels with what is not known"
    sizes = _sizes(source, result)
    constant = shape_port is None or walk.is_constant(node.inputs[shape_port])
    if sizes is None or not constant:
        graph.stop(node, why if constant else f"the shape of {node.op_type} {node.name!r} is computed")
        return
    shuffled = _is_shuffle(node)
    found: list[Labels | None] = [None] * len(sizes[1])
    for inside, outside in _groups(*sizes):
        _carry(graph, why, (axes, found), (inside, outside), sizes, shuffled=shuffled)
    graph.set(result, found)
    if shape_port is not None:
        for position, labels in enumerate(found):
            if labels is not None:
                graph.size(node, shape_port, position, labels)


def _carry(
    graph: Graph,
    why: str,
    labels: tuple[Axes, list[Labels | None]],
    places: tuple[Sequence[int], Sequence[int]],
    sizes: tuple[Sizes, Sizes],
    *,
    shuffled: bool,
) -> None:
    """Carry labels within one run of axes that holds the same entries on both sides."""
    axes, found = labels
    inside, outside = places
    named = [i for i in inside if axes[i] is not None]
    total = math.prod(sizes[0][i] for i in inside)
    if not named:
        return
    if len(named) > 1 or total > _LARGEST or not outside:
        for i in named:
            graph.fix(axes[i], why)
        return
    flat = np.broadcast_to(
        np.reshape(axes[named[0]], [-1 if i == named[0] else 1 for i in inside]),  # type: ignore[arg-type]
        [sizes[0][i] for i in inside],
    )
    grid = flat.reshape([sizes[1][i] for i in outside])
    wide = [k for k, i in enumerate(outside) if sizes[1][i] > 1]
    along = _along(grid, wide, shuffled=shuffled)
    rows = np.moveaxis(grid, along, 0).reshape(grid.shape[along], -1)
    graph.tie_rows(np.ascontiguousarray(rows.T), why)
    found[outside[along]] = rows[:, 0].copy()


def _along(grid: Labels, wide: Sequence[int], *, shuffled: bool) -> int:
    """Choose the axis of `grid` that is cut: one along which alone labels vary, if there is one."""
    for axis in range(grid.ndim):
        first = np.take(grid, [0], axis=axis)
        others = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
        if np.all(others == others[:, :1]) and not np.array_equal(np.broadcast_to(first, grid.shape), grid):
            return axis
    if not wide:
        return grid.ndim - 1
    if shuffled:
        return wide[-1]
    # [3, heads, size] holds queries, keys and values.
    return wide[1] if len(wide) == 3 else wide[0]


def _is_shuffle(node: ir.Node) -> bool:
    """Say whether parts are only exchanged and merged again."""
    turned = walk.only_user(node.outputs[0])
    if turned is None or turned.op_type != "Transpose":
        return False
    merged = walk.only_user(turned.outputs[0])
    before, after = node.inputs[0], None if merged is None else merged.outputs[0]
    return (
        merged is not None
        and merged.op_type in ("Reshape", "Flatten")
        and before is not None
        and after is not None
        and before.shape is not None
        and before.shape == after.shape
    )


def _sizes(source: ir.Value, result: ir.Value) -> tuple[Sizes, Sizes] | None:
    """Return sizes of both sides; symbols become numbers that divide nothing else."""
    if source.shape is None or result.shape is None:
        return None
    symbols: dict[str, int] = {}
    both: list[Sizes] = []
    for shape in (source.shape, result.shape):
        sizes: Sizes = []
        for dim in shape:
            if isinstance(dim, int):
                sizes.append(dim)
            elif dim.value is None:
                return None
            else:
                sizes.append(symbols.setdefault(str(dim.value), _stand_in(len(symbols))))
        both.append(sizes)
    if 0 in both[0] or math.prod(both[0]) != math.prod(both[1]):
        return None
    return both[0], both[1]


def _stand_in(index: int) -> int:
    """A prime above all sizes; more symbols than primes share one, and then the products do not match."""
    primes = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099)
    return primes[min(index, len(primes) - 1)]


def _groups(before: Sizes, after: Sizes) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the shortest runs of axes of equal product."""
    i = j = 0
    while i < len(before) or j < len(after):
        inside, outside = [], []
        a = b = 1
        while True:
            if (a <= b and i < len(before)) or j >= len(after):
                a *= before[i]
                inside.append(i)
                i += 1
            else:
                b *= after[j]
                outside.append(j)
                j += 1
            if a == b and inside and outside:
                break
            if i >= len(before) and j >= len(after):
                break
        yield inside, outside
