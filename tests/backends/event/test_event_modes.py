from __future__ import annotations

import numpy as np
import pytest
from event_models import images, quantized

from pared.backends.event.backend import EventBackend
from pared.backends.event.modes import rate, run
from pared.backends.event.read import read
from pared.backends.event.simulate import graded, reals
from pared.compiler.errors import UnsupportedOp
from pared.compiler.pass_api import Context
from pared.targets import load_target


@pytest.mark.parametrize("mode", ["layer-sync", "signed-if", "unary"])
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
def test_exact_modes_end_at_the_graded_counts(name, bits, mode):
    graph = read(quantized(name, bits))
    inputs = {"image": images(540 if name == "digits_mlp" else 24)}
    want, trace = graded(graph, inputs), run(graph, inputs, mode)
    assert all(np.array_equal(trace.counts[layer.name], want[layer.name]) for layer in graph.layers)
    assert trace.steps > 0


def test_signed_neurons_take_residual_sums_of_both_signs():
    graph = read(quantized("digits_resnet", 4))
    inputs = {"image": images(4)}
    want, trace = graded(graph, inputs), run(graph, inputs, "signed-if")
    assert all(np.array_equal(trace.counts[layer.name], want[layer.name]) for layer in graph.layers)


def test_unary_refuses_counts_below_zero():
    with pytest.raises(UnsupportedOp, match="spikes of one sign") as error:
        run(read(quantized("digits_resnet", 4)), {"image": images(1)}, "unary")
    assert error.value.reason == "event-mode"


def test_binary_t1_takes_one_threshold_only():
    with pytest.raises(UnsupportedOp, match="15 thresholds"):
        run(read(quantized("digits_mlp", 4)), {"image": images(1)}, "binary-t1")


def test_rates_come_nearer_with_more_steps_and_are_not_exact():
    graph = read(quantized("digits_mlp", 4))
    inputs = {"image": images(40)}
    want = graded(graph, inputs)["logits"].argmax(1)
    first, last = (
        float(np.mean(rate(graph, inputs, steps)["logits"].argmax(1) == want)) for steps in (2, 32)
    )
    assert first < last
    assert last > 0.95


def test_rates_approach_the_counts_without_a_bias():
    # Offsets of thresholds flow in evenly; at the start they would fire before inhibition arrives.
    graph = read(quantized("digits_cnn", 4))
    inputs = {"image": images(12)}
    found, want = rate(graph, inputs, 64), graded(graph, inputs)
    for layer in graph.layers:
        if layer.ladder is not None:
            difference = found[layer.name] - want[layer.name]
            assert abs(difference.mean()) < 0.05, layer.name
            assert np.abs(difference).mean() < 0.25, layer.name


def test_modes_compile_as_engines_and_give_the_graded_output(tmp_path):
    target, model, backend = load_target("event-check"), quantized("digits_mlp", 2), EventBackend()
    assert backend.engines(target) == ["layer-sync", "signed-if", "unary", "binary-t1"]
    inputs = {"image": images(8)}
    graph = read(model)
    want = reals(graph, graded(graph, inputs))["logits"]
    for mode in ("layer-sync", "signed-if", "unary"):
        payload = backend.lower(model, target, mode, Context(target=target))
        folder = tmp_path / mode
        folder.mkdir()
        payload.move_to(folder)
        assert np.array_equal(backend.load(folder, mode, payload.options, None).run(inputs)["logits"], want)
    with pytest.raises(UnsupportedOp, match="3 thresholds"):
        backend.lower(model, target, "binary-t1", Context(target=target))
