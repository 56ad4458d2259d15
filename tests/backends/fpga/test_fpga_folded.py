"""Engine folded from the model to the artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fpga_models import mlp, qdq_conv, residual

import pared
from pared.backends.fpga.tools import find_tool
from pared.backends.reference import evaluate
from pared.compiler.artifact.read import open_artifact
from pared.compiler.errors import ParedError
from pared.compiler.verify.original import payload_model

TOOLS = ("yosys", "nextpnr-ecp5", "ecppack")
UNROUTED: dict[str, str | int | float | bool] = {"route": False}


def report_of(folder: Path) -> dict[str, dict[str, int | float | None]]:
    """Return the report of an artifact."""
    return dict(json.loads((folder / "reports/fpga.json").read_text()))


@pytest.mark.slow
def test_a_tiny_network_is_routed_and_runs_bit_exactly(tmp_path: Path) -> None:
    missing = [tool for tool in TOOLS if find_tool(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    net = mlp(3)
    pared.compile(net, target="fpga-ecp5-25k", engine="folded", output=tmp_path / "out")
    routed = report_of(tmp_path / "out")["implementation"]
    x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    with pared.load(tmp_path / "out") as loaded:
        got = loaded.run({"x": x})["y"]
    assert np.array_equal(got, evaluate(net, {"x": x})["y"])
    assert routed["dsp"] == report_of(tmp_path / "out")["needs"]["dsp"]
    assert routed["fmax_mhz"] is not None
    assert (tmp_path / "out/model.bit").stat().st_size == routed["bitstream_bytes"]


@pytest.mark.parametrize("kind", ["dense", "conv", "depthwise", "sum"])
def test_artifacts_run_bit_exactly(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    net = {
        "dense": lambda: mlp(4),
        "conv": lambda: qdq_conv(rng, True, 1, 1, 1),
        "depthwise": lambda: qdq_conv(rng, False, 2, 1, 4),
        "sum": residual,
    }[kind]()
    pared.compile(
        net, target="fpga-ecp5-25k", engine="folded", output=tmp_path / "out", engine_options=UNROUTED
    )
    shape = [16, *(int(n) for n in list(net.graph.inputs[0].shape or [])[1:])]
    x = rng.normal(size=shape).astype(np.float32)
    want = evaluate(net, {"x": x})
    with pared.load(tmp_path / "out") as loaded:
        got = loaded.run({"x": x})
    assert all(np.array_equal(got[name], want[name]) for name in want)
    graph = payload_model(open_artifact(tmp_path / "out"))
    assert [port.name for port in graph.graph.outputs] == list(want), "layers can be compared"


def test_the_report_says_what_was_simulated(tmp_path: Path) -> None:
    if find_tool("iverilog") is None or find_tool("vvp") is None:
        pytest.skip("not installed: iverilog")
    options = UNROUTED | {"simulate": 5, "lanes": 2, "units": 1}
    pared.compile(
        mlp(3), target="fpga-ecp5-25k", engine="folded", output=tmp_path / "out", engine_options=options
    )
    simulated = report_of(tmp_path / "out")["simulated"]
    assert (simulated["differing"], simulated["samples"], simulated["values"]) == (0, 5, 15)


def test_what_does_not_fit_unrolled_takes_shared_multipliers(tmp_path: Path) -> None:
    pytest.importorskip("da4ml")
    options = UNROUTED | {"simulate": 0}
    pared.compile(
        mlp(4, sizes=(300, 300, 10)), target="fpga-ecp5-25k", output=tmp_path / "out", engine_options=options
    )
    assert json.loads((tmp_path / "out/manifest.json").read_text())["engine"]["name"] == "folded"


def test_what_does_not_fit_at_all_is_refused_naming_its_largest_layer(tmp_path: Path) -> None:
    target = tmp_path / "small.toml"
    target.write_text(
        'extends = "fpga-ecp5-25k"\nname = "small"\n[resources]\nlut = 24288\nbram = 1\ndsp = 28\n'
    )
    with pytest.raises(ParedError, match="the weights of layer 'Gemm_h' alone take") as caught:
        pared.compile(mlp(3), target=str(target), engine="folded", output=tmp_path / "out")
    assert caught.value.reason == "fpga-does-not-fit"


def test_other_families_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "other.toml"
    target.write_text('extends = "fpga-ice40-hx8k"\nname = "other"\nengines = ["folded"]\n')
    with pytest.raises(ParedError) as caught:
        pared.compile(mlp(3), target=str(target), output=tmp_path / "out")
    assert caught.value.reason == "fpga-folded-device"
