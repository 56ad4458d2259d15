"""The Verilog itself, simulated: Verilator where it and a C++ compiler are installed, else Icarus Verilog.

Samples stream in, one per clock, and come out `stages` clocks later; so latency and one result per clock
are part of what is checked.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...compiler.temporary import folder_prefix
from .graph import Ints
from .tools import find_tool, need_tool, run_tool
from .verilog import CORE, Rtl

if TYPE_CHECKING:
    from da4ml.types import CombLogic

_PRAGMA = re.compile(r"/\*\s*verilator.*?\*/|//\s*verilator.*")

Bits = npt.NDArray[np.uint8]


def simulators() -> list[str]:
    """Return which simulators are installed, fastest first."""
    both = find_tool("iverilog") is not None and find_tool("vvp") is not None
    verilator = find_tool("verilator") is not None and find_tool("g++") is not None
    return [name for name, here in (("verilator", verilator), ("iverilog", both)) if here]


@dataclass(frozen=True, eq=False)
class Ports:
    """Bits of every input and output value, and which outputs are two's complement."""

    inputs: Ints
    outputs: Ints
    signed: npt.NDArray[np.bool_]


def ports(logic: CombLogic) -> Ports:
    """Return the ports of a circuit."""
    from da4ml.types import minimal_kif

    ins, outs = ([minimal_kif(q) for q in qs] for qs in (logic.inp_qint, logic.out_qint))
    widths = [np.array([int(k) + i + f for k, i, f in kifs], np.int64) for kifs in (ins, outs)]
    return Ports(widths[0], widths[1], np.array([bool(k) for k, _, _ in outs]))


def simulate_rtl(rtl: Rtl, samples: Ints, ports: Ports, tool: str, timeout_s: float = 300) -> Ints:
    """Return what the Verilog computes, [N, outputs].

    Args:
        rtl: the pipeline.
        samples: [N, inputs], the integers of the circuit's ports.
        ports: of the circuit.
        tool: `verilator` or `iverilog`.
        timeout_s: for each step.

    Raises:
        MissingTool: it is not installed.
        ParedError: it failed; names the log.
    """
    with tempfile.TemporaryDirectory(prefix=folder_prefix("sim")) as name:
        folder = Path(name)
        for file, text in rtl.files.items():
            # Verilator 5.006 stops at lint codes that it does not know yet
            (folder / file).write_text(_PRAGMA.sub("", text))
        lines = ["".join(map(str, row[::-1])) for row in to_bits(samples, ports.inputs)]
        (folder / "samples.txt").write_text("\n".join(lines) + "\n")
        (folder / "bench.v").write_text(_bench(rtl, len(samples)))
        build_and_run(folder, sorted(p.name for p in folder.glob("*.v")), tool, timeout_s)
        rows = (folder / "results.txt").read_text().split()
    bits = np.array([[int(b) for b in row[::-1]] for row in rows], np.uint8)
    return from_bits(bits, ports.outputs, ports.signed)


def build_and_run(folder: Path, sources: list[str], tool: str, timeout_s: float) -> None:
    """Build the Verilog of a folder, whose top is `bench`, and run it there; raises as `simulate_rtl`."""
    if tool == "verilator":
        _verilator(folder, sources, timeout_s)
        return
    run_tool("iverilog", [need_tool("iverilog"), "-g2005-sv", "-o", "sim", *sources], folder, timeout_s)
    run_tool("vvp", [need_tool("vvp"), "sim"], folder, timeout_s)


def _verilator(folder: Path, sources: list[str], timeout_s: float) -> None:
    command = [
        need_tool("verilator"), "--binary", "--timing", "-Wno-fatal", "-Wno-lint", "--top-module", "bench",
        "-O3", "-Mdir", "obj", "-o", "sim", *sources,
    ]  # fmt: skip
    run_tool("verilator", command, folder, timeout_s)
    run_tool("simulation", [str(folder / "obj" / "sim")], folder, timeout_s)


def _bench(rtl: Rtl, count: int) -> str:
    """Return a test bench: a sample before every rising edge, its result read `stages` edges later."""
    inside, out = rtl.input_bits, rtl.output_bits
    return f"""`timescale 1ns/1ps
module bench;
  reg clk = 0;
  reg [{inside - 1}:0] x;
  wire [{out - 1}:0] y;
  reg [{inside - 1}:0] samples [0:{count - 1}];
  integer i, file;
  {CORE} core(.clk(clk), .model_inp(x), .model_out(y));
  initial begin
    $readmemb("samples.txt", samples);
    file = $fopen("results.txt", "w");
    for (i = 0; i < {count + rtl.stages - 1}; i = i + 1) begin
      x = i < {count} ? samples[i] : 0;
      #5 clk = 1;
      #1 if (i >= {rtl.stages - 1}) $fdisplay(file, "%b", y);
      #4 clk = 0;
    end
    $fclose(file);
    $finish;
  end
endmodule
"""


def to_bits(values: Ints, widths: Ints) -> Bits:
    """Return two's complement bits, [N, sum of widths], lowest of the first value first."""
    columns = [(values[:, i : i + 1] >> np.arange(width)) & 1 for i, width in enumerate(widths)]
    return np.concatenate(columns, axis=1).astype(np.uint8)


def from_bits(bits: Bits, widths: Ints, signed: npt.NDArray[np.bool_]) -> Ints:
    """Undo `to_bits`."""
    ends = np.cumsum(widths)
    result = np.zeros((len(bits), len(widths)), np.int64)
    for i, (end, width) in enumerate(zip(ends, widths, strict=True)):
        weights = np.int64(1) << np.arange(width, dtype=np.int64)
        if signed[i] and width:
            weights[-1] = -weights[-1]
        result[:, i] = bits[:, end - width : end].astype(np.int64) @ weights
    return result
