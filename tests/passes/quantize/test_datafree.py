"""Ranges from BatchNorm statistics hold for what a network computes, and unknown values are refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, run

from pared.compiler.errors import DataError, PipelineError
from pared.compiler.ir.quant import QuantSpec
from pared.compiler.manager import Manager, PipelineResult
from pared.compiler.pass_api import Context
from pared.compiler.pipeline import parse_pipeline
from pared.compiler.registry import MACROS, PASSES
from pared.passes.quantize.datafree import EstimateRanges, capture_bn_ranges, keep_ranged, spreads
from pared.passes.quantize.plan import Decision, QuantPlan, Site

NETWORK = """g (float[N,3,8,8] x, float[6,3,3,3] a, float[6] g1, float[6] b1, float[6] m1, float[6] v1,
    float[6,6,3,3] c,
    float[6] g2, float[6] b2, float[6] m2, float[6] v2, float[5,6,1,1] e, float[5] eb,
    float[5,3] f) => (float[N,3] y) {
    p = Conv<pads: ints = [1,1,1,1]>(x, a) q = BatchNormalization<epsilon: float = 0.0>(p, g1, b1, m1, v1)
    r = Relu(q) s = Conv<pads: ints = [1,1,1,1]>(r, c)
    t = BatchNormalization<epsilon: float = 0.0>(s, g2, b2, m2, v2) u = Add(t, r)
    w = Relu(u) z = Conv(w, e, eb) k = GlobalAveragePool(z) l = Flatten(k) y = Gemm(l, f) }"""


def network() -> tuple[ir.Model, np.ndarray]:
    """A residual network whose BatchNorm statistics are those of its own data."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(6, 3, 3, 3)),
        "c": rng.normal(size=(6, 6, 3, 3)),
        "e": rng.normal(size=(5, 6, 1, 1)),
        "eb": rng.normal(size=5),
        "f": rng.normal(size=(5, 3)),
        **{key: rng.uniform(0.5, 2.0, 6) for key in ("g1", "g2")},
        **{key: rng.normal(size=6) for key in ("b1", "b2")},
        **{key: np.zeros(6) for key in ("m1", "m2")},
        **{key: np.ones(6) for key in ("v1", "v2")},
    }
    x = rng.normal(size=(64, 3, 8, 8)).astype(np.float32)
    for value, mean, variance in (("p", "m1", "v1"), ("s", "m2", "v2")):
        model = graph(NETWORK, **{k: v.astype(np.float32) for k, v in arrays.items()})
        seen = run(model, {"x": x}, [value])[value]
        arrays[mean], arrays[variance] = seen.mean(axis=(0, 2, 3)), seen.var(axis=(0, 2, 3))
    return graph(NETWORK, **{k: v.astype(np.float32) for k, v in arrays.items()}), x


VALUES = ("q", "r", "t", "u", "w", "z")


@pytest.mark.parametrize("name", VALUES)
def test_ranges_hold_what_the_network_computes_and_are_not_much_wider(name: str) -> None:
    model, x = network()
    low, high = capture_bn_ranges(model, sigmas=6.0)[name]
    seen = run(model, {"x": x}, [name])[name]
    assert low <= seen.min()
    assert seen.max() <= high
    # Six deviations against the four to five that 24 576 normal values reach; sums of positive values are
    # taken as independent although they are not.
    assert high - low < 3 * (seen.max() - seen.min())


@pytest.mark.parametrize("name", ["q", "r", "t"])
def test_moments_are_those_of_the_data(name: str) -> None:
    model, x = network()
    spread = spreads(model)[name]
    seen = run(model, {"x": x}, [name])[name]
    # Exact for BatchNorm; behind the Relu the data are normal only nearly (sums of 27 terms).
    np.testing.assert_allclose(spread.mean, seen.mean(axis=(0, 2, 3)), rtol=0, atol=0.05)
    np.testing.assert_allclose(spread.std, seen.std(axis=(0, 2, 3)), rtol=0, atol=0.05)


def test_a_clipped_normal_has_the_moments_of_sampled_ones() -> None:
    model = graph(
        "g (float[N,3,1] x, float[3] g1, float[3] b1, float[3] m1, float[3] v1, float low, float high) => "
        "(float[N,3,1] y) { q = BatchNormalization(x, g1, b1, m1, v1) y = Clip(q, low, high) }",
        g1=np.array([0.5, 1, 3], np.float32),
        b1=np.array([-1, 0.2, 2], np.float32),
        m1=np.zeros(3, np.float32),
        v1=np.ones(3, np.float32),
        low=np.float32(-0.5),
        high=np.float32(1.5),
    )
    found = spreads(model)["y"]
    draws = np.random.default_rng(0).normal(size=(400_000, 3)) * [0.5, 1, 3] + [-1, 0.2, 2]
    clipped = np.clip(draws, -0.5, 1.5)
    # Five standard errors of a mean of 400 000 values with a deviation below 1.
    np.testing.assert_allclose(found.mean, clipped.mean(axis=0), rtol=0, atol=5 / 400_000**0.5)
    np.testing.assert_allclose(found.std, clipped.std(axis=0), rtol=0, atol=5 / 400_000**0.5)
    assert (found.range().low, found.range().high) == (-0.5, 1.5)


