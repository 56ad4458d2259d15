"""allocate: the budget holds, and the loss is near the best there is."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pared.passes.allocate import Option, allocate, least_cost

OPTIONS = st.lists(
    st.builds(Option, st.integers(0, 50).map(float), st.integers(0, 50).map(float)), min_size=1, max_size=4
)


@given(st.lists(OPTIONS, min_size=1, max_size=4), st.integers(0, 200))
def test_the_budget_holds_and_the_loss_is_within_one_step_of_the_best(
    layers: list[list[Option]], budget: int
) -> None:
    found = allocate(layers, budget)
    choices = [c for c in itertools.product(*layers) if sum(o.cost for o in c) <= budget]
    if not choices:
        assert found is None
        return
    assert found is not None
    chosen = [options[i] for options, i in zip(layers, found, strict=True)]
    assert sum(o.cost for o in chosen) <= budget
    best = min(sum(o.loss for o in c) for c in choices)
    step = max(max(o.loss for o in options) - min(o.loss for o in options) for options in layers)
    assert sum(o.loss for o in chosen) <= best + step


@given(st.lists(OPTIONS, min_size=1, max_size=4))
def test_the_least_cost_is_reached(layers: list[list[Option]]) -> None:
    assert allocate(layers, least_cost(layers)) is not None
    assert allocate(layers, least_cost(layers) - 1) is None
