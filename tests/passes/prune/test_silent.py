"""`prune-silent` removes channels that never change, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from prune_nets import graph, mlp, normal, ran, samples, weight

from pared.compiler.errors import DataError, PipelineError
from pared.compiler.ir.stats import count
from pared.compiler.ir.text import fingerprint
from pared.compiler.ort import make_session, run_session


def dead(bias: float = -100.0) -> ir.Model:
    """Gemm, Relu, Gemm with 8 hidden neurons; neurons 2 and 5 have weights of 0 and the given bias."""
    first, at = normal(0, 6, 8), [2, 5]
    first[:, at] = 0
    shift = np.zeros(8, np.float32)
    shift[at] = bias
    weights = {"w0": first, "b0": shift, "w1": normal(1, 8, 3), "b1": normal(2, 3)}
    body = "h = Gemm(x, w0, b0)\n r = Relu(h)\n y = Gemm(r, w1, b1)"
    return graph(body, {"x": ("n", 6)}, {"y": ("n", 3)}, weights)


def image(pads: str, bias: float) -> ir.Model:
    """Conv, Relu, Conv over images; channel 1 of the first has weights of 0 and the given bias."""
    first = normal(0, 4, 2, 3, 3)
    first[1] = 0
    shift = np.array([0, bias, 0, 0], np.float32)
    weights = {"w0": first, "b0": shift, "w1": normal(1, 3, 4, 3, 3), "b1": normal(2, 3)}
    body = f"h = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)\n r = Relu(h)\n y = Conv <pads = {pads}> (r, w1, b1)"
    size = 6 if pads.startswith("[1") else 4
    return graph(body, {"x": (1, 2, 6, 6)}, {"y": (1, 3, size, size)}, weights)


def difference(model: ir.Model, other: ir.Model) -> float:
    a, b = make_session(model), make_session(other)
    data = samples(model).batches(1)
    return max(float(np.abs(run_session(a, x)["y"] - run_session(b, x)["y"]).max()) for x in data)


# Sums of 8 terms of float32 near 1 in another order: 8 * 2^-23 * 100 is far above what they may differ by.
ROUNDING = 1e-4


def test_dead_neurons_go_and_outputs_stay() -> None:
    model = dead()
    found, stats = ran(model, "prune-silent", samples(model))
    assert weight(found, "w0").shape == (6, 6)
    assert weight(found, "w1").shape == (6, 3)
    assert difference(model, found) < ROUNDING
    assert stats.details["channels_cut"] == 2
    assert json.loads(stats.attachments["silent.json"])[0]["channels_left"] == 6


def test_what_a_constant_neuron_adds_becomes_bias() -> None:
    model = dead(bias=3.0)
    found, _ = ran(model, "prune-silent", samples(model))
    assert weight(found, "w0").shape == (6, 6)
    want = weight(model, "b1") + 3 * weight(model, "w1")[[2, 5]].sum(axis=0)
    assert np.allclose(weight(found, "b1"), want, rtol=0, atol=1e-5)
    assert difference(model, found) < ROUNDING


def test_a_silent_channel_of_an_image_goes_behind_padding() -> None:
    model = image("[1, 1, 1, 1]", -1.0)
    found, _ = ran(model, "prune-silent", samples(model))
    assert weight(found, "w1").shape == (3, 3, 3, 3)
    assert difference(model, found) < ROUNDING


def test_a_constant_channel_that_is_not_0_stays_behind_padding() -> None:
    model = image("[1, 1, 1, 1]", 2.0)
    found, stats = ran(model, "prune-silent", samples(model))
    assert stats.changed == 0
    assert fingerprint(found) == fingerprint(model)


def test_a_constant_channel_that_is_not_0_goes_without_padding() -> None:
    model = image("[0, 0, 0, 0]", 2.0)
    found, _ = ran(model, "prune-silent", samples(model))
    assert weight(found, "w1").shape == (3, 3, 3, 3)
    assert difference(model, found) < ROUNDING


def test_a_model_in_which_all_move_stays() -> None:
    model = mlp()
    found, stats = ran(model, "prune-silent", samples(model))
    assert stats.changed == 0
    assert fingerprint(found) == fingerprint(model)


def test_a_layer_keeps_a_channel_when_all_are_silent() -> None:
    model = dead()
    weights = {"w0": np.zeros((6, 8), np.float32), "b0": np.full(8, -1, np.float32)}
    rest = {"w1": weight(model, "w1"), "b1": weight(model, "b1")}
    body = "h = Gemm(x, w0, b0)\n r = Relu(h)\n y = Gemm(r, w1, b1)"
    model = graph(body, {"x": ("n", 6)}, {"y": ("n", 3)}, {**weights, **rest})
    found, _ = ran(model, "prune-silent", samples(model))
    assert weight(found, "w0").shape == (6, 1)
    assert difference(model, found) < ROUNDING


def test_a_neuron_that_is_also_an_output_stays() -> None:
    model = dead()
    weights = {name: weight(model, name) for name in ("w0", "b0", "w1", "b1")}
    body = "h = Gemm(x, w0, b0)\n r = Relu(h)\n y = Gemm(r, w1, b1)"
    model = graph(body, {"x": ("n", 6)}, {"y": ("n", 3), "r": ("n", 8)}, weights)
    _, stats = ran(model, "prune-silent", samples(model))
    assert stats.changed == 0


def test_depthwise_channels_go_with_what_feeds_them() -> None:
    first = normal(0, 4, 2, 1, 1)
    first[2] = 0
    weights = {
        "w0": first, "b0": np.array([0, 0, -1, 0], np.float32), "w1": normal(1, 4, 1, 3, 3),
        "b1": np.array([0, 0, 2, 0], np.float32), "w2": normal(2, 3, 4, 1, 1), "b2": normal(3, 3),
    }  # fmt: skip
    body = (
        "a = Conv(x, w0, b0)\n b = Relu(a)\n c = Conv <group = 4, pads = [1, 1, 1, 1]> (b, w1, b1)\n"
        " d = Relu(c)\n y = Conv(d, w2, b2)"
    )
    model = graph(body, {"x": (1, 2, 5, 5)}, {"y": (1, 3, 5, 5)}, weights)
    found, _ = ran(model, "prune-silent", samples(model))
    assert weight(found, "w1").shape == (3, 1, 3, 3)
    assert weight(found, "w2").shape == (3, 3, 1, 1)
    assert np.allclose(weight(found, "b2"), weight(model, "b2") + 2 * weight(model, "w2")[:, 2, 0, 0])
    assert difference(model, found) < ROUNDING
    assert count(found).macs < count(model).macs


def test_tolerance_takes_channels_that_hardly_move() -> None:
    first = normal(0, 6, 8)
    first[:, 4] *= 1e-6
    weights = {"w0": first, "w1": normal(1, 8, 3)}
    model = graph("h = Gemm(x, w0)\n y = Gemm(h, w1)", {"x": ("n", 6)}, {"y": ("n", 3)}, weights)
    assert ran(model, "prune-silent", samples(model))[1].changed == 0
    found, _ = ran(model, "prune-silent{tolerance=0.001}", samples(model))
    assert weight(found, "w0").shape == (6, 7)
    assert difference(model, found) < 1e-3


def test_without_data_it_is_refused() -> None:
    with pytest.raises(DataError, match="calib-data") as found:
        ran(mlp(), "prune-silent")
    assert found.value.reason == "calibration-missing"


@pytest.mark.parametrize("option", ["tolerance=1", "tolerance=-0.1", "samples=0"])
def test_options_out_of_range_are_refused(option: str) -> None:
    model = mlp()
    with pytest.raises(PipelineError) as found:
        ran(model, f"prune-silent{{{option}}}", samples(model))
    assert found.value.reason == "silent-option"
