"""Which channels can only go together: a label for every index of every axis, tied along the graph.

A layer that makes channels gives each a new label; operators carry labels to their outputs, tie the labels of
what they join (residual additions, shared weights, the groups of a convolution) and fix what cannot be cut
(graph inputs and outputs, axes that are normalized or summed, operators that are not understood). Labels
that are tied are one unit. What has to be rewritten when units go (weights, biases, shapes, group counts)
is noted on the way. Label 0 stands for what stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.ir import walk
from ...compiler.ir.stats import macs_of
from .statistics import parents_of

Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[np.generic]
Axes = tuple[Labels | None, ...]
Role = Literal["row", "column"]

Kept = Callable[[Labels], Mask]
"""Which entries of an axis stay."""
ConstantEdit = Callable[[Array, Kept], Array]
AttributeEdit = Callable[[Kept], ir.Attr]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_DEQUANTIZERS = frozenset({"DequantizeLinear", "Quant", "BipolarQuant", "Trunc"})


@dataclass
class Weight:
    """A constant of one or several layers.

    Attributes:
        axes: labels of each axis, None where nothing is cut.
        roles: what an axis is: outputs of the layer (`row`) or inputs (`column`).
        uses: nodes and ports that multiply by it.
        arriving: for each node, the value whose channels meet the columns, and which of its axes.
    """

    value: ir.Value
    axes: list[Labels | None]
    roles: dict[int, Role] = field(default_factory=dict)
    uses: set[tuple[ir.Node, int]] = field(default_factory=set)
    arriving: list[tuple[ir.Node, int, int]] = field(default_factory=list)


@dataclass
class Cost:
    """Multiply-accumulates that shrink with each of some axes."""

    macs: int
    axes: list[Labels]


class Graph:
    """Labels of the main graph of a model, and what they imply."""

    def __init__(self, model: ir.Model, excluded: Callable[[ir.Node], bool]) -> None:
        self.model = model
        self.excluded = excluded
        self.axes: dict[ir.Value, Axes] = {}
        self.weights: dict[ir.Value, Weight] = {}
        self.costs: list[Cost] = []
        self.layers: dict[ir.Node, list[Labels]] = {}
        self.constant_edits: dict[tuple[ir.Node, int], list[ConstantEdit]] = {}
        self.attribute_edits: list[tuple[ir.Node, str, AttributeEdit]] = []
        self.taken: list[tuple[ir.Value, Labels]] = []
        self.spelled: dict[ir.Node, Array] = {}
        """Sizes of the outputs of Splits that do not give them."""
        self.fixed: list[tuple[Labels, str]] = []
        self.ties: list[tuple[Labels, Labels]] = []
        self.labels = 1

    # --- labels ---------------------------------------------------------------------------------

    def fresh(self, size: int) -> Labels:
        """Return `size` labels that nothing has."""
        self.labels += size
        return np.arange(self.labels - size, self.labels)

    def fix(self, labels: Labels | None, why: str) -> None:
        """Keep entries."""
        if labels is not None and len(labels):
            self.fixed.append((labels[labels > 0], why))

    def tie(self, a: Labels | None, b: Labels | None, why: str) -> Labels | None:
        """Let entries of two axes go only together; an axis without labels stays as it is."""
        if a is None or b is None:
            self.fix(a if b is None else b, why)
            return None
        if len(a) != len(b):
            self.fix(a, why)
            self.fix(b, why)
            return None
        stays = (a == 0) | (b == 0)
        self.fix(np.concatenate([a[stays], b[stays]]), why)
        self.ties.append((a[~stays], b[~stays]))
        return a

    def tie_rows(self, grid: Labels, why: str) -> None:
        """Tie the rows of `[groups, n]` to the first."""
        for row in grid[1:]:
            self.tie(grid[0], row, why)

    def of(self, value: ir.Value | None) -> Axes:
        """Return the labels of a value's axes; empty when its rank is unknown."""
        if value is None or value.shape is None:
            return ()
        return self.axes.get(value, (None,) * value.shape.rank())

    def axis(self, value: ir.Value | None, index: int) -> Labels | None:
        """Return the labels of one axis."""
        axes = self.of(value)
        return axes[index] if -len(axes) <= index < len(axes) else None

    def set(self, value: ir.Value, axes: Sequence[Labels | None]) -> None:
        """Note the labels of a node's output; axes of another length stay whole."""
        if value.shape is None or value.shape.rank() != len(axes):
            for labels in axes:
                self.fix(labels, f"the shape of {value.name!r} is not known")
            return
        sizes = [dim if isinstance(dim, int) else None for dim in value.shape]
        for labels, size in zip(axes, sizes, strict=True):
            if labels is not None:
                assert size == len(labels), (value, size, len(labels))
        if any(labels is not None for labels in axes):
            self.axes[value] = tuple(axes)

    def stop(self, node: ir.Node, why: str) -> None:
        """Keep everything that flows into a node."""
        for value in node.inputs:
            for labels in self.of(value):
                self.fix(labels, why)

    # --- what is cut ----------------------------------------------------------------------------

    def refuse_weight(self, node: ir.Node, port: int) -> str | None:
        """Say why a layer's weight cannot be cut."""
        value = node.inputs[port]
        if value is None or not walk.is_constant(value):
            if value is not None and self.is_dequantized(value):
                return f"weight {value.name!r} is quantized already: put prune-channels before quantize"
            return f"{node.op_type} {node.name!r} has a weight that is not constant"
        if value.dtype not in _FLOATS:
            return f"weight {value.name!r} is {value.dtype}, not float"
        return f"{node.name!r} is excluded by name" if self.excluded(node) else None

    def is_dequantized(self, value: ir.Value | None) -> bool:
        """Say whether a value is a quantized constant."""
        maker = None if value is None else value.producer()
        return maker is not None and maker.op_type in _DEQUANTIZERS and walk.is_constant(maker.inputs[0])

    def weight(self, node: ir.Node, port: int, axis: int, role: Role) -> Labels:
        """Return the labels of an axis of a layer's weight; all layers that share it see the same."""
        value = node.inputs[port]
        assert value is not None, node
        shape = walk.static_shape(value)
        assert shape is not None, value
        found = self.weights.setdefault(value, Weight(value, [None] * len(shape)))
        found.uses.add((node, port))
        labels = found.axes[axis]
        if labels is None:
            labels = found.axes[axis] = self.fresh(shape[axis])
            found.roles[axis] = role
        if role == "row":
            self.layers.setdefault(node, []).append(labels)
        return labels

    def reads(self, node: ir.Node, weight_port: int, value: ir.Value | None, axis: int) -> None:
        """Note which of a layer's inputs the columns of its weight meet."""
        weight = node.inputs[weight_port]
        assert weight is not None, node
        if value is not None and self.axis(value, axis) is not None:
            port = list(node.inputs).index(value)
            self.weights[weight].arriving.append((node, port, axis))

    def take(self, node: ir.Node, port: int, axis: int, labels: Labels) -> None:
        """Cut an axis of a constant operand along with a unit."""

        def edit(array: Array, kept: Kept) -> Array:
            return np.compress(kept(labels), array, axis=axis)

        value = node.inputs[port]
        assert value is not None, node
        self.taken.append((value, labels))
        self.edit(node, port, edit)

    def size(self, node: ir.Node, port: int, position: int, labels: Labels) -> None:
        """Let an entry of a constant shape follow an axis; -1 is worked out anyway."""

        def edit(array: Array, kept: Kept) -> Array:
            new = array.copy()
            if new[position] != -1:
                new[position] = kept(labels).sum()
            return new

        self.edit(node, port, edit)

    def edit(self, node: ir.Node, port: int, change: ConstantEdit) -> None:
        """Note a change of a constant operand; changes of the same operand are applied in turn."""
        self.constant_edits.setdefault((node, port), []).append(change)

    def edit_attribute(self, node: ir.Node, key: str, change: AttributeEdit) -> None:
        """Note a change of an attribute."""
        self.attribute_edits.append((node, key, change))

    def cost(self, node: ir.Node, axes: Sequence[Labels | None], share: float = 1.0) -> None:
        """Note what a node costs."""
        macs = macs_of(node)
        named = [labels for labels in axes if labels is not None]
        if macs and named:
            self.costs.append(Cost(round(macs * share), named))

    # --- the end --------------------------------------------------------------------------------

    def finish(self) -> None:
        """Keep graph outputs, what bodies read and constants that are read in other ways too."""
        for value in self.model.graph.outputs:
            for labels in self.of(value):
                self.fix(labels, f"{value.name!r} is an output of the graph")
        for body in parents_of(self.model):
            for node in body:
                self.stop(node, f"{node.op_type} {node.name!r} inside a body reads it")
        for weight in self.weights.values():
            others = [(n, p) for n, p in weight.value.uses() if (n, p) not in weight.uses]
            for labels in weight.axes:
                if others or weight.value.is_graph_output():
                    reader = others[0][0] if others else None
                    place = (
                        f"{reader.op_type} {reader.name!r}" if reader is not None else "the graph's output"
                    )
                    self.fix(labels, f"weight {weight.value.name!r} is also read by {place}")


