import pytest
from hypothesis import given
from hypothesis import strategies as st

from pared.compiler.errors import PipelineError
from pared.compiler.ir.quant import QuantSpec, Scheme
from pared.compiler.pass_api import Refusal
from pared.passes.quantize.plan import Decision, QuantPlan, Site

UINT8 = QuantSpec(8, signed=False, scheme=Scheme.ASYMMETRIC)
INT8 = QuantSpec(8, narrow=True, axis=0)
BIAS = QuantSpec(32, axis=0)


def plan() -> QuantPlan:
    return QuantPlan(
        {
            Site.read("conv", 0): Decision("x", "activation", UINT8).scaled(0.1, 3),
            Site.read("conv", 1): Decision("w", "weight", INT8).scaled([0.1, 0.2], [0, 0]),
            Site.read("conv", 2): Decision("b", "bias", BIAS),
            Site.write("conv"): Decision("y", "activation", UINT8).scaled(0.5, 0),
            Site.read("fc", 0): Decision("y", "activation", UINT8).scaled(0.5, 0),
        },
        (Refusal("pool", "no rule"),),
        ("note",),
    )


def test_json_round_trip_keeps_everything():
    assert QuantPlan.from_json(plan().to_json()) == plan()


scales = st.lists(st.floats(2.0**-60, 2.0**99, width=32), min_size=1, max_size=4)


@given(scales, st.integers(-128, 127), st.sampled_from(list(Scheme)), st.booleans())
def test_json_round_trip_keeps_float32_scales_to_the_bit(values, zero, scheme, dynamic):
    spec = QuantSpec(1 if scheme is Scheme.BIPOLAR else 7, scheme=scheme, axis=0)
    decision = Decision("v", "weight", spec, dynamic=dynamic).scaled(values, [zero] * len(values))
    again = QuantPlan.from_json(QuantPlan({Site.read("n", 1): decision}).to_json())
    assert again.decisions[Site.read("n", 1)] == decision


def test_text_of_another_format_is_refused():
    with pytest.raises(PipelineError, match="pared-quant-plan-9") as caught:
        QuantPlan.from_json('{"format": "pared-quant-plan-9"}')
    assert caught.value.reason == "quant-plan-invalid"


def test_json_that_is_no_plan_is_refused():
    with pytest.raises(PipelineError):
        QuantPlan.from_json("[1, 2]")


def test_without_drops_every_site_of_a_node_and_says_so():
    left = plan().without(["conv"])
    assert left.nodes() == ["fc"]
    assert left.notes[-1] == "left in float: conv"


def test_without_nothing_is_the_same_plan():
    assert plan().without([]) is not None
    assert plan().without([]) == plan()


def test_weights_only_keeps_the_weight_and_drops_activations_and_bias():
    kept = plan().weights_only(["conv"])
    assert [site.port for site in kept.decisions if site.node == "conv"] == ["in1"]
    assert kept.get(Site.read("fc", 0)) is not None


def test_diff_names_what_changed():
    other = plan().updated({Site.read("conv", 1): Decision("w", "weight", INT8).scaled([0.3, 0.2], [0, 0])})
    assert plan().diff(other) == ["~ conv.in1 w: 8 bits"]
    assert plan().diff(plan().without(["fc"])) == ["- fc.in0 y: 8 bits"]


def test_a_value_has_one_quantizer():
    different = Decision("y", "activation", UINT8).scaled(0.25, 0)
    with pytest.raises(ValueError, match="'y' is decided differently"):
        plan().updated({Site.read("fc", 0): different})


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_is_positive_and_finite(scale):
    with pytest.raises(ValueError, match="positive and finite"):
        Decision("y", "activation", UINT8, (scale,), (0,))


def test_scale_and_zero_point_come_together():
    with pytest.raises(ValueError, match="together"):
        Decision("y", "activation", UINT8, scale=(1.0,))
