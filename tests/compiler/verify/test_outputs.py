"""Differences, bounds and their overrides."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pared.compiler.differences import largest_difference
from pared.compiler.verify.outputs import Limit, OutputJudge, override

EXACT = Limit(0.0, 0.0, "integers")


def judged(limit: Limit, *pairs: tuple[object, object]) -> OutputJudge:
    judge = OutputJudge("y", "reference", limit)
    for got, want in pairs:
        judge.add(np.asarray(got), np.asarray(want))
    return judge


def test_equal_integers_are_exact() -> None:
    assert judged(EXACT, ([1, 2], [1, 2])).result().passed


def test_one_step_off_is_not_exact() -> None:
    check = judged(EXACT, ([1, 2], [1, 2]), ([1, 3], [1, 2])).result()
    assert (check.passed, check.max_difference, check.worst_sample) == (False, 1.0, 1)
    assert check.used == math.inf


def test_neighbours_beyond_float64_are_not_equal() -> None:
    assert largest_difference(np.array([2**60]), np.array([2**60 + 1])) > 0


def test_the_bound_is_relative_to_the_largest_value() -> None:
    limit = Limit(0.0, 0.01, "derived")
    assert judged(limit, ([0.0, 10.09], [0.0, 10.0])).result().passed
    assert not judged(limit, ([0.11, 10.0], [0.0, 10.0])).result().passed


def test_the_worst_sample_uses_most_of_its_bound() -> None:
    check = judged(Limit(0.0, 0.1, ""), ([110.0], [100.0]), ([2.0], [1.0])).result()
    assert (check.worst_sample, check.max_difference) == (1, 10.0)
    assert check.used == pytest.approx(10.0)
    assert check.allowed == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("got", "want", "difference"),
    [
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, -np.inf], [np.inf, -np.inf], 0.0),
        ([np.nan], [1.0], math.inf),
        ([1.0], [np.nan], math.inf),
        ([np.inf], [1.0], math.inf),
        ([np.inf], [-np.inf], math.inf),
        ([[1.0]], [1.0], math.inf),
        (["a"], ["a"], 0.0),
        (["a"], ["b"], math.inf),
        ([True], [False], 1.0),
        ([200], [100], 100.0),
        ([], [], 0.0),
    ],
)
def test_differences(got: list[object], want: list[object], difference: float) -> None:
    assert largest_difference(np.array(got), np.array(want)) == difference


def test_uint8_differences_do_not_wrap() -> None:
    assert largest_difference(np.array([1], np.uint8), np.array([2], np.uint8)) == 1.0


def test_the_users_number_is_the_whole_limit() -> None:
    stated = Limit(1.0, 1.0, "derived")
    assert override(stated, "y", {}, {"y": 0.5}) == Limit(0.5, 0.0, "given by the user")
    assert override(stated, "y", {"": 0.25}, {}) == Limit(0.0, 0.25, "given by the user")
    assert override(stated, "y", {"other": 0.25}, {}) is stated


def test_the_name_goes_before_the_rule_for_all() -> None:
    assert override(EXACT, "y", {}, {"": 1.0, "y": 2.0}).atol == 2.0


def test_a_sample_beyond_the_bound_is_judged_anew_and_the_report_says_so() -> None:
    judge = OutputJudge("y", "reference", Limit(0.1, 0.0, "stated"))
    judge.add(np.array([1.5]), np.array([1.0]), lambda name, got, want: (0.5, 1.0))
    check = judge.result()
    assert (check.passed, check.used, check.allowed) == (True, 0.5, 1.0)
    assert "1 of 1 samples" in check.how


def test_a_sample_within_the_bound_is_not_judged_anew() -> None:
    judge = OutputJudge("y", "reference", Limit(1.0, 0.0, "stated"))
    judge.add(np.array([1.5]), np.array([1.0]), lambda name, got, want: (9.0, 0.0))
    assert (judge.result().passed, judge.result().how) == (True, "stated")


def test_a_sample_beyond_both_bounds_fails() -> None:
    judge = OutputJudge("y", "reference", EXACT)
    judge.add(np.array([2]), np.array([1]), lambda name, got, want: (2.0, 0.5))
    assert not judge.result().passed


def test_a_bound_of_the_user_is_final() -> None:
    limit = override(EXACT, "y", {}, {"y": 0.1})
    judge = OutputJudge("y", "reference", limit)
    judge.add(np.array([1.5]), np.array([1.0]), lambda name, got, want: (0.0, 9.0))
    assert not judge.result().passed
