"""One tiny network all the way: compiled, routed, loaded, run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from fpga_models import mlp

import pared
from pared.backends.fpga.engines import options_of
from pared.backends.fpga.sweep import cutoffs_of
from pared.backends.fpga.tools import find_tool, run_step
from pared.backends.fpga.workplace import workplace
from pared.backends.reference import evaluate
from pared.compiler.errors import ParedError, TargetError
from pared.targets import load_target

TOOLS = ("yosys", "nextpnr-ecp5", "ecppack")


@pytest.mark.slow
def test_a_tiny_network_is_routed_and_runs_bit_exactly(tmp_path: Path) -> None:
    pytest.importorskip("da4ml")
    missing = [tool for tool in TOOLS if find_tool(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    net = mlp(2, sizes=(4, 2, 2))
    pared.compile(net, target="fpga-ecp5-25k", output=tmp_path / "out")
    report = json.loads((tmp_path / "out/reports/fpga.json").read_text())["implementation"]
    x = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    with pared.load(tmp_path / "out") as loaded:
        got = loaded.run({"x": x})["y"]
    assert np.array_equal(got, evaluate(net, {"x": x})["y"])
    assert report["fmax_mhz"] > 0
    assert report["lut4"] > 0
    assert (tmp_path / "out/model.bit").stat().st_size == report["bitstream_bytes"]


def test_a_network_that_does_not_fit_is_refused_naming_its_largest_layer(tmp_path: Path) -> None:
    pytest.importorskip("da4ml")
    target = tmp_path / "small.toml"
    target.write_text('extends = "fpga-ecp5-25k"\nname = "small"\nengines = ["rtl"]\n[resources]\nlut = 20\n')
    with pytest.raises(ParedError, match="the largest layer is") as caught:
        pared.compile(mlp(3), target=str(target), output=tmp_path / "out")
    assert caught.value.reason == "fpga-does-not-fit"
    assert "folded" not in caught.value.next_step  # the target has no such engine


@pytest.mark.parametrize(
    ("options", "message"),
    [({"latency_cutof": 2.0}, "latency_cutof"), ({"seed": "one"}, "seed takes a int")],
)
def test_wrong_engine_options_are_refused_by_name(options: dict[str, str | float], message: str) -> None:
    target = load_target("fpga-ecp5-25k").model_copy(update={"options": options})
    with pytest.raises(TargetError, match=message):
        options_of("rtl", target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "tools"),
    [("fpga-ice40-hx8k", ("yosys", "nextpnr-ice40", "icepack")), ("fpga-xcup", ("yosys",))],
)
def test_other_families_go_as_far_as_open_tools_go(
    target: str, tools: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("da4ml")
    missing = [tool for tool in tools if find_tool(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    pared.compile(mlp(2, sizes=(4, 2, 2)), target=target, output=tmp_path / "out")
    report = json.loads((tmp_path / "out/reports/fpga.json").read_text())["implementation"]
    routed = "nextpnr-ice40" in tools
    assert (report["fmax_mhz"] is not None) == routed
    assert report["lut4" if routed else "lut6"] > 0
    assert (tmp_path / "out/model.bit").is_file() == routed
    assert routed or "no open tool" in report["why_null"]


def test_the_artifact_holds_golden_bits_and_the_result_of_simulating_them(tmp_path: Path) -> None:
    pytest.importorskip("da4ml")
    net = mlp(2, sizes=(4, 2, 2))
    options = {"route": False, "simulate": 8}
    pared.compile(net, target="fpga-ecp5-25k", engine="rtl", engine_options=options, output=tmp_path / "out")
    for name in ("inputs", "outputs"):
        assert len((tmp_path / f"out/model_golden_{name}.txt").read_text().split()) == 8
    report = json.loads((tmp_path / "out/reports/fpga.json").read_text())["simulated"]
    if report["tool"] is None:
        pytest.skip(report["why_null"])
    assert (report["samples"], report["differing"]) == (8, 0)


def test_verilog_that_computes_otherwise_is_refused() -> None:
    pytest.importorskip("da4ml")
    from pared.backends.fpga.circuit import trace
    from pared.backends.fpga.golden import Golden, golden, simulated
    from pared.backends.fpga.read import read_network
    from pared.backends.fpga.simulation import simulators
    from pared.backends.fpga.verilog import write_rtl

    if not simulators():
        pytest.skip("no simulator is installed")
    network = read_network(mlp(2, sizes=(4, 2, 2)))
    circuit = trace(network)
    right = golden(network, circuit, None, 8)
    wrong = Golden(right.entering, right.leaving + (np.arange(8) == 3)[:, None], 0)
    with pytest.raises(ParedError, match="2 of 16 values") as caught:
        simulated(write_rtl(circuit.logic, 4.0), circuit, wrong, 60)
    assert caught.value.reason == "fpga-verilog-differs"


def test_finished_steps_are_not_run_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "open('ran', 'a').write('x')"]
    first, second = (run_step("synthesis", command, tmp_path, 30) for _ in range(2))
    assert (tmp_path / "ran").read_text() == "x"
    assert second.log == first.log
    run_step("synthesis", [*command, "other"], tmp_path, 30)
    assert (tmp_path / "ran").read_text() == "xx"


def test_a_workplace_stays_after_a_failure_and_goes_after_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARED_CACHE_DIR", str(tmp_path))

    def fail() -> None:
        with workplace({"a.v": "module"}, 1) as folder:
            (folder / "synthesis.done").write_text("")
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fail()
    with workplace({"a.v": "module"}, 1) as again:
        assert (again / "synthesis.done").is_file()
    assert not again.exists()


def test_a_sweep_that_is_no_list_is_refused() -> None:
    with pytest.raises(TargetError, match="no list"):
        cutoffs_of({"sweep": "1,two", "latency_cutoff": 4.0})
    assert cutoffs_of({"sweep": "1,2.5", "latency_cutoff": 4.0}) == [1, 2.5]
