"""The report of layers: types, ranges, saturation and work, against figures counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fpga_models import binary, mlp, qdq_conv

import pared
from pared.backends.fpga.read import read_network
from pared.backends.fpga.report import FILE, LayerFacts, layer_facts


def facts(model: ir.Model, x: np.ndarray | None = None) -> list[LayerFacts]:
    return layer_facts(read_network(model), model, [] if x is None else [{"x": x}])


def test_types_are_those_of_the_quantizers() -> None:
    found = {one.kind: one.type for one in facts(mlp(3))}
    assert found["requant"] == "u3"
    assert found["dense"].startswith("s")
    assert {one.type for one in facts(binary(np.random.default_rng(1))) if one.kind == "requant"} == {
        "bipolar"
    }


def test_work_counts_zero_weights_and_says_how_many_there_are() -> None:
    first = facts(mlp(3, sizes=(8, 4, 3)))[0]
    weights = read_network(mlp(3, sizes=(8, 4, 3))).layers[0].weights
    assert first.macs == 8 * 4
    assert first.nonzero_macs == np.count_nonzero(weights) < first.macs
    assert (first.bops, first.weight_bits) == (32 * 3 * 3, 3)


def test_a_convolution_works_at_every_place() -> None:
    model = qdq_conv(np.random.default_rng(2), True, 1, 1, 1)
    first = facts(model)[0]
    assert first.macs == 6 * 6 * 4 * 4 * 9


def test_saturation_counts_the_values_on_the_ends_of_a_quantizer() -> None:
    model = mlp(3)
    calm, loud = (facts(model, np.full((10, 8), level, np.float32)) for level in (0.0, 100.0))
    assert [one.at_low for one in calm if one.kind == "requant"] == [40]
    [far] = [one for one in loud if one.kind == "requant"]
    assert (far.at_low or 0) + (far.at_high or 0) > 0
    assert far.values == 40


def test_seen_ranges_lie_in_the_proven_ones() -> None:
    x = np.random.default_rng(0).normal(0, 3, (200, 8)).astype(np.float32)
    for one in facts(mlp(4), x):
        assert one.low <= (one.seen_low or 0) <= (one.seen_high or 0) <= one.high


def test_powers_of_two_do_not_differ_from_the_model() -> None:
    x = np.random.default_rng(0).normal(0, 3, (200, 8)).astype(np.float32)
    assert {one.max_difference for one in facts(mlp(4), x)} == {0.0}


def test_without_samples_nothing_is_claimed_of_them() -> None:
    assert {(one.seen_low, one.at_high, one.max_difference) for one in facts(mlp(3))} == {(None, None, None)}


def test_an_artifact_holds_the_report_and_no_energy(tmp_path: Path) -> None:
    pytest.importorskip("da4ml")
    pared.compile(
        mlp(3), target="fpga-ecp5-25k", output=tmp_path / "out", engine="rtl", engine_options={"route": False}
    )
    report = json.loads((tmp_path / "out" / "reports" / FILE).read_text())
    assert [layer["kind"] for layer in report["layers"]] == ["dense", "requant", "dense"]
    assert report["energy_per_inference"] is None
    assert "no published energy" in report["energy_how"]
    assert "zero weights count" in report["counted"]
