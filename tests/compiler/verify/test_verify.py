"""`verify` on artifacts: sound, tampered with, and quantized badly on purpose."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import pared
from pared.compiler.artifact.manifest import Manifest
from pared.compiler.errors import ArtifactError, DataError, ModelError
from pared.compiler.records import to_json
from pared.compiler.verify.records import VerifyReport


def refresh(artifact: Path, **changes: object) -> None:
    """Write the hashes of the files as they are now, as someone who tampers would."""
    raw = json.loads((artifact / "manifest.json").read_text())
    for name, record in raw["files"].items():
        content = (artifact / name).read_bytes()
        record.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    raw |= changes
    (artifact / "manifest.json").write_text(Manifest.model_validate(raw).text())


def tamper(artifact: Path) -> None:
    """Turn the sign of the largest integer weight."""
    model = onnx.load(artifact / "model.onnx")
    weights = [
        t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
    ]
    last = weights[-1]
    last.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(last), last.name))
    onnx.save(model, artifact / "model.onnx")
    refresh(artifact)


def test_a_sound_artifact_passes_on_its_golden_samples(case) -> None:
    report = pared.verify(case.artifact)
    assert report.passed
    assert report.data == "golden"
    assert {check.against for check in report.outputs} == {"reference", "golden"}
    assert all(check.samples == report.samples for check in report.outputs)


def test_a_sound_artifact_passes_on_data(case) -> None:
    report = pared.verify(case.artifact, case.data)
    assert report.passed
    assert (report.data, report.samples) == ("memory", 200)
    assert any("first 64 of 200" in note for note in report.notes)


def test_what_is_simulated_is_said_first(case, monkeypatch) -> None:
    monkeypatch.setattr("pared.compiler.verify.verify.simulation_of", lambda artifact: ("simulated here",))
    assert pared.verify(case.artifact, samples=1).notes[0] == "simulated here"


def test_changed_weights_fail_although_every_hash_fits(case) -> None:
    tamper(case.artifact)
    report = pared.verify(case.artifact)
    assert not report.passed
    # The payload is still what it says; it is not what was compiled.
    assert [check.passed for check in report.outputs if check.against == "reference"] == [True]
    assert [check.passed for check in report.outputs if check.against == "golden"] == [False]


def test_changed_weights_show_in_the_layer_they_are_in(case) -> None:
    tamper(case.artifact)
    layers = pared.verify(case.artifact).layers
    assert layers is not None
    assert layers.first_hurt == "scores"
    assert layers.most_hurt(1)[0].node == "fc3"


def test_changed_weights_without_new_hashes_are_refused(case) -> None:
    content = bytearray((case.artifact / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (case.artifact / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        pared.verify(case.artifact)
    assert caught.value.reason == "artifact-file-changed"


def test_every_layer_of_a_good_quantization_is_well_above_the_limit(case) -> None:
    layers = pared.verify(case.artifact, case.data).layers
    assert layers is not None
    assert [layer.value for layer in layers.layers][-1] == "scores"
    assert layers.first_hurt is None
    assert layers.samples == 16


def test_labels_give_the_metric_of_both(case) -> None:
    (result,) = pared.verify(case.artifact, case.data).metrics
    assert (result.metric, result.reference, result.unit, result.samples) == ("top1", 100.0, "points", 200)
    assert result.drop == pytest.approx(100.0 - result.artifact)
    assert result.standard_error is not None


def test_the_artifacts_metric_is_that_of_its_own_outputs(case) -> None:
    (result,) = pared.verify(case.artifact, case.data).metrics
    with pared.load(case.artifact) as model:
        guesses = model.run({"x": case.data["x"]})["scores"].argmax(axis=1)
    assert result.artifact == pytest.approx(100 * np.mean(guesses == case.data["labels"]))


def test_a_metric_without_labels_is_taken_against_the_original(case) -> None:
    (result,) = pared.verify(case.artifact, {"x": case.data["x"]}, metric="cosine").metrics
    assert result.reference == pytest.approx(1.0)
    assert 0.9 < result.artifact < 1.0


def test_a_metric_that_needs_labels_says_so(case) -> None:
    with pytest.raises(DataError) as caught:
        pared.verify(case.artifact, {"x": case.data["x"]}, metric="top1")
    assert caught.value.reason == "metric-labels"


def test_a_metric_on_golden_samples_is_left_out_with_a_note(case) -> None:
    report = pared.verify(case.artifact, metric="top1")
    assert report.metrics == ()
    assert any("needs --data" in note for note in report.notes)


def test_only_the_first_samples_are_used_when_asked(case) -> None:
    report = pared.verify(case.artifact, case.data, samples=7)
    assert (report.samples, report.metrics[0].samples) == (7, 7)


def test_a_tight_tolerance_fails(case) -> None:
    content = pared.verify(case.artifact, case.data, atol={"scores": 1e3}, samples=5)
    assert content.passed
    tamper(case.artifact)
    assert pared.verify(case.artifact, case.data, atol={"out0": 1e3}, samples=5).passed
    assert not pared.verify(case.artifact, case.data, rtol={"": 1e-3}, samples=5).passed


def test_a_tolerance_for_an_unknown_output_is_refused(case) -> None:
    with pytest.raises(DataError, match="scores") as caught:
        pared.verify(case.artifact, atol={"score": 1.0})
    assert caught.value.reason == "unknown-output"


def test_nothing_to_verify_on_is_refused(case) -> None:
    with pytest.raises(DataError) as caught:
        pared.verify(case.artifact, samples=0)
    assert caught.value.reason == "verify-no-samples"
    raw = json.loads((case.artifact / "manifest.json").read_text())
    shutil.rmtree(case.artifact / "golden")
    raw["files"] = {name: record for name, record in raw["files"].items() if "golden" not in name}
    (case.artifact / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(DataError) as caught:
        pared.verify(case.artifact)
    assert caught.value.reason == "verify-no-samples"
    assert pared.verify(case.artifact, case.data, samples=3).passed


def test_an_output_without_a_stated_bound_is_refused(case) -> None:
    refresh(case.artifact, bounds={})
    with pytest.raises(ArtifactError, match="no bound for output 'scores'"):
        pared.verify(case.artifact)


def test_a_slow_reference_stops_in_time_and_says_so(case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pared.compiler.verify.verify.REFERENCE_SECONDS", -1.0)
    report = pared.verify(case.artifact, case.data, layers=False)
    assert [check.samples for check in report.outputs if check.against == "reference"] == [1]
    assert any("first 1 of 200" in note for note in report.notes)


def test_data_that_do_not_fit_are_refused(case) -> None:
    with pytest.raises(DataError) as caught:
        pared.verify(case.artifact, {"x": case.data["x"][:, :3]})
    assert caught.value.reason == "test-shape"


def test_a_missing_original_leaves_layers_out_with_a_note(case) -> None:
    raw = json.loads((case.artifact / "manifest.json").read_text())
    refresh(case.artifact, source=raw["source"] | {"path": "/no/such/model.onnx"})
    report = pared.verify(case.artifact, case.data)
    assert report.passed
    assert report.layers is None
    assert (report.metrics[0].reference, report.metrics[0].drop) == (None, None)
    assert any("/no/such/model.onnx is not there" in note for note in report.notes)


def test_an_original_that_changed_is_not_compared_with(case, tmp_path: Path) -> None:
    changed = tmp_path / "m.onnx"
    changed.write_bytes(case.model.read_bytes() + b"\x72\x00")
    raw = json.loads((case.artifact / "manifest.json").read_text())
    refresh(case.artifact, source=raw["source"] | {"path": str(changed)})
    report = pared.verify(case.artifact)
    assert report.layers is None
    assert any("has changed since" in note for note in report.notes)


def test_an_original_named_explicitly_is_used(case, tmp_path: Path) -> None:
    moved = shutil.copy(case.model, tmp_path / "moved.onnx")
    raw = json.loads((case.artifact / "manifest.json").read_text())
    refresh(case.artifact, source=raw["source"] | {"path": None})
    assert pared.verify(case.artifact).layers is None
    assert pared.verify(case.artifact, reference_model=moved).layers is not None


def test_an_original_with_other_inputs_is_refused(case, tmp_path: Path) -> None:
    model = onnx.load(case.model)
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError):
        pared.verify(case.artifact, reference_model=tmp_path / "other.onnx")


def test_the_report_is_json(case) -> None:
    report = pared.verify(case.artifact, case.data)
    raw = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert raw.keys() == {field.name for field in dataclasses.fields(VerifyReport)}
    assert raw["outputs"][0].keys() >= {
        "output",
        "against",
        "passed",
        "max_difference",
        "allowed",
        "worst_sample",
    }


# --- bisect -----------------------------------------------------------------------------------------


def spoil_scale(artifact: Path, node: str, factor: float) -> None:
    """Make the stored plan round one layer's weights far too coarsely."""
    path = artifact / "reports/quant_plan.json"
    plan = json.loads(path.read_text())
    sites = [s for s in plan["sites"] if s["node"] == node and s["role"] == "weight"]
    assert sites
    for site in sites:
        site["scale"] = [scale * factor for scale in site["scale"]]
    path.write_text(json.dumps(plan))
    refresh(artifact)


