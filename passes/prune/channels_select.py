"""How many channels of each layer go, and which: by a share, or until the model keeps within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ...compiler.errors import PipelineError
from ...compiler.ir import walk
from ...compiler.ir.stats import count
from ..allocate import Option, allocate
from .channels_graph import Graph, Labels, Mask, Units, components

Floats = npt.NDArray[np.floating]

_STEPS = 128
"""Levels that are tried for a budget."""


@dataclass(frozen=True)
class Family:
    """Units that live on the same axes: the channels of a layer, and of all that are tied to it.

    Attributes:
        units: those that can go.
        width: channels of each unit on the axes of layers.
        step: units are kept in multiples of this.
    """

    units: Labels
    width: int
    step: int

    def counts(self) -> list[int]:
        """Numbers of units that may be kept, all first."""
        n = len(self.units)
        return [n, *range((n - 1) // self.step * self.step, 0, -self.step)]

    def kept(self, sparsity: float) -> int:
        """Return the number nearest to a share that goes, the larger of two; all at 0."""
        if sparsity == 0.0:
            return len(self.units)
        wanted = (1.0 - sparsity) * len(self.units)
        return min(self.counts(), key=lambda c: (abs(c - wanted), -c))

    def going(self, scores: Floats, kept: int) -> Labels:
        """Return the units of lowest score, all but `kept`."""
        order = np.argsort(scores[self.units], kind="stable")
        return self.units[order[: len(self.units) - kept]]


def families(graph: Graph, units: Units, round_to: int) -> list[Family]:
    """Group the units that can go; families of one unit cannot be cut and are left out."""
    rows = [
        units.of[labels]
        for weight in graph.weights.values()
        for axis, labels in enumerate(weight.axes)
        if labels is not None and weight.roles[axis] == "row"
    ]
    rows = [row[units.free[row]] for row in rows]
    of = components(units.count, [(row[:-1], row[1:]) for row in rows if len(row) > 1])
    widths = np.zeros(units.count, np.int64)
    for row in rows:
        found = np.bincount(row, minlength=units.count)
        widths = np.where(widths == 0, found, np.gcd(widths, found))
    members = [np.flatnonzero((of == family) & units.free & (widths > 0)) for family in _numbers(of, rows)]
    return [
        Family(group, int(widths[group[0]]), _step(len(group), int(widths[group[0]]), round_to))
        for group in members
        if len(group) > 1
    ]


def _numbers(of: Labels, rows: Sequence[Labels]) -> list[int]:
    """Families in the order of the graph."""
    return list(dict.fromkeys(int(of[row[0]]) for row in rows if len(row)))


def _step(units: int, width: int, round_to: int) -> int:
    """Return the units of `round_to` channels, halved until two steps fit."""
    step = round_to // gcd(round_to, width)
    while step > 1 and 2 * step > units:
        step = (step + 1) // 2
    return max(step, 1)


@dataclass(frozen=True)
class Level:
    """What is asked for; one of `sparsity` and the budgets is given."""

    sparsity: float
    macs: float
    params: float
    scope: str

    @property
    def budgets(self) -> Mapping[str, float]:
        """Shares to keep."""
        return {name: share for name, share in (("macs", self.macs), ("params", self.params)) if share}


def choose(graph: Graph, units: Units, groups: Sequence[Family], scores: Floats, level: Level) -> Mask:
    """Return which units go.

    Raises:
        PipelineError: `channels-budget`: the budget cannot be met.
    """
    if not level.budgets:
        gone = _at(units, groups, scores, level.sparsity, level.scope, _channels(units, groups))
        return _revived(graph, units, scores, gone)
    measures = {name: _Size(graph, units, name) for name in level.budgets}
    weight = sum(measures[name].per_unit() / max(measures[name].total, 1) for name in measures)
    assert not isinstance(weight, int), "there is a budget"

    def holds(gone: Mask) -> bool:
        return all(
            measures[name].left(gone) <= share * measures[name].total for name, share in level.budgets.items()
        )

    before = gone = np.zeros(units.count, np.bool_)
    for step in range(_STEPS + 1):
        gone = _at(units, groups, scores, step / _STEPS, level.scope, weight)
        gone = _revived(graph, units, scores, gone)
        if holds(gone):
            return _given_back(groups, scores * weight, before, gone, holds)
        before = gone
    least = {name: size.left(gone) / max(size.total, 1) for name, size in measures.items()}
    missed = [name for name, share in level.budgets.items() if least[name] > share]
    raise PipelineError(
        "channels-budget",
        "; ".join(
            f"{name}={level.budgets[name]:g} cannot be reached: without channels {least[name]:.3f} are left"
            for name in missed
        ),
        "ask for more than that; see what was refused, or add lowrank",
    )


def _given_back(
    groups: Sequence[Family], worth: Floats, before: Mask, gone: Mask, holds: Callable[[Mask], bool]
) -> Mask:
    """Undo the last step for families, the most valuable first, where the budget holds without it."""

    def value(family: Family) -> float:
        changed = family.units[gone[family.units] & ~before[family.units]]
        return -float(worth[changed].sum())

    for family in sorted(groups, key=value):
        more = gone.copy()
        more[family.units] = before[family.units]
        gone = more if holds(more) else gone
    return gone


def _at(
    units: Units, groups: Sequence[Family], scores: Floats, sparsity: float, scope: str, weight: Floats
) -> Mask:
    """Return what goes at a share of the channels, or of the cost that families carry."""
    gone = np.zeros(units.count, np.bool_)
    kept = [family.kept(sparsity) for family in groups]
    if scope == "global" and groups:
        offered = [_options(family, scores, float(weight[family.units].mean())) for family in groups]
        costs = np.array([[min(o.cost for o in options), options[0].cost] for options in offered]).sum(axis=0)
        picks = allocate(offered, max(costs[0], costs[1] * (1 - sparsity)) if sparsity else costs[1])
        assert picks is not None, "the least is always allowed"
        kept = [family.counts()[pick] for family, pick in zip(groups, picks, strict=True)]
    for family, number in zip(groups, kept, strict=True):
        gone[family.going(scores, number)] = True
    return gone


def _options(family: Family, scores: Floats, weight: float) -> list[Option]:
    lost = np.concatenate([[0.0], np.cumsum(np.sort(scores[family.units]))])
    return [Option(weight * kept, float(lost[len(family.units) - kept])) for kept in family.counts()]


def _channels(units: Units, groups: Sequence[Family]) -> Floats:
    """The cost of a unit when channels are counted."""
    width = np.zeros(units.count)
    for family in groups:
        width[family.units] = family.width
    return width


def _revived(graph: Graph, units: Units, scores: Floats, gone: Mask) -> Mask:
    """Keep the best unit of every axis that would lose all."""
    if not gone.any():
        return gone
    gone = gone.copy()
    axes = [axes for value in graph.axes.values() for axes in value if axes is not None]
    axes += [axis for weight in graph.weights.values() for axis in weight.axes if axis is not None]
    for labels in axes:
        inside = units.of[labels]
        if len(inside) and gone[inside].all():
            gone[inside[scores[inside].argmax()]] = False
    return gone


class _Size:
    """Multiply-accumulates or parameters of a model whose units go."""

    def __init__(self, graph: Graph, units: Units, kind: str) -> None:
        self._units = units
        total = count(graph.model)
        self.total = total.macs if kind == "macs" else total.parameters
        self._parts = (
            [(cost.macs, [units.of[a] for a in cost.axes]) for cost in graph.costs]
            if kind == "macs"
            else _parameters(graph, units)
        )

    def left(self, gone: Mask) -> float:
        """What is left."""
        saved = 0.0
        for size, axes in self._parts:
            saved += size * (1.0 - float(np.prod([1.0 - gone[axis].mean() for axis in axes])))
        return self.total - saved

    def per_unit(self) -> Floats:
        """What each unit saves when it is the first to go."""
        found = np.zeros(self._units.count)
        for size, axes in self._parts:
            for axis in axes:
                found += np.bincount(axis, minlength=self._units.count) * (size / len(axis))
        return found


def _parameters(graph: Graph, units: Units) -> list[tuple[int, list[Labels]]]:
    """Elements of constants and the axes along which they are cut; a shared one counts once."""
    found: list[tuple[int, list[Labels]]] = []
    for weight in graph.weights.values():
        axes = [units.of[a] for a in weight.axes if a is not None]
        found.append((_elements(weight.value), axes))
    seen: set[ir.Value] = set()
    for value, labels in graph.taken:
        if value not in seen and value.dtype not in (ir.DataType.INT64, ir.DataType.BOOL):
            found.append((_elements(value), [units.of[labels]]))
        seen.add(value)
    return found


def _elements(value: ir.Value) -> int:
    return int(np.prod(walk.static_shape(value) or (0,)))
