"""The driver on the bundled models: choice, fallback within a budget, dry runs, refusals before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import pared
from pared.backends.cpu.backend import CpuBackend
from pared.backends.cpu.native import compile as native_compile
from pared.compiler.data import open_samples
from pared.compiler.driver import compile_recipe
from pared.compiler.driver.golden import golden_inputs
from pared.compiler.errors import DataError, MissingTool, ParedError, PipelineError, UnsupportedOp
from pared.compiler.ir.export import signature_of
from pared.compiler.ort import make_session, run_session
from pared.compiler.recipe import Recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
CNN = EXAMPLES / "models" / "digits_cnn.onnx"
CALIBRATION = EXAMPLES / "data" / "digits_calibration.npz"
TEST = EXAMPLES / "data" / "digits_test.npz"


def measured(artifact: pared.Artifact) -> dict[str, list[dict[str, object]]]:
    record: dict[str, list[dict[str, object]]] = json.loads(artifact.read_text("reports/measured.json"))
    return record


def test_exactly_one_candidate_is_chosen_and_it_verifies(tmp_path: Path) -> None:
    artifact = pared.compile(CNN, precision="int8", calibration=CALIBRATION, output=tmp_path / "out")
    chosen = [c for c in measured(artifact)["candidates"] if c["chosen"]]
    assert [c["name"] for c in chosen] == [artifact.manifest.choice.candidate]
    assert chosen[0]["verified"] is True


def test_force_keeps_the_asked_precision(tmp_path: Path) -> None:
    artifact = pared.compile(
        CNN, precision="int8", calibration=CALIBRATION, output=tmp_path / "out", force=True, opt_level=1
    )
    assert artifact.manifest.choice.precision == "int8"


def test_without_precision_the_model_stays_in_float(tmp_path: Path) -> None:
    artifact = pared.compile(CNN, output=tmp_path / "out", engine="ort")
    model = ir.load(artifact.path / "model.onnx")
    assert artifact.manifest.choice.precision == "float"
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph}


def test_a_budget_leaves_layers_in_float_until_the_metric_holds(tmp_path: Path) -> None:
    artifact = pared.compile(
        CNN, precision="w2a2", calibration=CALIBRATION, test_data=TEST, max_drop=1.0,
        output=tmp_path / "out", force=True,
    )  # fmt: skip
    (result,) = pared.verify(artifact.path, TEST).metrics
    assert artifact.manifest.recipe["exclude"], "2 bits everywhere lose more than a point on this model"
    assert result.drop is not None
    assert result.drop <= 1.0


def test_a_budget_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels") as caught:
        pared.compile(CNN, precision="int8", calibration=CALIBRATION, max_drop=1.0, output=tmp_path / "out")
    assert caught.value.reason == "test-labels-missing"
    assert not (tmp_path / "out").exists()


def test_a_failed_compilation_leaves_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(DataError):
        pared.compile(CNN, precision="int8")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_reports_and_writes_nothing(tmp_path: Path) -> None:
    recipe = Recipe(model=str(CNN), precision="int8", calibration=str(CALIBRATION))
    result = compile_recipe(recipe, None)
    assert result.artifact is None
    assert result.report.candidates
    assert not list(tmp_path.iterdir())


def test_static_precision_without_calibration_names_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--calib-data") as caught:
        pared.compile(CNN, precision="int8", output=tmp_path / "out")
    assert caught.value.reason == "calibration-missing"


def test_an_engine_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(PipelineError, match=r"valid: .*ort") as caught:
        compile_recipe(Recipe(model=str(CNN), engine="warp"), None)
    assert caught.value.reason == "unknown-engine"


@pytest.mark.parametrize("choice", [{"engine": "native"}, {"choice": "int8/native"}])
def test_an_engine_whose_packages_are_missing_names_their_extra(
    choice: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise MissingTool("tvm-missing", "engine native needs the package apache-tvm", "pip install")

    monkeypatch.setattr(CpuBackend, "engines", lambda *_: ["ort"])
    monkeypatch.setattr(native_compile, "lower", without)
    recipe = Recipe(model=str(CNN), precision="int8", calibration=str(CALIBRATION), **choice)
    with pytest.raises(MissingTool, match="apache-tvm"):
        compile_recipe(recipe, None)


def limited_target(folder: Path) -> Path:
    path = folder / "no-pooling.toml"
    path.write_text(
        'name = "no-pooling"\ndescription = "no global pooling"\nbackend = "cpu"\nengines = ["ort"]\n'
        + "".join(
            f'[[ops]]\nop = "{op}"\n' for op in ("Conv", "Relu", "MaxPool", "Flatten", "Gemm", "Reshape")
        )
    )
    return path


def test_a_node_that_the_target_refuses_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOp, match="GlobalAveragePool"):
        compile_recipe(Recipe(model=str(CNN), target=str(limited_target(tmp_path))), None)


def test_fallback_runs_refused_nodes_and_reports_each(tmp_path: Path) -> None:
    recipe = Recipe(model=str(CNN), target=str(limited_target(tmp_path)), fallback="cpu")
    notes = compile_recipe(recipe, None).report.notes
    assert any("GlobalAveragePool" in note and "falls back to cpu" in note for note in notes)


def test_a_target_that_does_not_run_here_is_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "far.toml"
    path.write_text('name = "far"\ndescription = "elsewhere"\nbackend = "cpu"\nengines = ["ort"]\n')
    recipe = Recipe(model=str(CNN), target=str(path), precision="int8", calibration=str(CALIBRATION))
    report = compile_recipe(recipe, None).report
    assert [(c.name, c.latency) for c in report.candidates] == [("int8/ort", None)]
    assert any("not measured: target far is not reachable" in note for note in report.notes)


def dynamic_model() -> ir.Model:
    return ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 4, T] x, float[2, N] state) => (float[N, 4, T] y) <int64[4] pads = {0, 0, 20, 0}> {
  a = ReduceMean (state)
  b = Add (x, a)
  y = Relu (b)
}""")


def test_random_golden_inputs_share_the_batch_dimension() -> None:
    model = dynamic_model()
    session = make_session(model)
    sets = golden_inputs(None, signature_of(model), 0, 0, lambda inputs: run_session(session, inputs))
    assert [{name: a.shape for name, a in inputs.items()} for inputs in sets] == [
        {"x": (1, 4, 1), "state": (2, 1)}
    ] * 4


def test_random_golden_inputs_grow_until_the_model_takes_them() -> None:
    def needs_sixteen(inputs: dict[str, np.ndarray]) -> None:
        if inputs["x"].shape[2] < 16:
            raise ParedError("too-short", "too short")

    (first, *_) = golden_inputs(None, signature_of(dynamic_model()), 0, 0, needs_sixteen)
    assert first["x"].shape == (1, 4, 16)


def test_a_heavy_model_gets_one_golden_sample() -> None:
    signature = signature_of(ir.load(CNN))
    samples = open_samples(CALIBRATION, signature, purpose="calibration")
    assert len(golden_inputs(samples, signature, 0, 10**9, len)) == 1
    assert len(golden_inputs(samples, signature, 0, 0, len)) == 4


def test_without_data_ranges_come_from_batch_normalization(tmp_path: Path) -> None:
    artifact = pared.compile(
        CNN, precision="int8-datafree", output=tmp_path / "out", force=True, engine="ort"
    )
    model = ir.load(artifact.path / "model.onnx")
    (result,) = pared.verify(artifact.path, TEST).metrics
    assert "QuantizeLinear" in {node.op_type for node in model.graph}
    assert result.artifact > 97, "float has 99.07 %; chance is 10 %"
