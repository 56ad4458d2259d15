"""Raised thresholds: silent where they say, made up for in biases, never beyond the stated error."""

from __future__ import annotations

import numpy as np
import pytest
from event_models import images, quantized

from pared.backends.event.bounds import layer_bounds
from pared.backends.event.read import read
from pared.backends.event.simulate import accumulate, graded
from pared.backends.event.thresholds import raise_thresholds, silenced


@pytest.fixture(scope="module")
def mlp():
    graph = read(quantized("digits_mlp", 8))
    return graph, graded(graph, {"image": images(16)})


def test_counts_up_to_the_level_are_silent_and_all_others_stay(mlp):
    graph, counts = mlp
    name = graph.layers[0].name
    found = graded(silenced(graph, {name: 9}, counts), {"image": images(16)})[name]
    assert np.array_equal(found, np.where(counts[name] > 9, counts[name], 0))
    assert np.any((counts[name] > 0) & (counts[name] <= 9))


def test_the_mean_accumulator_behind_stays(mlp):
    graph, counts = mlp
    changed = silenced(graph, {graph.layers[0].name: 20}, counts)
    first = graded(changed, {"image": images(16)})
    before = accumulate(graph, graph.layers[1], counts).mean(axis=0)
    after = accumulate(changed, changed.layers[1], first).mean(axis=0)
    plain = accumulate(graph, graph.layers[1], first).mean(axis=0)
    # Rounding of the bias: half a step.
    assert np.max(np.abs(after - before)) <= 0.5 + 1e-9
    assert np.max(np.abs(plain - before)) > 10


def test_biases_of_a_convolution_change_with_its_bounds():
    graph = read(quantized("digits_cnn", 8))
    counts = graded(graph, {"image": images(8)})
    changed = silenced(graph, {graph.layers[0].name: 12}, counts).layers[1]
    low, high = layer_bounds(graph, changed)
    assert changed.bounds == (int(low.min()), int(high.max()))
    assert np.any(changed.bias != graph.layers[1].bias)


def test_fewer_operations_within_the_error(mlp):
    graph, _ = mlp
    found = raise_thresholds(graph, {"image": images(16)}, 0.02)
    assert found.error <= 0.02
    assert found.after < found.before
    assert found.levels


def test_no_error_allowed_changes_nothing(mlp):
    graph, counts = mlp
    found = raise_thresholds(graph, {"image": images(16)}, 0.0)
    again = graded(found.graph, {"image": images(16)})
    assert all(np.array_equal(again[layer.name], counts[layer.name]) for layer in graph.layers[-1:])


def test_outputs_and_what_maxima_read_keep_their_thresholds():
    graph = read(quantized("digits_cnn", 4))
    found = raise_thresholds(graph, {"image": images(8)}, 0.05)
    pooled = {
        c.source for layer in graph.layers for c in layer.connections if "Pool" in type(c.synapses).__name__
    }
    assert pooled
    assert not pooled & set(found.levels)
    assert graph.outputs[0].layer not in found.levels