@pytest.mark.parametrize("op", ["Add", "Sum"])
def test_variances_of_a_sum_add_up(op: str) -> None:
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    model = graph(
        "g (float[N,2,1] a, float[N,2,1] b, float[2] one, float[2] zero, float[2] g, float[2] h) => "
        "(float[N,2,1] y) { p = BatchNormalization(a, g, one, zero, one) "
        f"q = BatchNormalization(b, h, one, zero, one) y = {op}(p, q) }}",
        one=ones,
        zero=zeros,
        g=3 * ones,
        h=4 * ones,
    )
    found = spreads(model, sigmas=2.0)["y"]
    np.testing.assert_allclose(found.mean, 2.0)
    np.testing.assert_allclose(found.std, 5.0)
    assert (found.range().low, found.range().high) == (-8.0, 12.0)


def test_values_before_the_first_batchnorm_are_not_known() -> None:
    model, _ = network()
    known = capture_bn_ranges(model)
    assert "x" not in known
    assert "p" not in known


def test_a_model_without_batchnorm_has_bounded_values_only() -> None:
    model = graph(
        "g (float[N,3] x, float[3,3] w) => (float[N,3] y) "
        "{ p = MatMul(x, w) q = Sigmoid(p) r = Relu(p) y = Add(q, r) }",
        w=np.ones((3, 3), np.float32),
    )
    assert capture_bn_ranges(model) == {"q": (0.0, 1.0)}


def activation(value: str) -> Decision:
    return Decision(value, "activation", QuantSpec(8, signed=False))


def test_layers_behind_unknown_values_keep_their_integer_weights() -> None:
    weight = Decision("w", "weight", QuantSpec(8, axis=0))
    bias = Decision("b", "bias", QuantSpec(32, axis=0))
    plan = QuantPlan(
        {
            Site("fc", "in0"): activation("x"),
            Site("fc", "in1"): weight,
            Site("fc", "in2"): bias,
            Site("fc", "out0"): activation("h"),
        }
    )
    kept = keep_ranged(plan, {"h": (0.0, 1.0)}, {})
    assert set(kept.decisions) == {Site("fc", "in1"), Site("fc", "out0")}
    assert [(r.node, r.reason) for r in kept.refusals] == [
        ("fc", "no BatchNorm statistics reach 'x': it stays float")
    ]


def test_a_value_is_known_when_the_one_that_it_shares_a_scale_with_is() -> None:
    plan = QuantPlan({Site("fc", "in0"): activation("flat")})
    assert keep_ranged(plan, {"pool": (0.0, 1.0)}, {"flat": "pool"}) == plan


def compiled(model: ir.Model, text: str) -> PipelineResult:
    return Manager().run(model, parse_pipeline(text, PASSES, MACROS), Context())


def test_a_network_is_quantized_without_data() -> None:
    model, x = network()
    found = compiled(model, "estimate-ranges,canonicalize,quantize")
    before, after = (run(m, {"x": x})["y"] for m in (model, found.model))
    sqnr_db = 10 * np.log10(np.square(before).sum() / np.square(after - before).sum())
    # 8 bits over six deviations leave a step of 12/255 deviations: 37 dB per layer; five layers add up.
    assert sqnr_db > 25
    assert found.records[-1].stats.details["ranges"] == "estimated"
    assert sum(node.op_type == "QuantizeLinear" for node in found.model.graph) >= 4


def test_the_first_layer_is_refused_because_nothing_is_known_of_the_input() -> None:
    found = compiled(network()[0], "estimate-ranges,canonicalize,quantize")
    reasons = [r.reason for r in found.records[-1].stats.refused]
    assert "no BatchNorm statistics reach 'x': it stays float" in reasons


def test_without_estimates_and_without_data_quantize_asks_for_them() -> None:
    with pytest.raises(DataError, match="estimate-ranges"):
        compiled(network()[0], "canonicalize,quantize")


def test_sigmas_outside_their_range_are_refused() -> None:
    with pytest.raises(PipelineError, match="sigmas"):
        EstimateRanges(sigmas=0.5)
