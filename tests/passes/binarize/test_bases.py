"""Bases of weights: closed forms, exactness, and that no refinement makes its own objective worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.passes.binarize import bases as b
from pared.passes.binarize import outputs


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def gram_of(seed: int, k: int) -> np.ndarray:
    x = np.maximum(normal(seed, 3 * k, k) @ normal(seed + 1, k, k), 0)
    gram: np.ndarray = x.T @ x / len(x)
    return gram + 0.01 * np.diag(gram).mean() * np.eye(k)


def test_one_binary_basis_has_the_mean_magnitude_as_its_scale() -> None:
    w = normal(0, 5, 40)
    found = b.residual(w, 1)
    np.testing.assert_allclose(found.scales[0], np.abs(w).mean(axis=1), rtol=1e-15)
    np.testing.assert_array_equal(found.codes[0], np.where(w >= 0, 1, -1))


def test_one_ternary_basis_is_the_best_of_all_thresholds() -> None:
    w = normal(1, 1, 9)
    error = b.square_error(w, b.one_basis(w, ternary=True))[0]
    for threshold in np.abs(w[0]):
        kept = np.abs(w) >= threshold
        scale = np.abs(w[kept]).mean()
        assert error <= np.square(w - scale * kept * np.sign(w)).sum() + 1e-12


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_weights_that_are_a_sum_of_bases_lose_nothing(count: int, ternary: bool) -> None:
    words = b.alphabet(count, ternary)
    scales = np.array([[1.0, 0.3], [0.25, 0.1]])[:count]
    index = np.random.default_rng(2).integers(len(words), size=(2, 60))
    w = np.einsum("rck,kr->rc", words[index], scales)
    found = b.alternating(w, count, ternary)
    np.testing.assert_allclose(found.matrix(), w, atol=1e-12)


@pytest.mark.parametrize("count", [3, 4])
def test_evenly_spaced_weights_lose_nothing(count: int) -> None:
    levels = np.arange(-(2**count) + 1, 2**count, 2) * 0.1
    w = np.random.default_rng(3).permutation(np.repeat(levels, 4))[None]
    np.testing.assert_allclose(b.alternating(w, count).matrix(), w, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 4), st.booleans(), st.integers(1, 12))
def test_alternating_is_never_worse_than_the_residual(seed: int, count: int, ternary: bool, k: int) -> None:
    count = min(count, 2) if ternary else count
    w = normal(seed, 3, k) ** 3
    before = b.square_error(w, b.residual(w, count, ternary))
    assert (b.square_error(w, b.alternating(w, count, ternary)) <= before * (1 + 1e-12) + 1e-15).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 3), st.booleans(), st.integers(2, 12))
def test_fitting_to_outputs_is_never_worse_on_the_outputs(
    seed: int, count: int, ternary: bool, k: int
) -> None:
    count = min(count, 2) if ternary else count
    w, gram = normal(seed, 3, k), gram_of(seed + 1, k)
    before = outputs.output_error(w, gram, b.alternating(w, count, ternary))
    after = outputs.output_error(w, gram, outputs.fit(w, gram, count, ternary))
    assert (after <= before * (1 + 1e-12) + 1e-15).all()


def test_fitting_to_outputs_gains_decibels_on_correlated_inputs() -> None:
    w, gram = normal(4, 16, 48), gram_of(5, 48)
    before = outputs.output_error(w, gram, b.alternating(w, 2)).sum()
    assert outputs.output_error(w, gram, outputs.fit(w, gram, 2)).sum() < before / 2


def test_descent_finds_the_best_codes_of_a_small_row() -> None:
    w, gram = normal(6, 1, 6), gram_of(7, 6)
    found = outputs.fit(w, gram, 1)
    scale = found.scales[0, 0]
    every = b.alphabet(6, ternary=False) * scale
    best = min(float((v - w[0]) @ gram @ (v - w[0])) for v in every)
    assert outputs.output_error(w, gram, found)[0] <= best * 1.25


def test_scales_are_positive_also_for_rows_of_zeros() -> None:
    w = np.vstack([np.zeros(8), normal(8, 1, 8)])
    found = b.alternating(w, 2).positive()
    assert (found.scales > 0).all()
    assert np.abs(found.matrix()[0]).max() < 1e-10


def test_negative_scales_turn_their_codes() -> None:
    found = b.Bases(np.array([[[1, -1, 1]]], np.int8), np.array([[-0.5]]))
    np.testing.assert_array_equal(found.positive().matrix(), found.matrix())
    assert found.positive().scales[0, 0] == 0.5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 4), st.booleans())
def test_bytes_hold_the_sum_within_their_steps(seed: int, count: int, ternary: bool) -> None:
    count = min(count, 2) if ternary else count
    found = b.alternating(normal(seed, 4, 20), count, ternary).positive()
    integers, scales = b.in_bytes(found)
    step = found.scales.sum(axis=0) / 127
    off = np.abs(integers * scales[:, None] - found.matrix())
    assert (off <= (count + 1) * step[:, None]).all()
    assert np.abs(integers.astype(int)).max() <= 127
