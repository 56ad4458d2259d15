from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.event.egru import ONE, Egru, EgruWeights, dense
from pared.compiler.errors import DataError


def layer(inputs: int = 6, neurons: int = 20, theta: float = 0.2, seed: int = 0) -> EgruWeights:
    rng = np.random.default_rng(seed)
    return EgruWeights.quantized(
        rng.normal(0, 0.6, (3, neurons, inputs)), rng.normal(0, 0.4, (3, neurons, neurons)),
        rng.normal(0, 0.5, (3, neurons)), np.full(neurons, theta),
    )  # fmt: skip


def frames(steps: int, inputs: int = 6, still: float = 0.6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.normal(0, 1, (steps, inputs))
    for index in range(1, steps):
        same = rng.random(inputs) < still
        found[index, same] = found[index - 1, same]
    return found


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 30), st.sampled_from([0.02, 0.2, 0.7]))
@settings(max_examples=40, deadline=None)
def test_skipping_gives_the_integers_of_dense_execution(seed, inputs, neurons, theta):
    weights, x = layer(inputs, neurons, theta, seed), frames(12, inputs, seed=seed)
    network, (outputs, states) = Egru(weights), dense(weights, x)
    for frame, y, c in zip(x, outputs, states, strict=True):
        assert np.array_equal(network.step(frame), y)
        assert np.array_equal(network.state, c)


def test_work_is_counted_by_hand():
    weights, x = layer(), frames(15)
    network, outputs = Egru(weights), dense(weights, x)[0]
    for frame in x:
        network.step(frame)
    moved = [int(np.count_nonzero(np.rint(now * ONE) != np.rint(old * ONE))) for old, now in pairwise(x)]
    changes, fired = 6 + sum(moved), int(np.count_nonzero(outputs[:-1]))
    assert network.work.operations == (changes + fired) * 3 * 20
    assert network.work.dense == 15 * (6 + 20) * 3 * 20
    assert network.work.events == np.count_nonzero(outputs)
    assert 0 < network.work.skipped < 1


def test_a_higher_threshold_sends_less_and_skips_more():
    x = frames(60)
    networks = [Egru(layer(theta=theta)) for theta in (0.05, 0.6)]
    for network in networks:
        for frame in x:
            network.step(frame)
    assert networks[1].work.events < networks[0].work.events
    assert networks[1].work.skipped > networks[0].work.skipped


def test_the_state_stays_between_calls_and_reset_forgets_it():
    network, x = Egru(layer()), frames(5)
    first = [network.step(frame) for frame in x]
    assert not np.array_equal(network.step(x[0]), first[0])
    network.reset()
    assert all(np.array_equal(network.step(frame), y) for frame, y in zip(x, first, strict=True))


@pytest.mark.parametrize("frame", [np.zeros(5), np.full(6, np.nan), np.full(6, np.inf), np.full(6, 1e9)])
def test_a_bad_frame_is_refused_and_changes_nothing(frame):
    network, x = Egru(layer()), frames(2)
    network.step(x[0])
    before = network.state
    with pytest.raises(DataError) as error:
        network.step(frame)
    assert error.value.reason == "egru-input"
    assert np.array_equal(network.state, before)


def test_weights_that_make_no_layer_are_refused():
    with pytest.raises(DataError, match="no layer"):
        EgruWeights.quantized(np.zeros((3, 4, 2)), np.zeros((3, 4, 5)), np.zeros((3, 4)), np.ones(4))
    with pytest.raises(DataError, match="threshold"):
        EgruWeights.quantized(np.zeros((3, 4, 2)), np.zeros((3, 4, 4)), np.zeros((3, 4)), np.zeros(4))
