"""The engine's Verilog, simulated: values stream in and out as on the chip, and clocks are counted."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....compiler.temporary import folder_prefix
from ..graph import Ints
from ..simulation import build_and_run, to_bits
from .image import Image
from .program import Program
from .stream import enter, leave, leaving_clocks


@dataclass(frozen=True, eq=False)
class Simulated:
    """What the Verilog gave: integers of the output wires, and clocks of every inference but the first."""

    codes: dict[str, Ints]
    clocks: tuple[int, ...]


def simulate_engine(
    program: Program, image: Image, files: Mapping[str, str], codes: Mapping[str, Ints], tool: str,
    *, gaps: bool = False, timeout_s: float = 300,
) -> Simulated:  # fmt: skip
    """Run samples through the Verilog.

    Args:
        program: what `files` were made from.
        image: likewise.
        files: of `rtl.files_of`.
        codes: integers of the input wires, [N, *shape].
        tool: `verilator` or `iverilog`.
        gaps: let values come at every third clock only.
        timeout_s: for each step.

    Raises:
        MissingTool: the simulator is not installed.
        ParedError: it failed, or took too long; names the log.
    """
    stream = enter(program, codes)
    count, beats, units = stream.shape
    w = image.widths
    lines = ["".join(map(str, row[::-1])) for row in _bits(stream.reshape(-1, units), w.value)]
    leaving = leaving_clocks(program)
    with tempfile.TemporaryDirectory(prefix=folder_prefix("sim")) as name:
        folder = Path(name)
        for file, text in files.items():
            (folder / file).write_text(text)
        (folder / "samples.txt").write_text("\n".join(lines) + "\n")
        (folder / "bench.v").write_text(
            _bench(units, w.value, w.result, count * beats, count * leaving, gaps)
        )
        build_and_run(folder, sorted(p.name for p in folder.glob("*.v")), tool, timeout_s)
        rows = (folder / "results.txt").read_text().split()
        clocks = [int(text) for text in (folder / "clocks.txt").read_text().split()]
    streamed = _values(rows, units, w.result).reshape(count, leaving, units)
    return Simulated(leave(program, streamed), tuple(int(v) for v in np.diff(clocks)))


def _bits(values: Ints, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return to_bits(values, np.full(values.shape[1], width, np.int64))


def _values(rows: list[str], units: int, width: int) -> Ints:
    """Return two's complement values; unknown bits, which unused lanes have, are 0."""
    values = np.zeros((len(rows), units), np.int64)
    for i, row in enumerate(rows):
        for u in range(units):
            field = row[len(row) - (u + 1) * width : len(row) - u * width].replace("x", "0")
            value = int(field, 2)
            values[i, u] = value - (1 << width) if field[0] == "1" else value
    return values


def _bench(units: int, value: int, result: int, beats: int, results: int, gaps: bool) -> str:
    """Return a test bench that ends with the last result, or when none came for long."""
    offered = "tick % 3 == 0" if gaps else "1"
    return f"""`timescale 1ns/1ps
module bench;
  reg clk = 0, rst = 1, was_idle = 1;
  reg [{units * value - 1}:0] samples [0:{beats - 1}];
  integer sent = 0, got = 0, tick = 0, file, clocks;
  wire ready, idle, out_valid;
  wire [{units * result - 1}:0] out_data;
  wire valid = sent < {beats} && ({offered});
  wire [{units * value - 1}:0] data = samples[sent < {beats} ? sent : 0];
  top engine(.clk(clk), .rst(rst), .in_valid(valid), .in_ready(ready), .in_data(data),
    .idle(idle), .out_valid(out_valid), .out_data(out_data));
  initial begin
    $readmemb("samples.txt", samples);
    file = $fopen("results.txt", "w");
    clocks = $fopen("clocks.txt", "w");
  end
  always #5 clk = !clk;
  always @(posedge clk) begin
    rst <= 0;
    tick <= tick + 1;
    if (valid && ready && !rst) sent <= sent + 1;
    if (idle && !was_idle) $fdisplay(clocks, "%0d", tick);
    was_idle <= idle;
    if (out_valid) begin
      $fdisplay(file, "%b", out_data);
      got <= got + 1;
    end
    if (idle && got == {results} || tick == 100000000) begin
      $fclose(file);
      $fclose(clocks);
      $finish;
    end
  end
endmodule
"""
