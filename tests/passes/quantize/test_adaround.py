"""Rounding by layer reconstruction lowers the output error and never raises it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from small_models import graph

from pared.passes.quantize.adaround import Grid, Method, round_layer, round_weights
from pared.passes.quantize.moments import layer_of

METHODS: tuple[Method, ...] = ("adaround", "gptq")


def correlated(rng: np.random.Generator, samples: int, size: int, rank: int) -> np.ndarray:
    """Inputs that lie near a subspace, as activations do."""
    x = rng.normal(size=(samples, rank)) @ rng.normal(size=(rank, size))
    return x + 0.3 * rng.normal(size=(samples, size))


def problem(seed: int, bits: int, rows: int = 12, size: int = 40) -> tuple[np.ndarray, Grid, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = correlated(rng, 500, size, 8)
    weight = rng.normal(size=(rows, size))
    top = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=1, keepdims=True) / top
    return weight, Grid(scale, -top, top), x


def output_error(weight: np.ndarray, grid: Grid, q: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Mean squared output error per channel, computed from the samples themselves."""
    return np.mean(((q * grid.scale - weight) @ x.T) ** 2, axis=1)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_output_error_is_less_than_half_of_nearest_on_correlated_inputs(method: Method, bits: int) -> None:
    weight, grid, x = problem(bits, bits)
    found = round_weights(weight, grid, (x.T @ x / len(x))[None], method)
    nearest = output_error(weight, grid, np.clip(np.rint(weight / grid.scale), grid.qmin, grid.qmax), x)
    assert output_error(weight, grid, found.q, x).sum() < 0.5 * nearest.sum()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", METHODS)
def test_no_channel_is_worse_than_nearest(method: Method, seed: int) -> None:
    weight, grid, _ = problem(seed, 3, rows=64, size=9)
    # Nearly white inputs: there is little to gain, and a heuristic loses on some channels.
    x = np.random.default_rng(seed).normal(size=(60, 9))
    found = round_weights(weight, grid, (x.T @ x / len(x))[None], method)
    nearest = output_error(weight, grid, np.clip(np.rint(weight / grid.scale), grid.qmin, grid.qmax), x)
    # Both are sums of 60 x 9 float64 products: the comparison may be off by a relative 1e-12.
    assert np.all(output_error(weight, grid, found.q, x) <= nearest * (1 + 1e-12))


@pytest.mark.parametrize("method", METHODS)
def test_channels_that_cannot_gain_keep_nearest(method: Method) -> None:
    weight, grid, _ = problem(0, 4)
    white = np.eye(weight.shape[1])[None]
    found = round_weights(weight, grid, white, method)
    np.testing.assert_array_equal(found.q, np.rint(weight / grid.scale))


@pytest.mark.parametrize("method", METHODS)
def test_reported_errors_are_those_of_the_samples(method: Method) -> None:
    weight, grid, x = problem(1, 4)
    found = round_weights(weight, grid, (x.T @ x / len(x))[None], method)
    # Sums of 500 x 40 float64 products: relative error far below 1e-9.
    np.testing.assert_allclose(found.error, output_error(weight, grid, found.q, x), rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_integers_stay_on_the_grid(method: Method) -> None:
    weight, grid, x = problem(2, 2)
    found = round_weights(weight, grid, (x.T @ x / len(x))[None], method)
    assert found.q.min() >= grid.qmin
    assert found.q.max() <= grid.qmax


@pytest.mark.parametrize("method", METHODS)
def test_a_channel_that_sees_no_input_is_rounded_to_nearest(method: Method) -> None:
    weight, grid, _ = problem(3, 4)
    found = round_weights(weight, grid, np.zeros((1, 40, 40)), method)
    np.testing.assert_array_equal(found.q, np.rint(weight / grid.scale))


def test_the_best_of_all_roundings_is_reached_on_a_layer_small_enough_to_try_them() -> None:
    rng = np.random.default_rng(7)
    x = correlated(rng, 200, 6, 2)
    weight = rng.normal(size=(1, 6))
    grid = Grid(np.array([[0.25]]), -7, 7)
    gram = x.T @ x / len(x)
    floor = np.floor(weight / 0.25)
    best = min(
        output_error(weight, grid, np.clip(floor + np.array(ups), -7, 7), x)[0]
        for ups in itertools.product((0, 1), repeat=6)
    )
    found = round_weights(weight, grid, gram[None], "adaround")
    assert found.error[0] <= best * 1.5
    assert found.error[0] < found.nearest_error[0]


def test_groups_are_rounded_as_if_each_were_a_layer() -> None:
    one, two = problem(4, 4), problem(5, 4)
    grams = np.stack([x.T @ x / len(x) for _, _, x in (one, two)])
    weight = np.concatenate([one[0], two[0]])
    grid = Grid(np.concatenate([one[1].scale, two[1].scale]), -7, 7)
    together = round_weights(weight, grid, grams, "gptq").q
    apart = [
        round_weights(w, g, gram[None], "gptq").q for (w, g, _), gram in zip((one, two), grams, strict=True)
    ]
    np.testing.assert_array_equal(together, np.concatenate(apart))


def test_a_zero_point_moves_the_integers_and_nothing_else() -> None:
    weight, grid, x = problem(6, 4)
    gram = (x.T @ x / len(x))[None]
    shifted = Grid(grid.scale, grid.qmin + 5, grid.qmax + 5, np.full((1, 1), 5.0))
    np.testing.assert_array_equal(
        round_weights(weight, shifted, gram, "gptq").q, round_weights(weight, grid, gram, "gptq").q + 5
    )


def test_the_same_seed_gives_the_same_integers() -> None:
    weight, grid, x = problem(8, 3)
    gram = (x.T @ x / len(x))[None]
    first, second = (round_weights(weight, grid, gram, "adaround", seed=3).q for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_gets_integers_in_its_own_layout(transposed: bool) -> None:
    weight, grid, x = problem(9, 4)
    stored = weight.T.copy() if transposed else weight
    text = f"g (float[N,40] x, float[{','.join(map(str, stored.shape))}] w) => (float[N,12] y) {{ y = Gemm"
    text += "(x, w) }" if transposed else "<transB: int = 1>(x, w) }"
    model = graph(text, w=stored.astype(np.float32))
    layer = layer_of(model.graph[0], stored.shape)
    assert not isinstance(layer, str)
    gram = (x.T @ x / len(x))[None]
    scale = grid.scale.T if transposed else grid.scale
    q, _ = round_layer(layer, stored, Grid(scale, -7, 7), gram, "gptq")
    expected = round_weights(weight, grid, gram, "gptq").q
    np.testing.assert_array_equal(q.T if transposed else q, expected)
