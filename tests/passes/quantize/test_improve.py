"""Rounding and bias correction of a planned quantization, through the pass that uses them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, run, samples

from pared.backends.reference import evaluate
from pared.compiler.data import Samples
from pared.compiler.ir.shapes import infer_shapes
from pared.compiler.ir.verifier import verify_graph
from pared.compiler.pass_api import Context
from pared.passes.quantize.quantize import Quantize

NETWORK = """g (float[1,4,8,8] x, float[8,4,3,3] a, float[8] ab, float[8,1,3,3] d, float[128,5] c,
    float[5] cb) => (float[1,5] y) {
    p = Conv<pads: ints = [1,1,1,1]>(x, a, ab) q = Relu(p)
    r = Conv<group: int = 8, strides: ints = [2,2], pads: ints = [1,1,1,1]>(q, d) s = Relu(r)
    t = Flatten(s) y = Gemm(t, c, cb) }"""


def network() -> tuple[ir.Model, Samples, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 4, 3, 3), "ab": (8,), "d": (8, 1, 3, 3), "c": (128, 5), "cb": (5,)}
    model = graph(NETWORK, **{k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()})
    # Smooth images: neighbouring pixels are alike, as in real data.
    basis = rng.normal(size=(6, 4, 8, 8)).cumsum(axis=2).cumsum(axis=3)
    x = np.einsum("nk,kchw->nchw", rng.normal(size=(72, 6)), basis).astype(np.float32)
    x /= np.abs(x).max()
    return model, samples(model, x=x[:40]), x[40:]


def sqnr_db(model: ir.Model, other: ir.Model, x: np.ndarray) -> float:
    want, got = (np.concatenate([run(m, {"x": one[None]})["y"] for one in x]) for m in (model, other))
    return float(10 * np.log10(np.square(want).sum() / np.square(got - want).sum()))


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_reconstruction_gains_3_db_on_unseen_inputs_with_4_bit_weights(
    rounding: str, granularity: str
) -> None:
    model, data, unseen = network()
    plain, better = model.clone(), model.clone()
    Quantize(bits=4, act="none", weights=granularity).apply(plain, Context(calibration=data))
    stats = Quantize(bits=4, act="none", weights=granularity, rounding=rounding).apply(
        better, Context(calibration=data)
    )
    assert stats.details["layers_reconstructed"] == 3
    assert sqnr_db(model, better, unseen) > sqnr_db(model, plain, unseen) + 3


def test_the_stored_integers_are_the_reconstructed_ones() -> None:
    model, data, _ = network()
    for method in ("nearest", "gptq"):
        draft = model.clone()
        Quantize(rounding=method).apply(draft, Context(calibration=data))
        infer_shapes(draft)
        verify_graph(draft)
        stored = {
            v.name: v.const_value.numpy()
            for v in draft.graph.initializers.values()
            if v.const_value is not None and v.const_value.numpy().ndim == 4
        }
        if method == "nearest":
            nearest = stored
    assert stored.keys() == nearest.keys()
    assert any(np.any(stored[name] != nearest[name]) for name in stored)
    # Reconstruction moves weights to neighbouring steps; a few go further to make up for others.
    assert all(np.abs(stored[n].astype(int) - nearest[n].astype(int)).max() <= 8 for n in stored)


def test_layers_without_a_bias_get_one_that_takes_the_mean_error_back() -> None:
    model, data, _ = network()
    stats = Quantize(bits=4, act="none", bias_correct=True).apply(model, Context(calibration=data))
    assert stats.details["biases_corrected"] == 3
    depthwise = [node for node in model.graph if node.op_type == "Conv"][1]
    assert len(depthwise.inputs) == 3


def test_refusals_name_the_layer_and_the_reason() -> None:
    rng = np.random.default_rng(1)
    model = graph(
        "g (float[1,8] x, float[8,8] a) => (float[1,8] y) "
        "{ [one] p = MatMul(x, a) q = Relu(p) [two] y = MatMul(q, a) }",
        a=rng.normal(size=(8, 8)).astype(np.float32),
    )
    data = samples(model, x=rng.normal(size=(8, 8)).astype(np.float32))
    stats = Quantize(act="none", rounding="gptq", bias_correct=True).apply(model, Context(calibration=data))
    reasons = {r.node: r.reason for r in stats.refused}
    assert reasons["one"] == "weight 'a' is shared, and its readers see different inputs; rounded to nearest"


WIDTHS = [(1, 8), (2, 2), (3, 8), (4, 4), (4, 8), (6, 6), (8, 4), (8, 8), (8, 16), (12, 12), (16, 16)]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("bits", "act_bits"), WIDTHS)
def test_every_width_runs_alike_in_the_reference_and_in_onnxruntime(
    bits: int, act_bits: int, granularity: str
) -> None:
    model, data, unseen = network()
    how = Quantize(bits=bits, act_bits=act_bits, weights=granularity, bias_correct=True)
    how.apply(model, Context(calibration=data))
    infer_shapes(model)
    verify_graph(model)
    got = np.concatenate([run(model, {"x": one[None]})["y"] for one in unseen[:8]])
    want = np.concatenate([evaluate(model, {"x": one[None]})["y"] for one in unseen[:8]])
    # A sum that lies at the edge between two steps may fall either way: one step of the last activation
    # (range below 60) times weights below 4, for at most two of 128 inputs.
    step = 60 / (2**act_bits - 1)
    assert np.abs(got - want).max() <= 2 * 4 * step
    assert np.median(np.abs(got - want)) <= 1e-4
