"""hls4ml's C++, compiled with g++, computes the golden integers; artifacts run and are refused elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fpga_models import binary, mlp, qdq_conv, residual

import pared
from pared.backends.fpga.backend import FpgaBackend
from pared.backends.fpga.engines import ENGINES
from pared.backends.fpga.hls4ml import vendor
from pared.backends.fpga.hls4ml.engine import make_project
from pared.backends.fpga.hls4ml.settings import settings_of
from pared.backends.fpga.read import read_network
from pared.backends.reference import evaluate
from pared.compiler.errors import MissingTool, ParedError, TargetError

DEFAULTS = ENGINES["hls4ml"].options


@pytest.fixture
def _tools() -> None:
    pytest.importorskip("hls4ml")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")


def samples(net: ir.Model, count: int) -> np.ndarray:
    shape = [int(size) for size in list(net.graph.inputs[0].shape or ())[1:] if isinstance(size, int)]
    return np.random.default_rng(0).normal(0, 3, (count, *shape)).astype(np.float32)


@pytest.mark.usefixtures("_tools")
@pytest.mark.parametrize(
    ("net", "tool", "io"),
    [
        (qdq_conv(np.random.default_rng(1), True, 2, 1, 4), "vitis", "io_parallel"),
        (residual(2.8), "vitis", "io_stream"),
        (binary(np.random.default_rng(0)), "catapult", "io_stream"),
        (qdq_conv(np.random.default_rng(1), False, 2, 1, 4), "quartus", "io_parallel"),
    ],
    ids=["vitis-conv", "vitis-table-stream", "catapult-binary-stream", "quartus-conv"],
)
def test_the_emulation_gives_the_golden_integers(net: ir.Model, tool: str, io: str, tmp_path: Path) -> None:
    settings = settings_of({**DEFAULTS, "tool": tool, "io": io})
    project = make_project(read_network(net), settings, tmp_path)  # raises where one of 64 samples differs
    assert project.library.is_file()


@pytest.mark.usefixtures("_tools")
def test_an_artifact_runs_bit_exactly_and_reports_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    net = mlp(4)
    pared.compile(net, target="fpga-hls-vitis", output=tmp_path / "out")
    report = json.loads((tmp_path / "out/reports/fpga.json").read_text())
    assert report["layers"][1]["precision"]["result"] == "ufixed<4,4,RND_CONV,SAT>"
    assert report["implementation"]["lut"] is None
    assert "vitis" in report["implementation"]["why_null"]
    executable = pared.load(tmp_path / "out")
    x = samples(net, 1000)
    np.testing.assert_array_equal(executable.run({"x": x})["y"], evaluate(net, {"x": x})["y"])


@pytest.mark.usefixtures("_tools")
def test_another_project_of_the_same_network_has_the_same_sources(tmp_path: Path) -> None:
    from pared.backends.fpga.hls4ml.lower import make_plan
    from pared.backends.fpga.hls4ml.project import write_project, zipped
    from pared.backends.fpga.hls4ml.reuse import choose_reuse

    plan, settings, found = make_plan(read_network(mlp(3))), settings_of(DEFAULTS), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_project(plan, choose_reuse(plan, settings), settings, tmp_path / name)
        found.append(zipped(tmp_path / name))
    assert found[0] == found[1]


def test_an_emulation_of_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("hls4ml")
    with pytest.raises(TargetError, match="compiled for vax") as caught:
        FpgaBackend().load(tmp_path, "hls4ml", {"arch": "vax"}, None)
    assert caught.value.reason == "fpga-hls-arch"


def fake_tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a vendor's program on the path that counts its runs, and return where."""
    program, runs = folder / "bin/vitis-run", folder / "runs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho run >> {runs}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("PARED_CACHE_DIR", str(folder / "cache"))
    return runs


REPORT = """mkdir -p net_prj/solution1/syn/report
echo '<project xmlns="x"><solutions><solution name="solution1"/></solutions></project>' > net_prj/hls.app
cat > net_prj/solution1/syn/report/net_csynth.xml <<'END'
<profile><UserAssignments><TargetClockPeriod>5.00</TargetClockPeriod></UserAssignments>
<PerformanceEstimates><SummaryOfTimingAnalysis><EstimatedClockPeriod>3.6</EstimatedClockPeriod>
</SummaryOfTimingAnalysis><SummaryOfOverallLatency><Best-caseLatency>9</Best-caseLatency>
<Worst-caseLatency>9</Worst-caseLatency><Interval-min>1</Interval-min><Interval-max>1</Interval-max>
</SummaryOfOverallLatency></PerformanceEstimates><AreaEstimates><Resources><LUT>1234</LUT><FF>567</FF>
</Resources><AvailableResources><LUT>1728000</LUT></AvailableResources></AreaEstimates></profile>
END"""


def project_zip() -> bytes:
    """Return the least that a report is read from."""
    import io
    import zipfile

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("hls4ml_config.yml", "ProjectName: net\n")
        file.writestr("project.tcl", 'set project_name "net"\nset backend "vitis"\n')
    return data.getvalue()


def test_a_vendors_report_is_read_and_its_step_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hls4ml")
    runs = fake_tool(tmp_path, REPORT, monkeypatch)
    found = [vendor.synthesise(project_zip(), settings_of(DEFAULTS)) for _ in range(2)]
    figures = found[1].figures
    assert figures is not None
    report = figures["CSynthesisReport"]
    assert isinstance(report, dict)
    assert (report["LUT"], report["BestLatency"]) == ("1234", "9")
    assert runs.read_text().split() == ["run"]


@pytest.mark.parametrize(
    ("script", "seconds", "reason"),
    [
        ("exit 3", 60.0, "fpga-tool-failed"),
        ("sleep 30", 0.2, "fpga-tool-timeout"),
        ("true", 60.0, "fpga-hls-report"),
    ],
)
def test_a_vendors_tool_that_fails_is_named_with_its_folder(
    script: str, seconds: float, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hls4ml")
    fake_tool(tmp_path, script, monkeypatch)
    with pytest.raises(ParedError, match=str(tmp_path)) as caught:
        vendor.synthesise(project_zip(), settings_of({**DEFAULTS, "vendor_timeout_s": seconds}))
    assert caught.value.reason == reason


def test_a_step_that_was_asked_for_needs_its_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool) as caught:
        vendor.synthesise(b"", settings_of({**DEFAULTS, "vendor": "csynth"}))
    assert caught.value.reason == "fpga-tool-missing"
