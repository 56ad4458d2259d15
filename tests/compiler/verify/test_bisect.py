"""The search for guilty layers, on losses that are known."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.compiler.verify.bisect import Loss, exclude_line, find_guilty

LAYERS = [f"layer{i}" for i in range(20)]


def sum_of(costs: dict[str, float]) -> Loss:
    return lambda excluded: sum(cost for name, cost in costs.items() if name not in excluded)


def test_one_guilty_layer_is_named_alone() -> None:
    found = find_guilty(LAYERS, sum_of({"layer13": 5.0, "layer2": 0.1}), 0.5, measure="drop of top1")
    assert found.excluded == ("layer13",)
    assert found.solved
    assert (found.loss_before, found.loss) == (pytest.approx(5.1), pytest.approx(0.1))
    assert found.exclude_line == "--exclude layer13"


def test_two_layers_that_hurt_only_together_need_one_exclusion() -> None:
    found = find_guilty(LAYERS, lambda out: 0.0 if {"layer3", "layer9"} & out else 4.0, 1.0, measure="m")
    assert len(found.excluded) == 1


def test_two_layers_that_both_hurt_are_both_named() -> None:
    found = find_guilty(LAYERS, sum_of({"layer0": 3.0, "layer19": 3.0}), 1.0, measure="m")
    assert set(found.excluded) == {"layer0", "layer19"}


def test_a_loss_within_the_limit_excludes_nothing() -> None:
    found = find_guilty(LAYERS, sum_of({"layer1": 0.4}), 0.5, measure="m")
    assert (found.excluded, found.solved, found.exclude_line) == ((), True, "")
    assert len(found.trials) == 1


def test_a_loss_that_stays_in_float_is_not_blamed_on_layers() -> None:
    found = find_guilty(LAYERS, lambda out: 7.0, 0.5, measure="m")
    assert (found.excluded, found.solved) == ((), False)
    assert "look elsewhere" in found.note


def test_without_suspects_nothing_is_blamed() -> None:
    assert not find_guilty([], lambda out: 7.0, 0.5, measure="m").solved


def test_suspicion_makes_the_search_short() -> None:
    found = find_guilty(["layer7", *LAYERS], sum_of({"layer7": 5.0}), 0.5, measure="m")
    assert found.excluded == ("layer7",)
    assert len(found.trials) <= 8  # 1 + 1 + log2(21)


def test_the_search_ends_at_its_budget_with_a_set_that_works() -> None:
    costs = dict.fromkeys(LAYERS[::2], 1.0)
    found = find_guilty(LAYERS, sum_of(costs), 0.5, measure="m", budget=8)
    assert found.solved
    assert len(found.trials) == 8
    assert "budget" in found.note


def minimal(excluded: tuple[str, ...], loss: Callable[[frozenset[str]], float], limit: float) -> bool:
    whole = frozenset(excluded)
    return loss(whole) <= limit and all(loss(whole - {name}) > limit for name in whole)


@given(st.dictionaries(st.sampled_from(LAYERS), st.integers(1, 9), min_size=1), st.integers(0, 20))
def test_no_layer_of_the_result_can_be_spared(costs: dict[str, float], limit: int) -> None:
    loss = sum_of(costs)
    found = find_guilty(LAYERS, loss, limit, measure="m", budget=10_000)
    assert found.solved
    assert loss(frozenset(found.excluded)) <= limit
    assert not found.excluded or minimal(found.excluded, loss, limit)


def test_the_exclude_line_survives_a_shell() -> None:
    names = ["conv/1:0", "a b", "it's"]
    assert shlex.split(exclude_line(names)) == [part for name in names for part in ("--exclude", name)]
