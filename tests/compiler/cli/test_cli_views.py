"""What people see: 80 columns, no markup or emoji read out of names, lines to copy left whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import RenderableType

from pared.bench.bench import BenchReport, CandidateReport
from pared.bench.meter import Latency, Ratio
from pared.compiler.backend import Signature
from pared.compiler.cli import bench as bench_view
from pared.compiler.cli import compile_view, verify_view
from pared.compiler.cli import estimate as estimate_view
from pared.compiler.cli import inspect as inspect_view
from pared.compiler.cli.console import make_console
from pared.compiler.driver.estimating import EstimateReport
from pared.compiler.driver.report import CandidateRecord, CompileReport, PassSummary
from pared.compiler.estimates import Estimate, LayerEstimate
from pared.compiler.inspect import Blocker, InspectReport, Quantization, TargetCheck
from pared.compiler.ir.stats import Counts
from pared.compiler.machine import Machine
from pared.compiler.pass_api import Refusal
from pared.compiler.records import Metric, Origin
from pared.compiler.verify.records import BisectReport, LayerRecord, LayerReport, OutputCheck, VerifyReport

LONG = "functional_1/batch_normalization/FusedBatchNormV3;functional_1/conv2d/BiasAdd;functional_1/Relu"


def text_of(view: RenderableType, monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    console = make_console()
    with console.capture() as capture:
        console.print(view, crop=False)
    return capture.get()


def metric(value: float | None, unit: str = "ms", how: str = "measured here") -> Metric:
    return Metric("number", value, unit, Origin.MEASURED, how)


def compile_report(refused: tuple[Refusal, ...] = ()) -> CompileReport:
    counts = Counts({"Conv": 3}, 100, 400, 1000, 1024000)
    made = CandidateRecord(
        "int8/ort", metric(0.0264), metric(0.71, "x"), True, 0.2, 59000, True, "the fastest"
    )
    lost = CandidateRecord(
        "float/ort", metric(0.0378), metric(1.0, "x"), None, None, 229000, False, "not chosen"
    )
    passes = (
        PassSummary(1, "fold-constants", "exact", 0, (), {}, 13, 229000, None),
        PassSummary(2, "quantize{bits=8}", "lossy", 21, refused, {}, 36, 57000, 39.2),
    )
    return CompileReport(
        source="m.onnx", source_sha256="0" * 64, source_bytes=230000, payload_bytes=59000, target="cpu",
        precision="int8", pipeline="fold-constants,quantize{bits=8}", signature=Signature((), ()),
        original=counts, compiled=counts, passes=passes, seconds={"import": metric(0.05, "s")},
        candidates=(made, lost), chosen="int8/ort", notes=("opset 17 raised to 21",),
    )  # fmt: skip


def verify_report(layers: LayerReport | None = None, bisect: BisectReport | None = None) -> VerifyReport:
    check = OutputCheck("logits", "reference", True, 1e-6, 0.0, 0.1, 0, 64, "derived")
    return VerifyReport(Path("out"), True, "t.npz", 64, (check,), layers, (), bisect, ())


def test_a_compilation_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = tuple(Refusal(f"{LONG}{i}", "weight is not constant") for i in range(3))
    shown = text_of(compile_view.show(compile_report(refused), Path("out")), monkeypatch)
    assert max(map(len, shown.splitlines())) <= 80


def test_passes_without_work_are_counted_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = text_of(compile_view.show(compile_report(), Path("out")), monkeypatch)
    assert "1 pass had nothing to do" in shown
    assert "fold-constants  " not in shown.split("pipeline")[0]


def test_refusals_group_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = tuple(Refusal(f"fc{i}", "weight is not constant") for i in range(3))
    lines = text_of(compile_view.show(compile_report(refused), None), monkeypatch).splitlines()
    assert [line.split() for line in lines if "weight is not" in line] == [
        ["3", "quantize", "weight", "is", "not", "constant", "fc0"]
    ]


def test_a_dry_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not written (dry run)" in text_of(compile_view.show(compile_report(), None), monkeypatch)


def test_names_with_markup_and_emoji_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = (Refusal("[bold]a[/bold]", "why :x: [red]"),)
    shown = text_of(compile_view.show(compile_report(refused), None), monkeypatch)
    assert "[bold]a[/bold]" in shown
    assert "why :x: [red]" in shown


def test_the_exclude_line_is_never_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    line = " ".join(f"--exclude layer_with_a_long_name_{i}" for i in range(5))
    bisect = BisectReport("drop of top1", 0.5, 1.0, 0.2, ("a",), True, (), line, "")
    assert line in text_of(verify_view.show(verify_report(bisect=bisect), 10), monkeypatch).splitlines()


def test_a_zero_bound_reads_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "exact" in text_of(verify_view.show(verify_report(), 0), monkeypatch)


def test_layers_are_cut_to_the_number_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = tuple(LayerRecord(i, f"v{i}", f"n{i}", "Conv", 30.0, 0.1 / (i + 1), 0.5, 1.0) for i in range(9))
    shown = text_of(verify_view.show(verify_report(LayerReport(layers, None, 20.0, 0, 16)), 3), monkeypatch)
    assert [f"n{i}" for i in range(9) if f"n{i}  " in shown] == ["n0", "n1", "n2"]
    assert "none below 20 dB" in shown


def test_equal_layers_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LayerRecord(0, "v", "n", "Conv", float("inf"), 0.0, 0.0, 1.0)
    report = LayerReport((layer,), None, 20.0, 0, 16)
    assert "all equal" in text_of(verify_view.show(verify_report(report), 3), monkeypatch)


def bench_report(ratio: float, energy: float | None = None) -> BenchReport:
    machine = Machine("Linux", "x86_64", "EPYC", (), 2, 2, None, False, "none", None)
    latency = Latency(100, 0.02, 0.03, 0.01, 0.025, {"p50": 0.025, "p99": 0.05}, 0.03, "how")
    metrics = (Metric("energy_per_run", energy, "mJ", Origin.MEASURED, "no RAPL counter here"),)
    candidates = tuple(
        CandidateReport(name, Path("x"), latency, metrics) for name in ("pared", "onnxruntime")
    )
    return BenchReport(
        artifact=Path("out"), target="cpu", engine="cpu/ort", precision="int8", machine=machine,
        tools={"pared": "0.1.0"}, threads=1, cores=(0,), batch=1, rounds=10, candidates=candidates,
        ratios=(Ratio("pared", "onnxruntime", ratio, ratio, ratio, 10),), notes=(),
    )  # fmt: skip


def test_a_smaller_time_is_called_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "2.00x faster than float" in text_of(bench_view.show(bench_report(0.5)), monkeypatch)


def test_a_larger_time_is_called_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1.50x slower than float" in text_of(bench_view.show(bench_report(1.5)), monkeypatch)


def test_a_number_that_could_not_be_had_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = text_of(bench_view.show(bench_report(0.5)), monkeypatch)
    assert "energy per run: no RAPL counter here" in shown


def test_a_bench_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = text_of(bench_view.show(bench_report(0.5)), monkeypatch)
    assert max(map(len, shown.splitlines())) <= 80


def inspect_report(*checks: TargetCheck) -> InspectReport:
    return InspectReport(
        file=Path(__file__), file_bytes=1, sha256="0" * 64, external={}, ir_version=8, opset={"": 17},
        producer="", inputs=(), outputs=(), nodes=1, ops={"Relu": 1}, parameters=0, weight_bytes=0, macs=0,
        bops=0, dynamic=(), quantization=Quantization((), (), ()), targets=checks, notes=(),
    )  # fmt: skip


def test_blockers_group_by_operator_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    blockers = tuple(Blocker(f"{LONG}{i}", "LSTM", "no kernel") for i in range(4))
    report = inspect_report(TargetCheck("cpu", False, blockers))
    shown = text_of(inspect_view.show(report), monkeypatch)
    assert "4 nodes LSTM (e.g. functional_1" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_an_unknown_percentile_list_is_refused() -> None:
    from pared.compiler.errors import PipelineError

    with pytest.raises(PipelineError, match="not a list of numbers"):
        bench_view.parse_percentiles("50;90")


def test_a_yes_for_nodes_says_what_compile_checks_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [TargetCheck(f"chip{i}", True, (), "its cores") for i in range(3)]
    blocked = TargetCheck("tiny", False, (Blocker("n", "Relu", "no"),), "its pins")
    report = inspect_report(TargetCheck("cpu", True, ()), blocked, *taken)
    shown = " ".join(text_of(inspect_view.show(report), monkeypatch).split())
    assert "chip0, chip1 and 1 more: judged node by node; compile also checks its cores" in shown
    assert shown.count("node by node") == 1


def estimate_report(*names: str) -> EstimateReport:
    layers = tuple(
        LayerEstimate(name, "conv", 976000, 5059150, 914487, 0, 0, 2.5, None, 1, 1.0) for name in names
    )
    found = Estimate("rtl", "ecp5", layers, 1, 1, 0, 0, 14, None, 1, None, None, None, "fitted")
    return EstimateReport("m", "t", "estimated", found, {}, None, "no limits", (), 0.1)


def test_estimates_keep_every_layer_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{LONG}_{part}" for part in ("conv", "q_Quant")]
    lines = text_of(estimate_view.show(estimate_report(*names)), monkeypatch).splitlines()
    rows = lines[4:6]
    assert [row.split()[0].split("…")[1][-5:] for row in rows] == ["_conv", "Quant"]
    assert all(row.startswith("funct") and row.rstrip().endswith("2.5") for row in rows)
    assert max(map(len, lines)) <= 80


def test_names_take_the_room_of_a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "/2/body/body.1/Relu_output_0_equalized_q_Quant"
    assert name in text_of(estimate_view.show(estimate_report(name)), monkeypatch, columns=120)
    assert name not in text_of(estimate_view.show(estimate_report(name)), monkeypatch)


def test_layer_names_of_a_comparison_stay_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = LayerReport((LayerRecord(0, LONG, LONG, "Conv", 12.0, 0.1, 0.2, 3.0),), None, 30.0, 0, 64)
    shown = text_of(verify_view.show(verify_report(layers), 5), monkeypatch)
    row = next(line for line in shown.splitlines() if "12.0 dB" in line)
    assert row.startswith("functional_1")
    assert "…" in row
