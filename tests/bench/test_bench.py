"""`bench` on a small artifact: what is measured and reported, never how fast it is."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pared
from pared.bench.bench import BenchReport, CandidateReport
from pared.bench.peers import check_peers
from pared.bench.probe import probe, resident
from pared.compiler.errors import DataError, MissingTool, ModelError, ParedError, PipelineError
from pared.compiler.records import Origin, to_json

QUICK: dict[str, object] = {"iterations": 10, "warmup": 1, "energy_seconds": 0.0}


def quick(case, **options: object) -> BenchReport:  # type: ignore[no-untyped-def]
    return pared.bench(case.artifact, **{**QUICK, "footprint": False, **options})


def values(candidate: CandidateReport) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in candidate.metrics}


def edit_source(artifact: Path, path: str | None) -> None:
    raw = json.loads((artifact / "manifest.json").read_text())
    raw["source"]["path"] = path
    (artifact / "manifest.json").write_text(json.dumps(raw))


def test_the_artifact_is_measured_beside_its_original_in_onnxruntime(case) -> None:
    report = quick(case)
    assert [c.name for c in report.candidates] == ["pared", "onnxruntime"]
    assert [(r.candidate, r.base, r.rounds) for r in report.ratios] == [("pared", "onnxruntime", 10)]
    assert all(c.latency.runs == 10 for c in report.candidates)
    assert (report.threads, report.batch, report.rounds) == (1, 1, 10)
    assert set(report.candidates[0].latency.percentiles) == {"p50", "p90", "p99"}


def test_every_metric_says_how_it_was_taken(case) -> None:
    for candidate in pared.bench(case.artifact, **QUICK).candidates:
        assert {m.name for m in candidate.metrics} == {
            "throughput", "model_bytes", "energy_per_run",
            "import_time", "load_time", "first_run", "peak_memory", "own_memory",
        }  # fmt: skip
        assert all(m.how and m.unit and m.origin is Origin.MEASURED for m in candidate.metrics)
        assert values(candidate)["peak_memory"]


def test_model_bytes_are_those_of_the_files(case) -> None:
    ours, theirs = quick(case).candidates
    assert values(ours)["model_bytes"] == (case.artifact / "model.onnx").stat().st_size
    assert values(theirs)["model_bytes"] == case.model.stat().st_size or theirs.path != case.model


def test_throughput_counts_the_samples_of_a_batch(case) -> None:
    report = quick(case, batch=4, data={"x": case.x})
    for candidate in report.candidates:
        assert values(candidate)["throughput"] == pytest.approx(4 / candidate.latency.median_ms * 1e3)


def test_golden_inputs_are_repeated_to_fill_a_batch(case) -> None:
    assert quick(case, batch=64).batch == 64


def test_too_few_samples_for_a_batch_are_refused(case) -> None:
    with pytest.raises(DataError) as caught:
        quick(case, batch=6, data={"x": case.x})
    assert caught.value.reason == "bench-too-few"


def test_a_batch_for_a_fixed_input_is_refused(case, tmp_path: Path) -> None:
    pared.compile(case.model, output=tmp_path / "fixed", shapes={"x": (1, 4)}, engine="ort")
    with pytest.raises(DataError) as caught:
        pared.bench(tmp_path / "fixed", batch=2, **QUICK)
    assert caught.value.reason == "batch-fixed"


def test_without_its_original_the_artifact_is_measured_alone(case) -> None:
    edit_source(case.artifact, "/no/such/model.onnx")
    report = quick(case)
    assert [c.name for c in report.candidates] == ["pared"]
    assert report.ratios == ()
    assert any("/no/such/model.onnx is not there" in note for note in report.notes)


def test_an_original_named_explicitly_is_used(case) -> None:
    edit_source(case.artifact, None)
    assert quick(case, original=case.model).candidates[1].path == case.model


def test_a_missing_explicit_original_is_refused(case) -> None:
    with pytest.raises(ModelError):
        quick(case, original="/no/such/model.onnx")


def test_a_peer_that_refuses_the_original_becomes_a_note(case, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    report = quick(case, original=tmp_path / "broken.onnx")
    assert [c.name for c in report.candidates] == ["pared"]
    assert any(note.startswith("onnxruntime not measured") for note in report.notes)


def test_no_peers_means_the_artifact_alone(case) -> None:
    report = quick(case, peers=())
    assert [c.name for c in report.candidates] == ["pared"]
    assert report.notes == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"warmup": -1},
        {"duration": 0.0},
        {"duration": float("nan")},
        {"threads": 0},
        {"batch": 0},
        {"percentiles": (50, 101)},
    ],
)
def test_numbers_that_mean_nothing_are_refused(case, wrong: dict[str, object]) -> None:
    with pytest.raises(PipelineError) as caught:
        quick(case, **wrong)
    assert caught.value.reason == "bench-option"


def test_an_unknown_peer_gets_the_nearest() -> None:
    with pytest.raises(PipelineError, match="did you mean onnxruntime"):
        check_peers(("onnxrutime",))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is not None, reason="openvino is installed")
def test_a_peer_that_is_not_installed_says_how_to_install_it() -> None:
    with pytest.raises(MissingTool, match="pip install openvino"):
        check_peers(("openvino",))


def test_openvino_is_measured_where_it_is_installed(case) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    report = quick(case, peers=("onnxruntime", "openvino"))
    assert [c.name for c in report.candidates] == ["pared", "onnxruntime", "openvino"]


def test_the_report_is_json(case) -> None:
    raw = json.loads(json.dumps(to_json(quick(case)), allow_nan=False))
    assert raw.keys() == {field.name for field in dataclasses.fields(BenchReport)}


def test_progress_is_told(case) -> None:
    seen: list[str] = []
    quick(case, progress=lambda label, done, total: seen.append(label))
    assert [label for label, _ in itertools.groupby(seen)] == ["measure", "memory"]


@pytest.mark.skipif(resident() is None, reason="this system does not tell peak memory")
def test_the_probe_sees_memory_that_a_bigger_input_needs(case) -> None:
    small = probe("onnxruntime", case.model, {"x": np.ones((1, 4), np.float32)}, 1)
    big = probe("onnxruntime", case.model, {"x": np.ones((4 << 20, 4), np.float32)}, 1)
    # 64 MiB of outputs, which the small one does not have; inputs are read before.
    assert big.own_bytes is not None
    assert small.own_bytes is not None
    assert big.own_bytes - small.own_bytes >= 64 << 20


@pytest.mark.skipif(resident() is None, reason="this system does not tell peak memory")
def test_the_probe_does_not_see_the_memory_of_its_parent(case) -> None:
    ballast = np.ones(64 << 20, np.float64)
    found = probe("onnxruntime", case.model, {"x": case.x}, 1)
    assert found.peak_bytes < ballast.nbytes


def test_a_folder_named_pared_beside_does_not_hide_the_package(case, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "pared").mkdir()
    (tmp_path / "pared" / "__init__.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert probe("onnxruntime", case.model, {"x": case.x}, 1).first_run_ms > 0


def test_a_probe_that_fails_says_why(case, tmp_path: Path) -> None:
    with pytest.raises(ParedError, match="does not load") as caught:
        probe("onnxruntime", tmp_path / "none.onnx", {"x": case.x}, 1)
    assert caught.value.reason == "probe-failed"


@pytest.mark.parametrize("first", ["pared.bench.meter", "pared.bench.bench", "pared"])
def test_the_facades_function_works_whatever_was_imported_before(first: str) -> None:
    text = f"import importlib, pared; importlib.import_module({first!r}); print(callable(pared.bench))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True")


def test_the_package_can_be_called_and_imported_from() -> None:
    import pared.bench.meter

    with pytest.raises(PipelineError):
        pared.bench("nowhere", iterations=0)
    assert pared.bench.meter.PERCENTILES
