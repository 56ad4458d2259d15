"""Output channels of binary layers along a spanning tree: each from its parent and the weights that differ.

A channel whose weights are -1 and +1 is its parent's result plus twice the inputs at which the two differ
(https://arxiv.org/abs/2308.13735, section III; there with popcounts of XNORs). A parent may be negated, so
that channels more than half of whose weights differ are near too. Prim's algorithm with a bound on depth:
every level costs an adder of latency. The differences are sparse, and common subexpressions are shared in
them as in any other matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .graph import Ints

if TYPE_CHECKING:
    from da4ml.types import Pipeline

# Levels below the first channel. Deeper trees gain little: docs/results/fpga_bnn.md.
DEPTH = 2
_LEAST_ROWS = 3

# Two more levels of adders are worth a tenth of the logic.
_WORTH = 0.9

Variables = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Tree:
    """`rows[c] = signs[c] * rows[parents[c]] + deltas[c]`; without a parent, `rows[c] = deltas[c]`.

    Attributes:
        order: all rows, parents before children.
        parents: -1 for none.
        signs: +1 or -1.
        deltas: of the shape of the rows; 0 or +-2 beside a parent.
    """

    order: tuple[int, ...]
    parents: Ints
    signs: Ints
    deltas: Ints

    @property
    def terms(self) -> int:
        """Inputs that are added over all channels, parents included."""
        return int(np.count_nonzero(self.deltas)) + int((self.parents >= 0).sum())


def is_binary(rows: Ints) -> bool:
    """Say whether all weights are -1 or +1, in rows enough for a tree."""
    return len(rows) >= _LEAST_ROWS and bool((np.abs(rows) == 1).all())


def spanning_tree(rows: Ints, depth: int = DEPTH) -> Tree:
    """Return a tree of small Hamming distances, at most `depth` levels below its root.

    Args:
        rows: [channels, inputs] of -1 and +1.
        depth: 0 leaves every channel by itself.
    """
    count, width = rows.shape
    cost = np.full(count, width, np.int64)
    parents, signs = np.full(count, -1, np.int64), np.ones(count, np.int64)
    levels, order = np.zeros(count, np.int64), []
    waiting = np.ones(count, np.bool_)
    while waiting.any():
        one = int(np.where(waiting, cost, np.iinfo(np.int64).max).argmin())
        waiting[one] = False
        order.append(one)
        levels[one] = levels[parents[one]] + 1 if parents[one] >= 0 else 0
        if levels[one] < depth:
            same = (rows @ rows[one] + width) // 2
            near = np.minimum(same, width - same) + 1
            closer = waiting & (near < cost)
            cost[closer], parents[closer] = near[closer], one
            signs[closer] = np.where(2 * same >= width, 1, -1)[closer]
    above = np.where(parents[:, None] >= 0, signs[:, None] * rows[parents], 0)
    return Tree(tuple(order), parents, signs, rows - above)


def multiply(
    rows: Ints, vector: Variables, solve: Callable[[Ints, Variables], Pipeline], depth: int = DEPTH
) -> Variables:
    """Return `rows @ vector`, along a tree where that costs clearly less.

    Args:
        rows: [channels, inputs].
        vector: traced integers.
        solve: returns additions with shared subexpressions, with their `cost`.
        depth: of the tree; 0 for none.
    """
    direct = solve(rows, vector)
    if depth and is_binary(rows):
        tree = spanning_tree(rows, depth)
        differences = solve(tree.deltas, vector)
        made = grow(tree, np.asarray(differences(vector), object))
        joined = sum(float(made[c].cost) for c in tree.order if tree.parents[c] >= 0)
        if float(differences.cost) + joined < _WORTH * float(direct.cost):
            return made
    return np.asarray(direct(vector), object)


def grow(tree: Tree, differences: Variables) -> Variables:
    """Return the channels from `deltas @ x`."""
    made = np.empty(len(differences), object)
    for one in tree.order:
        parent = int(tree.parents[one])
        own = differences[one]
        made[one] = own if parent < 0 else made[parent] * int(tree.signs[one]) + own
    return made
