"""A model is cut where `native` refuses it, and nowhere else."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_models import control_flow, dense, floats, quantized

from pared.backends.cpu.mixed.divide import Division, divide
from pared.backends.cpu.mixed.draft import Draft
from pared.backends.cpu.native.isa import Isa, host_isa
from pared.compiler.ir.importer import import_model

ISA = host_isa()
pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")


def divided(model, refused=None, least_us=0.0) -> Division:
    return divide(Draft(model), ISA, refused, least_us)


def ops(division: Division) -> list[tuple[str, list[str]]]:
    return [(r.backend, [node.op_type for node in r.nodes]) for r in division.regions]


def test_the_node_that_native_refuses_is_cut_out():
    assert ops(divided(floats())) == [
        ("native", ["Conv", "Relu"]),
        ("ort", ["Asinh"]),
        ("native", ["Conv", "Relu"]),
    ]


def test_a_refused_node_has_its_reason_and_others_have_none():
    reasons = {p.op_type: p.reason for p in divided(floats()).placements}
    assert "Asinh" in reasons["Asinh"]
    assert reasons["Conv"] == reasons["Relu"] == ""


def test_quantizers_stay_with_the_layer_before_and_dequantizers_with_the_layer_behind():
    division = divided(quantized(0, middle="m = Asinh(d)"))
    assert ops(division) == [
        ("native", ["Conv", "Relu", "QuantizeLinear"]),
        ("ort", ["Asinh", "QuantizeLinear"]),
        ("native", ["Conv", "QuantizeLinear"]),
    ]
    # What crosses is the quantized tensor.
    assert [r.inputs for r in division.regions] == [("q",), ("q1",), ("qm",)]


@pytest.mark.parametrize("part", ["Conv", "Relu", "QuantizeLinear"])
def test_a_quantized_layer_is_refused_whole(part):
    model = quantized(0, middle="m = Asinh(d)")
    name = next(node.name for node in Draft(model).nodes if node.op_type == part)
    first = divided(model, {name: "for the test"}).regions[0]
    assert (first.backend, [n.op_type for n in first.nodes][:3]) == (
        "ort",
        ["Conv", "Relu", "QuantizeLinear"],
    )


def test_a_bias_behind_a_product_belongs_to_its_quantized_layer():
    (layer,) = Draft(dense()).layers()
    assert [node.op_type for node in layer] == ["QuantizeLinear", "Relu", "Add", "MatMul"]


def test_small_regions_are_merged_into_ort():
    assert [r.backend for r in divided(floats(), least_us=1e6).regions] == ["ort"]


def test_control_flow_runs_in_ort_and_what_its_bodies_read_crosses():
    division = divided(import_model(control_flow()).model)
    assert ops(division) == [("native", ["Conv"]), ("ort", ["If"])]
    assert division.regions[1].inputs == ("flag", "c")


def test_a_model_that_native_takes_is_one_region():
    assert [r.backend for r in divided(floats(middle="m = Relu(r1)")).regions] == ["native"]


@given(st.sets(st.integers(0, 20)))
@settings(max_examples=25, deadline=None)
def test_no_path_leaves_a_region_and_comes_back(refused):
    model = quantized(0, middle="s = Sigmoid(d)\n m = Mul(s, d)")
    draft = Draft(model)
    names = [node.name for index, node in enumerate(draft.nodes) if index in refused]
    division = divide(draft, ISA, dict.fromkeys(names, "for the test"), 0.0)
    assert sorted(n.name for r in division.regions for n in r.nodes) == sorted(n.name for n in draft.nodes)
    known = {"q"}
    for region in division.regions:  # in running order everything that a region reads is there
        assert known.issuperset(region.inputs)
        known.update(region.outputs)
