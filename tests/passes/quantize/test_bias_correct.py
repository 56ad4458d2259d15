"""Bias correction brings the mean of every channel back, analytically and on the finished graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, run, samples

from pared.compiler.data import Samples
from pared.compiler.pass_api import Context
from pared.passes.quantize.bias_correct import (
    channel_means,
    correct_biases,
    expected_shift,
    refuse_bias,
)
from pared.passes.quantize.moments import collect_moments, layer_of
from pared.passes.quantize.quantize import Quantize

TWO_CONVS = """g (float[1,3,6,6] x, float[5,3,3,3] a, float[5] ab, float[4,5,3,3] c, float[4] cb) =>
    (float[1,4,h,w] y) { p = Conv<pads: ints = [1,1,1,1]>(x, a, ab) r = Relu(p) y = Conv(r, c, cb) }"""


def two_convs(seed: int = 0) -> tuple[ir.Model, Samples]:
    rng = np.random.default_rng(seed)
    shapes = {"a": (5, 3, 3, 3), "ab": (5,), "c": (4, 5, 3, 3), "cb": (4,)}
    model = graph(TWO_CONVS, **{k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()})
    return model, samples(model, x=rng.normal(size=(16, 3, 6, 6)).astype(np.float32) + 1.0)


def test_expected_shift_is_the_mean_output_change_of_a_convolution() -> None:
    model, data = two_convs()
    layer = layer_of(model.graph[2], (4, 5, 3, 3))
    assert not isinstance(layer, str)
    ((_, moments),) = collect_moments(model, [layer], data, Context(), gram=False)
    delta = np.random.default_rng(1).normal(size=(4, 5, 3, 3)).astype(np.float32)
    spoiled = model.clone()
    weight = spoiled.graph.initializers["c"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() + delta, name="c")
    change = (
        channel_means(spoiled, ["y"], data, Context())["y"]
        - channel_means(model, ["y"], data, Context())["y"]
    )
    # 45 float32 products of values below 100.
    np.testing.assert_allclose(
        expected_shift(layer, delta, moments.mean), change, rtol=0, atol=45 * 100 * 6e-8
    )


def test_channel_means_are_the_means_over_samples_and_positions() -> None:
    model, data = two_convs()
    outputs = np.concatenate([run(model, batch)["y"] for batch in data.batches(1)])
    got = channel_means(model, ["y"], data, Context())["y"]
    # A float32 mean of 16 values below 200 per sample.
    np.testing.assert_allclose(
        got, outputs.mean(axis=(0, 2, 3), dtype=np.float64), rtol=0, atol=16 * 200 * 6e-8
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_means_of_the_quantized_graph_are_those_of_the_float_model_to_half_a_bias_step(bits: int) -> None:
    model, data = two_convs()
    quantized = model.clone()
    Quantize(bits=bits, act="none" if bits == 4 else "static").apply(quantized, Context(calibration=data))
    layers = {str(node.name): str(node.outputs[0].name) for node in quantized.graph if node.op_type == "Conv"}
    before = channel_means(quantized, list(layers.values()), data, Context())
    stats = correct_biases(model, quantized, data, Context())
    wanted = channel_means(model, ["p", "y"], data, Context())
    after = channel_means(quantized, list(layers.values()), data, Context())
    assert stats.changed == 2
    for node, name in (("n0", "p"), ("n2", "y")):
        error, old = (np.abs(means[layers[node]] - wanted[name]).max() for means in (after, before))
        # An int32 step is below 0.06 * 0.06 here; float32 means of sums below 200 add 2e-4.
        assert error < 0.5 * 0.06**2 + 2e-4
        assert old > 3 * error


def test_the_model_compared_with_is_not_changed() -> None:
    model, data = two_convs()
    quantized = model.clone()
    Quantize().apply(quantized, Context(calibration=data))
    before = run(model, next(data.batches(1)))["y"]
    correct_biases(model, quantized, data, Context())
    np.testing.assert_array_equal(run(model, next(data.batches(1)))["y"], before)


def test_layers_unknown_to_the_float_model_are_refused() -> None:
    model, data = two_convs()
    other = model.clone()
    other.graph[0].name = "renamed"
    stats = correct_biases(model, other, data, Context())
    assert [(r.node, r.reason) for r in stats.refused] == [("renamed", "no such layer in the float model")]


def test_equal_models_are_left_alone() -> None:
    model, data = two_convs()
    assert correct_biases(model, model.clone(), data, Context()).changed == 0


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "adaround"])
def test_the_quantize_pass_takes_the_mean_error_of_weights_back(rounding: str) -> None:
    model, data = two_convs()
    errors = []
    for correct in (False, True):
        draft = model.clone()
        how = Quantize(bits=4, act="none", weights="tensor", rounding=rounding, bias_correct=correct)
        how.apply(draft, Context(calibration=data))
        got = channel_means(draft, ["p"], data, Context())["p"]
        errors.append(np.abs(got - channel_means(model, ["p"], data, Context())["p"]).max())
    # The first layer sees the same inputs in both models, so only float32 rounding is left: 27 products < 20.
    assert errors[1] < 27 * 20 * 6e-8
    assert errors[0] > 100 * errors[1]


def test_a_bias_can_be_added_but_a_computed_one_not_shifted() -> None:
    model = graph(
        "g (float[2,3] x, float[3,4] w, float[4] b) => (float[2,4] y) "
        "{ s = Gemm(x, w) t = Gemm(x, w, b) y = Add(s, t) }",
        w=np.ones((3, 4), np.float32),
    )
    assert refuse_bias(model.graph[0]) is None
    assert refuse_bias(model.graph[1]) == "bias 'b' is not constant"
    assert refuse_bias(model.graph[2]) == "Add has no bias"


def test_the_quantize_pass_corrects_measured_means_of_outputs() -> None:
    model, data = two_convs()
    means = []
    for how in (False, "measured"):
        draft = model.clone()
        stats = Quantize(act_bits=4, bias_correct=how).apply(draft, Context(calibration=data))
        (last,) = [n for n in draft.graph if n.name == "n2"]
        means.append(channel_means(draft, [str(last.outputs[0].name)], data, Context()).popitem()[1])
    wanted = channel_means(model, ["y"], data, Context())["y"]
    assert stats.details["biases_corrected"] == 2
    # A float bias is corrected exactly but for the float32 means of sums below 200.
    assert np.abs(means[1] - wanted).max() < 2e-4
    assert np.abs(means[0] - wanted).max() > 1e-2
