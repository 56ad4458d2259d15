"""Budgets of MACs, parameters and accuracy on the command line's recipe, alone and together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import pared
from pared.compiler.driver import compile_recipe
from pared.compiler.driver.budget import suspects
from pared.compiler.driver.pruning import shrinking_text
from pared.compiler.driver.sensitivity import LAYERS
from pared.compiler.errors import PipelineError
from pared.compiler.ir.importer import import_model
from pared.compiler.pass_api import PassStats
from pared.compiler.recipe import Recipe
from pared.compiler.verify.records import LayerRecord, LayerReport
from pared.passes.prune import bias
from pared.passes.quantize.bias_correct import correct_biases

EXAMPLES = Path(__file__).parents[2] / "examples"


def recipe(**keys: object) -> Recipe:
    base = {
        "model": str(EXAMPLES / "models" / "digits_cnn.onnx"),
        "calibration": str(EXAMPLES / "data" / "digits_calibration.npz"),
        "test_data": str(EXAMPLES / "data" / "digits_test.npz"),
        "engine": "ort",
    }
    return Recipe.parse(base | keys, "test")


def test_budgets_become_a_pass_before_pruning() -> None:
    text = shrinking_text(recipe(max_macs=0.5, max_params=0.25, sparsity=0.5), has_calibration=False)
    assert text == "lowrank{macs=0.5 params=0.25 round_to=8},prune{sparsity=0.5}"


def test_calibration_data_repair_what_low_rank_lost() -> None:
    assert (
        shrinking_text(recipe(max_macs=0.5), has_calibration=True)
        == "lowrank{macs=0.5 round_to=8},reconstruct"
    )
    assert shrinking_text(recipe(max_macs=0.5), has_calibration=False) == "lowrank{macs=0.5 round_to=8}"


def test_a_budget_beside_a_pipeline_without_low_rank_is_refused() -> None:
    with pytest.raises(PipelineError, match="does not factor layers"):
        shrinking_text(recipe(max_macs=0.5, pipeline="quantize"), has_calibration=True)


def test_channels_meet_the_budget_on_request() -> None:
    asked = recipe(max_macs=0.5, shrink="channels")
    assert shrinking_text(asked, has_calibration=True) == "prune-channels{macs=0.5 round_to=8}"
    exact = asked.model_copy(update={"opt_level": 1})
    assert shrinking_text(exact, has_calibration=True) == "prune-channels{macs=0.5 round_to=8 fit=false}"


def test_a_way_to_shrink_without_a_budget_is_refused() -> None:
    with pytest.raises(PipelineError, match="but not how much") as info:
        shrinking_text(recipe(shrink="channels"), has_calibration=True)
    assert info.value.reason == "budget-missing"


def test_a_budget_by_channels_beside_a_pipeline_that_cuts_none_is_refused() -> None:
    asked = recipe(max_params=0.5, shrink="channels", pipeline="lowrank{params=0.5}")
    with pytest.raises(PipelineError, match="does not cut channels"):
        shrinking_text(asked, has_calibration=True)


@pytest.mark.parametrize(("budget", "share"), [("max_macs", 0.5), ("max_params", 0.6)])
def test_a_model_of_fewer_channels_keeps_its_share(budget: str, share: float) -> None:
    report = compile_recipe(recipe(shrink="channels", force=True, **{budget: share}), None).report
    kept = report.compiled.macs, report.compiled.parameters
    whole = report.original.macs, report.original.parameters
    place = 0 if budget == "max_macs" else 1
    assert kept[place] <= share * whole[place]


@pytest.mark.parametrize("value", [0, -0.5, 1.5])
def test_shares_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(PipelineError):
        recipe(max_macs=value)


def test_the_compiled_model_keeps_its_share_of_macs() -> None:
    report = compile_recipe(recipe(max_macs=0.7, force=True), None).report
    assert report.compiled.macs <= 0.7 * report.original.macs


def test_layers_that_cost_too_much_stay_as_they_are() -> None:
    asked = recipe(pipeline="canonicalize,prune{sparsity=0.5}", max_drop=1.0, force=True)
    free = compile_recipe(asked.model_copy(update={"max_drop": None}), None).report
    held = compile_recipe(asked, None).report
    assert any("left as they are: " in note for note in held.notes), held.notes
    assert [report.passes[-1].changed for report in (free, held)] == [4, 1]


def test_layers_that_were_fused_are_suspected_too() -> None:
    def record(index: int, node: str, op: str, noise: float) -> LayerRecord:
        return LayerRecord(index, f"{node}_y", node, op, 20.0, noise, 0.1, 1.0)

    model = import_model(EXAMPLES / "models" / "digits_cnn.onnx").model
    layers = [str(node.name) for node in model.graph if node.op_type in LAYERS]
    relus = [str(node.name) for node in model.graph if node.op_type == "Relu"]
    # Of the fused convolutions only the outputs of their Relus were compared.
    records = (record(0, relus[0], "Relu", 0.1), record(1, relus[1], "Relu", 0.3))
    found = suspects(model, LayerReport(records, None, 20.0, 0, 1))
    assert (found[:2], sorted(found)) == ([layers[1], layers[0]], sorted(layers))


def test_a_search_repairs_towards_the_float_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def spy(original: ir.Model, *rest: Any) -> PassStats:
        seen.append({node.op_type for node in original.graph})
        return correct_biases(original, *rest)

    monkeypatch.setattr(bias, "correct_biases", spy)
    text = "canonicalize,quantize{bits=2},bias-correct{samples=8}"
    compile_recipe(recipe(pipeline=text, max_drop=30.0), None)
    assert len(seen) > 2, "nothing was searched"
    assert not any("QuantizeLinear" in ops or "Quant" in ops for ops in seen)


def test_a_drop_that_a_budget_of_macs_cannot_keep_is_told_as_such() -> None:
    with pytest.raises(PipelineError, match=r"max-drop 0 leaves .* as they are, and then macs=0\.3"):
        compile_recipe(recipe(max_macs=0.3, max_drop=0.0, pipeline="canonicalize,lowrank{macs=0.3}"), None)


def test_pared_compile_takes_the_budgets(tmp_path: Path) -> None:
    model, data = EXAMPLES / "models" / "digits_cnn.onnx", EXAMPLES / "data" / "digits_calibration.npz"
    artifact = pared.compile(
        model, calibration=data, max_params=0.9, output=tmp_path / "out", engine="ort", force=True
    )
    with np.load(data) as table, pared.load(artifact.path) as loaded:
        (name,) = table.files[:1]
        assert loaded.run({name: table[name][:1]})
