"""Prune-and-grow lowers the expected output error, keeps the level, and respects N:M groups."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.passes.prune.dsnot import refine
from pared.passes.prune.masks import select
from pared.passes.prune.pattern import parse_pattern
from pared.passes.prune.swap import refine as swap


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


def correlated(seed: int, rows: int = 10, k: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, second moments of inputs near a subspace, and a magnitude mask."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 6)) @ rng.normal(size=(6, k)) + 0.3 * rng.normal(size=(300, k)) + 0.2
    weight = rng.normal(size=(rows, k))
    gone = select([np.square(weight)[None]], parse_pattern("unstructured"), 0.5, "row")[0][0]
    return weight, gone, x.T @ x / len(x)


def exact(weight: np.ndarray, gone: np.ndarray, gram: np.ndarray) -> np.ndarray:
    lost = weight * gone
    return np.einsum("rk,kl,rl->r", lost, gram, lost)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_exact_swaps_never_raise_the_error_and_keep_the_level(seed: int) -> None:
    weight, gone, gram = correlated(seed)
    better = swap(weight, gone, gram)
    assert np.array_equal(better.sum(axis=1), gone.sum(axis=1))
    before, after = exact(weight, gone, gram), exact(weight, better, gram)
    assert np.all(after <= before * (1 + 1e-9))
    assert after.sum() < before.sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_exact_swaps_end_where_growing_the_best_and_pruning_for_it_does_not_pay(seed: int) -> None:
    weight, gone, gram = correlated(seed, rows=3, k=8)
    better = swap(weight, gone, gram)
    for row in range(3):
        growths = []
        for j in np.flatnonzero(better[row]):
            mask = better[row : row + 1].copy()
            mask[0, j] = False
            growths.append((exact(weight[row : row + 1], mask, gram)[0], j))
        grown = min(growths)[1]
        now = exact(weight[row : row + 1], better[row : row + 1], gram)[0]
        for i in np.flatnonzero(~better[row]):
            mask = better[row : row + 1].copy()
            mask[0, grown], mask[0, i] = False, True
            assert exact(weight[row : row + 1], mask, gram)[0] >= now * (1 - 1e-6)


def test_exact_swaps_stay_within_groups_of_m() -> None:
    weight, _, gram = correlated(1)
    gone = select([np.square(weight)[None]], parse_pattern("2:4"), 0.5, "row")[0][0]
    better = swap(weight, gone, gram, step=4)
    assert np.all(better.reshape(10, 6, 4).sum(axis=2) == 2)
    assert exact(weight, better, gram).sum() < exact(weight, gone, gram).sum()
