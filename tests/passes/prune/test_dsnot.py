"""Prune-and-grow lowers the expected output error, keeps the level, and respects N:M groups."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.passes.prune.dsnot import refine
from pared.passes.prune.masks import select
from pared.passes.prune.pattern import parse_pattern


def problem(seed: int, rows: int = 12, k: int = 40, step: str = "unstructured") -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    weight, mean, variance = rng.normal(size=(rows, k)), rng.normal(size=k), rng.random(k) + 0.1
    power = variance + mean**2
    gone = select([np.square(weight)[None] * power], parse_pattern(step), 0.6, "row")[0][0]
    return weight, gone, mean, power


def expected(weight: np.ndarray, gone: np.ndarray, mean: np.ndarray, power: np.ndarray) -> np.ndarray:
    """E of the squared output error with independent inputs."""
    lost = weight * gone
    return (lost @ mean) ** 2 + lost**2 @ (power - mean**2)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_row_gets_worse_and_every_row_keeps_its_level(seed: int) -> None:
    weight, gone, mean, power = problem(seed)
    better = refine(weight, gone, mean, power)
    assert np.array_equal(better.sum(axis=1), gone.sum(axis=1))
    before, after = expected(weight, gone, mean, power), expected(weight, better, mean, power)
    assert np.all(after <= before * (1 + 1e-12))


def test_the_mean_error_shrinks_to_less_than_half() -> None:
    weight, gone, mean, power = problem(3, rows=64, k=200)
    error = np.abs((weight * gone) @ mean)
    after = np.abs((weight * refine(weight, gone, mean, power)) @ mean)
    assert after.sum() < 0.5 * error.sum()


def test_inputs_without_a_mean_are_left_alone() -> None:
    weight, gone, mean, power = problem(4)
    assert np.array_equal(refine(weight, gone, np.zeros_like(mean), power), gone)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_swaps_stay_within_groups_of_m(seed: int) -> None:
    weight, gone, mean, power = problem(seed, step="2:4")
    better = refine(weight, gone, mean, power, step=4)
    assert np.all(better.reshape(12, 10, 4).sum(axis=2) == 2)