@pytest.mark.parametrize("node", ["fc1", "fc2"])
def test_bisect_names_the_sabotaged_layer(case, node: str) -> None:
    spoil_scale(case.artifact, node, 60.0)
    found = pared.verify(case.artifact, case.data, bisect=True, max_drop=3.0).bisect
    assert found is not None
    assert found.solved
    assert found.excluded == (node,)
    assert found.exclude_line == f"--exclude {node}"
    assert found.loss_before > 3.0 >= found.loss


def test_bisect_names_the_sabotaged_layer_without_labels(case) -> None:
    spoil_scale(case.artifact, "fc2", 60.0)
    found = pared.verify(case.artifact, bisect=True).bisect
    assert found is not None
    assert found.excluded == ("fc2",)
    assert "noise" in found.measure


def test_the_exclude_line_of_bisect_is_what_compile_takes(case, tmp_path: Path) -> None:
    options = {"precision": "int8", "calibration": {"x": case.data["x"][:64]}, "force": True, "engine": "ort"}
    report = pared.compile(case.model, output=tmp_path / "o", exclude=["fc2"], **options)
    plan = json.loads(report.read_text("reports/quant_plan.json"))
    assert {site["node"] for site in plan["sites"]} == {"fc1", "fc3"}


def test_bisect_of_a_good_artifact_excludes_nothing(case) -> None:
    found = pared.verify(case.artifact, case.data, bisect=True, max_drop=5.0).bisect
    assert found is not None
    assert (found.solved, found.excluded) == (True, ())


def test_bisect_of_a_float_artifact_says_that_there_is_nothing_to_exclude(case, tmp_path: Path) -> None:
    pared.compile(case.model, output=tmp_path / "float", engine="ort")
    report = pared.verify(tmp_path / "float", case.data, bisect=True)
    assert report.bisect is None
    assert any("not quantized by a plan" in note for note in report.notes)


def test_bisect_without_the_calibration_data_says_what_it_needs(case, tmp_path: Path) -> None:
    data = {"x": case.data["x"][:64]}
    pared.compile(
        case.model, precision="int8", calibration=data, output=tmp_path / "o", force=True, engine="ort"
    )
    report = pared.verify(tmp_path / "o", case.data, bisect=True)
    assert report.bisect is None
    assert any("calibration data from memory" in note for note in report.notes)


def test_bisect_without_the_original_says_what_it_needs(case) -> None:
    raw = json.loads((case.artifact / "manifest.json").read_text())
    refresh(case.artifact, source=raw["source"] | {"path": None})
    report = pared.verify(case.artifact, bisect=True)
    assert report.bisect is None
    assert any("--reference" in note for note in report.notes)
