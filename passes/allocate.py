"""One option per layer under a budget: the classic multiple-choice knapsack, solved along convex hulls.

Each layer offers options of a cost (MACs, bytes, parameters, time) and a loss. Starting from the option of
least loss everywhere, the step that saves most cost per added loss is taken until the budget holds (Everett
1963; Fox 1966). Only options on the lower convex hull of a layer are ever taken, so the loss is above the
optimum by one layer's last step at most.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to treat a layer.

    Attributes:
        cost: in any unit, the same for all layers.
        loss: what it does to the result; losses of layers add up.
    """

    cost: float
    loss: float


def allocate(layers: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """Return the index of the chosen option of every layer, None when no choice meets the budget.

    Args:
        layers: options of each layer, at least one each, in any order.
        budget: largest sum of costs.
    """
    hulls = [_hull(options) for options in layers]
    taken = [0] * len(layers)
    cost = sum(layers[i][hull[0]].cost for i, hull in enumerate(hulls))
    steps = [_step(layers[i], hull, 0, i) for i, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(steps)
    while cost > budget and steps:
        _, i, saved = heapq.heappop(steps)
        cost -= saved
        taken[i] += 1
        if taken[i] + 1 < len(hulls[i]):
            heapq.heappush(steps, _step(layers[i], hulls[i], taken[i], i))
    # Sums of many floats: a budget that is met on paper must not fail by its last bit.
    if cost > budget * (1 + 1e-12):
        return None
    return [hull[position] for hull, position in zip(hulls, taken, strict=True)]


def least_cost(layers: Sequence[Sequence[Option]]) -> float:
    """Return the lowest cost that any choice has."""
    return sum(min(option.cost for option in options) for options in layers)


def _step(options: Sequence[Option], hull: Sequence[int], at: int, layer: int) -> tuple[float, int, float]:
    """Return (added loss per saved cost, layer, saved cost) of the next step along a hull."""
    here, there = options[hull[at]], options[hull[at + 1]]
    saved = here.cost - there.cost
    return (there.loss - here.loss) / saved, layer, saved


def _hull(options: Sequence[Option]) -> list[int]:
    """Return the options on the lower convex hull, from least loss (cheapest such) to least cost."""
    order = sorted(range(len(options)), key=lambda i: (options[i].loss, options[i].cost))
    hull = [order[0]]
    for i in order[1:]:
        if options[i].cost >= options[hull[-1]].cost:
            continue
        while len(hull) > 1 and _slope(options, hull[-2], hull[-1]) >= _slope(options, hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _slope(options: Sequence[Option], first: int, second: int) -> float:
    a, b = options[first], options[second]
    return (b.loss - a.loss) / (a.cost - b.cost)
