"""One tiny network all the way: compiled, routed, loaded, run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fpga_models import mlp

import pared
from pared.backends.fpga.engines import options_of
from pared.backends.fpga.tools import find_tool
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


@pytest.mark.parametrize(
    ("options", "message"),
    [({"latency_cutof": 2.0}, "latency_cutof"), ({"seed": "one"}, "seed takes a int")],
)
def test_wrong_engine_options_are_refused_by_name(options: dict[str, str | float], message: str) -> None:
    target = load_target("fpga-ecp5-25k").model_copy(update={"options": options})
    with pytest.raises(TargetError, match=message):
        options_of("rtl", target)
