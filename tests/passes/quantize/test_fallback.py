"""Choices judged on samples: fallback to float, layers at the inputs, scales per tensor, balancing."""

import numpy as np
import pytest
from quantized_nets import conv_net, data, mlp, normal
from small_models import graph, run, samples

from pared.compiler.ir.verifier import verify_graph
from pared.compiler.ort import make_session, run_session
from pared.compiler.pass_api import Context, PassStats
from pared.passes.quantize import probe as probe_module
from pared.passes.quantize.balance import Balance
from pared.passes.quantize.fallback import guard_inputs, search_fallback, sensitivity
from pared.passes.quantize.plan import QuantPlan
from pared.passes.quantize.probe import Probe
from pared.passes.quantize.quantize import Quantize
from pared.passes.quantize.ranges import Judge, held_out


def chain():
    """Three dense layers; the input of the middle one has an outlier channel that its weights ignore."""
    first = normal(16, 16, scale=0.3)
    first[:, 3] *= 3000.0
    second = normal(16, 16, scale=0.3)
    second[3] = 0.0
    return graph(
        """g (float[1,16] x, float[16,16] a, float[16,16] b, float[16,4] c) => (float[1,4] y)
        { [one] h = MatMul (x, a)
          [two] g2 = MatMul (h, b)
          [three] y = MatMul (g2, c) }""",
        a=first, b=second, c=normal(16, 4, scale=0.3),
    )  # fmt: skip


def planned(model, **options) -> tuple[QuantPlan, Context]:
    ctx = Context(calibration=samples(model, x=data(model)))
    options = {"range": "minmax", "inputs": "int8", "weights": "channel", **options}
    return Quantize(**options).plan(model, ctx)[0], ctx


def test_sensitivity_puts_the_guilty_layer_first():
    model = chain()
    plan, ctx = planned(model)
    assert sensitivity(model, plan, ctx.calibration, ctx)[0] in ("one", "two")
    assert sensitivity(model, plan, ctx.calibration, ctx)[-1] == "three"


def test_fallback_reaches_the_goal_with_few_layers():
    model = chain()
    plan, ctx = planned(model)
    judge = Judge(model, held_out(ctx.calibration))
    found = search_fallback(model, plan, ctx.calibration, judge.sqnr, 60.0, 35.0, ctx)
    assert judge.sqnr(plan) < 25.0 <= judge.sqnr(found.plan)
    assert 0 < len(found.float_nodes) < 3
    assert found.drop <= 35.0


def test_fallback_leaves_a_good_plan_alone_after_one_evaluation():
    model = mlp()
    plan, ctx = planned(model)
    found = search_fallback(model, plan, ctx.calibration, lambda plan: 90.0, 90.0, 0.5, ctx)
    assert (found.plan, found.float_nodes, found.evaluations) == (plan, (), 1)


def test_fallback_gives_up_every_layer_when_nothing_else_helps():
    model = mlp()
    plan, ctx = planned(model)

    def only_float_is_good(candidate: QuantPlan) -> float:
        return 0.0 if candidate.decisions else 90.0

    found = search_fallback(model, plan, ctx.calibration, only_float_is_good, 90.0, 0.5, ctx)
    assert set(found.float_nodes) == {"one", "two"}
    assert found.drop == 0.0


def test_an_input_with_mixed_features_stays_float():
    model = mlp()
    x = data(model)
    x[:, 0] *= 3000.0
    weights = model.graph.initializers["w"].const_value.numpy().copy()
    weights[0] = 0.0
    model = graph(
        "g (float[1,16] x, float[16,32] w) => (float[1,32] y) { [one] y = MatMul (x, w) }", w=weights
    )
    ctx = Context(calibration=samples(model, x=x))
    plan, stats = Quantize(inputs="auto").plan(model, ctx)
    assert stats.details["input_layers"] == "float"
    assert {decision.role for decision in plan.decisions.values()} == {"weight"}