@dataclass(frozen=True)
class Units:
    """Labels solved.

    Attributes:
        of: unit of each label.
        count: number of units.
        free: `[count]`, units that can go.
        reason: `[count]` index into the reasons of what is fixed, -1 for free ones.
    """

    of: Labels
    count: int
    free: Mask
    reason: Labels


def solve(graph: Graph) -> Units:
    """Join what is tied and carry over what is fixed."""
    of = components(graph.labels, graph.ties)
    count = int(of.max()) + 1
    reason = np.full(count, -1, np.int64)
    for index, (labels, _) in enumerate(graph.fixed):
        units = np.unique(of[labels])
        reason[units[reason[units] < 0]] = index
    free = reason < 0
    free[of[0]] = False
    return Units(of, count, free, reason)


def components(size: int, ties: Sequence[tuple[Labels, Labels]]) -> Labels:
    """Return a component number, from 0 on, for each of `size` items."""
    parent = np.arange(size)
    if ties:
        a, b = (np.concatenate(part) for part in zip(*ties, strict=True))
        while True:
            low = np.minimum(parent[a], parent[b])
            before = parent.copy()
            np.minimum.at(parent, before[a], low)
            np.minimum.at(parent, before[b], low)
            parent = parent[parent]
            while not np.array_equal(parent, parent[parent]):
                parent = parent[parent]
            if np.array_equal(before, parent):
                break
    found: Labels = np.unique(parent, return_inverse=True)[1].reshape(-1)
    return found
