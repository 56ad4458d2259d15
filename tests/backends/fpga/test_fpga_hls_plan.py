"""What becomes which hls4ml layer, with which type and reuse factor, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from fpga_models import binary, mlp, qdq_conv, residual

from pared.backends.fpga.engines import ENGINES, Option
from pared.backends.fpga.hls4ml.lower import make_plan
from pared.backends.fpga.hls4ml.plan import Plan
from pared.backends.fpga.hls4ml.reuse import MOST_UNROLLED, choose_reuse, valid_factors
from pared.backends.fpga.hls4ml.settings import TOOLS, Settings, settings_of
from pared.backends.fpga.hls4ml.streams import check_streams
from pared.backends.fpga.hls4ml.tables import KIND
from pared.backends.fpga.read import read_network
from pared.compiler.errors import TargetError, UnsupportedOp


def kinds(plan: Plan) -> list[str]:
    return [step.kind for step in plan.steps]


def choices(**given: Option) -> Settings:
    return settings_of({**ENGINES["hls4ml"].options, **given})


def large() -> Plan:
    """Return a plan whose first layer has 128 x 64 products."""
    return make_plan(read_network(mlp(3, sizes=(128, 64, 3))))


def test_a_power_of_two_is_rounded_by_the_layer_itself() -> None:
    plan = make_plan(read_network(mlp(3)))
    assert kinds(plan) == ["InputLayer", "Dense", "Dense"]
    assert plan.steps[1].output.text == "ufixed<3,3,RND_CONV,SAT>"


def test_other_scales_are_a_constant_multiplication() -> None:
    plan = make_plan(read_network(qdq_conv(np.random.default_rng(1), True, 1, 1, 1)))
    assert kinds(plan)[:3] == ["InputLayer", "Conv2D", "ApplyAlpha"]


def test_no_type_has_a_single_bit() -> None:
    plan = make_plan(read_network(binary(np.random.default_rng(0))))
    forms = [form for step in plan.steps for form in (step.output, *step.types.values())]
    assert min(form.bits for form in forms) == 2


def test_depthwise_convolutions_are_convolutions_with_zeros_where_hls4ml_has_none() -> None:
    network = read_network(qdq_conv(np.random.default_rng(1), False, 1, 1, 4))
    assert "DepthwiseConv2D" in kinds(make_plan(network))
    assert "DepthwiseConv2D" not in kinds(make_plan(network, depthwise=False))


def test_thresholds_on_no_line_are_a_table() -> None:
    plan = make_plan(read_network(residual(2.8)))
    assert [kind for kind in kinds(plan) if kind == KIND] == [KIND]


def test_streams_refuse_a_table_where_it_has_none() -> None:
    plan = make_plan(read_network(residual(2.8)))
    check_streams(plan, TOOLS["vitis"])
    with pytest.raises(UnsupportedOp, match="QuantizeLinear_yq") as caught:
        check_streams(plan, TOOLS["quartus"])
    assert caught.value.reason == "fpga-hls-layer"


def test_streams_refuse_overlapping_pools_by_name() -> None:
    plan = make_plan(read_network(qdq_conv(np.random.default_rng(1), True, 1, 1, 1)))
    with pytest.raises(UnsupportedOp, match="MaxPool_y") as caught:
        check_streams(plan, TOOLS["vitis"])
    assert caught.value.reason == "fpga-hls-layer"


def test_no_layer_unrolls_into_more_than_the_tools_take() -> None:
    reuse = choose_reuse(large(), choices())
    first = next(iter(reuse.values()))
    assert (first.strategy, first.factor, first.multipliers) == ("resource", 2, MOST_UNROLLED)


def test_a_strategy_that_unrolls_too_much_is_refused_with_a_reuse_factor() -> None:
    with pytest.raises(TargetError, match="8192 products") as caught:
        choose_reuse(large(), choices(strategy="latency"))
    assert caught.value.reason == "fpga-hls-unroll"
    assert "reuse=2" in caught.value.next_step


def test_a_budget_of_multipliers_raises_reuse_factors() -> None:
    reuse = choose_reuse(large(), choices(multipliers=100))
    assert sum(one.multipliers for one in reuse.values()) <= 100


def test_a_budget_below_one_per_layer_is_refused() -> None:
    with pytest.raises(TargetError) as caught:
        choose_reuse(large(), choices(multipliers=1))
    assert caught.value.reason == "fpga-does-not-fit"


@pytest.mark.parametrize(("n_in", "n_out"), [(4, 6), (12, 5), (7, 9), (16, 16)])
def test_reuse_factors_are_those_of_hls4ml(n_in: int, n_out: int) -> None:
    pytest.importorskip("hls4ml")
    from hls4ml.backends import get_backend

    assert valid_factors(n_in, n_out) == get_backend("Vitis").get_valid_reuse_factors(n_in, n_out)


@pytest.mark.parametrize("given", [{"tool": "vitus"}, {"io": "stream"}, {"clock_ns": 0.0}, {"reuse": -1}])
def test_wrong_options_are_refused(given: dict[str, Option]) -> None:
    with pytest.raises(TargetError) as caught:
        choices(**given)
    assert caught.value.reason == "engine-option"
