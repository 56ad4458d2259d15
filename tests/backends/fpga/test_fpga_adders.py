"""Adders of our own mapping add and subtract, proven by yosys on the netlist that is placed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pared.backends.fpga.adders import open_ends, script
from pared.backends.fpga.tools import find_tool

# Widths around the border between LUTs and chains, even and odd, shifted, signed and not, constants.
SUMS = {
    "{a} + {b}": (4, 4, 5), "{a} - {b}": (4, 5, 6), "{a} + ({b} <<< 2)": (6, 6, 9),
    "$unsigned({a}) + $unsigned({b})": (7, 5, 8), "({a} <<< 1) - {b}": (6, 8, 9), "{a} - 9'sd77": (8, 1, 10),
    "{b} - {a}": (5, 7, 8), "{a} + {b} - 3": (7, 7, 9),
}  # fmt: skip


def design() -> str:
    ports, lines = [], []
    for i, (what, (left, right, out)) in enumerate(SUMS.items()):
        ports += [f"input signed [{left - 1}:0] a{i}", f"input signed [{right - 1}:0] b{i}"]
        ports.append(f"output signed [{out - 1}:0] y{i}")
        lines.append(f"  assign y{i} = {what.format(a=f'a{i}', b=f'b{i}')};")
    return f"module top({', '.join(ports)});\n" + "\n".join(lines) + "\nendmodule\n"


def yosys(folder: Path, commands: str) -> subprocess.CompletedProcess[str]:
    program = find_tool("yosys")
    assert program is not None
    return subprocess.run(
        [program, "-q", "-p", commands], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_mapped_adders_are_proven_equal(tmp_path: Path) -> None:
    if find_tool("yosys") is None:
        pytest.skip("yosys is not installed")
    (tmp_path / "top_in.v").write_text(design())
    made = yosys(tmp_path, script("top_in.v", tmp_path))
    assert made.returncode == 0, made.stderr
    assert open_ends(tmp_path / "top.json") >= 2 * 4  # both ends of four chains at least
    # the cells' models come from yosys' library; it takes no open output for "x"
    top = json.loads((tmp_path / "top.json").read_text())["modules"]["top"]
    text = json.dumps({"modules": {"top": top}}).replace('"COUT": ["x"]', '"COUT": []')
    (tmp_path / "top.json").write_text(text)
    proof = yosys(
        tmp_path,
        "read_json top.json; read_verilog -overwrite +/lattice/cells_sim_ecp5.v; hierarchy -top top; proc; "
        "flatten -wb; rename top gate; read_verilog top_in.v; proc; opt_clean; rename top gold; "
        "miter -equiv -flatten gold gate miter; hierarchy -top miter; sat -verify -prove trigger 0 miter",
    )
    assert proof.returncode == 0, proof.stdout + proof.stderr