def test_an_input_of_equal_features_is_quantized():
    plan, ctx = planned(mlp())
    stats = PassStats()
    assert guard_inputs(mlp(), plan, ctx.calibration, ctx, stats) == plan
    assert stats.details["input_layers"] == "integer"


def test_weights_get_one_scale_where_channels_are_alike():
    model = graph(
        "g (float[1,16] x, float[16,32] w) => (float[1,32] y) { [one] y = MatMul (x, w) }",
        w=np.sign(normal(16, 32)) * 0.5,
    )
    plan, _ = planned(model, weights="auto")
    assert [len(decision.scale) for decision in plan.weights().values()] == [1]


def test_weights_keep_a_scale_per_channel_where_channels_differ():
    weights = normal(16, 32) * np.logspace(-3, 0, 32, dtype=np.float32)
    model = graph(
        """g (float[1,16] x, float[16,32] w, float[32] s) => (float[1,32] y)
        { [one] h = MatMul (x, w)
          [up] y = Mul (h, s) }""",
        w=weights, s=np.logspace(3, 0, 32, dtype=np.float32),
    )  # fmt: skip
    plan, _ = planned(model, weights="auto")
    assert [len(decision.scale) for decision in plan.weights().values()] == [32]


def balanced(model):
    draft = model.clone()
    stats = Balance().apply(draft, Context(calibration=samples(model, x=data(model))))
    verify_graph(draft)
    return draft, stats


def test_balancing_keeps_the_function():
    for net in (conv_net, mlp):
        model = net()
        draft, stats = balanced(model)
        assert stats.changed == 1
        x = data(model, 1)
        want, got = run(model, {"x": x})["y"], run(draft, {"x": x})["y"]
        # Weights and biases are rounded once more: relative 2^-24 each, over at most 64 terms.
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * 2.0**-23 * np.abs(want).max() * 8)


def test_balancing_leaves_channels_alone_whose_values_overflow():
    model = mlp()
    draft = model.clone()
    huge = samples(model, x=data(model) * np.float32(1e38))  # warnings are errors here
    with np.errstate(over="ignore", invalid="ignore"):
        Balance().apply(draft, Context(calibration=huge))
    for value in draft.graph.initializers.values():
        assert np.isfinite(value.const_value.numpy()).all()


def test_balancing_helps_uneven_channels():
    uneven = normal(16, 32, scale=0.3) * np.logspace(-1.5, 0, 32, dtype=np.float32)
    model = graph(
        """g (float[1,16] x, float[16,32] w, float[32,4] v) => (float[1,4] y)
        { [one] h = MatMul (x, w)
          [relu] r = Relu (h)
          [two] y = MatMul (r, v) }""",
        w=uneven, v=(normal(32, 4) / np.logspace(-1.5, 0, 32, dtype=np.float32)[:, None]),
    )  # fmt: skip
    scores = []
    for candidate in (model, balanced(model)[0]):
        plan, ctx = planned(candidate)
        scores.append(Judge(candidate, held_out(ctx.calibration)).sqnr(plan))
    assert scores[1] > scores[0] + 6.0


@pytest.mark.parametrize("shared", [False, True])
def test_a_probe_gives_the_values_of_a_session(monkeypatch, shared):
    if shared:
        monkeypatch.setattr(probe_module, "_LEAST_SHARED", 1)
        monkeypatch.setattr(probe_module, "_LEAST_TENSOR", 16)
    model = mlp()
    x = {"x": data(model, 1)}
    want = run_session(make_session(model, extra_outputs=["r"]), x, ["r", "y"])
    got = Probe(model, ["r"]).run(x, ["r", "y"])
    for name in want:
        # Other kernels may sum in another order: 32 terms of float32.
        np.testing.assert_allclose(
            got[name], want[name], rtol=0, atol=32 * 2.0**-23 * np.abs(want[name]).max()
        )
