"""A circuit as Verilog: a pipeline with one result per clock, and what device tools need around it."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .tables import with_modules

if TYPE_CHECKING:
    from da4ml.types import CombLogic

CORE = "model"
_PORT = re.compile(r"(input|output)\s*(?:reg\s*|wire\s*)?\[(\d+):0\]\s*model_(inp|out)")


@dataclass(frozen=True)
class Rtl:
    """Verilog of a pipeline.

    Attributes:
        files: name -> text: `model.v`, its stages, and library modules.
        stages: clock edges from input to output.
        input_bits, output_bits: widths of `model_inp` and `model_out`.
    """

    files: dict[str, str]
    stages: int
    input_bits: int
    output_bits: int


def write_rtl(logic: CombLogic, latency_cutoff: float) -> Rtl:
    """Return a pipeline in Verilog; a stage holds logic of at most `latency_cutoff` adders or so."""
    from da4ml.codegen import RTLModel
    from da4ml.trace import to_pipeline

    pipeline = to_pipeline(logic, latency_cutoff, verbose=False)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        RTLModel(pipeline, CORE, folder, flavor="verilog", print_latency=False).write()
        source = Path(folder) / "src"
        paths = sorted([*source.glob("*.v"), *source.glob("static/*.v"), *source.glob("memfiles/*")])
        files = {path.name: path.read_text() for path in paths if not path.name.startswith(f"{CORE}_wrapper")}
    files = with_modules(files)
    widths = {found[3]: int(found[2]) + 1 for found in _PORT.finditer(files[f"{CORE}.v"])}
    return Rtl(files, len(pipeline.solutions) + 1, widths["inp"], widths["out"])


def harness(rtl: Rtl) -> str:
    """Return `top`: three pins and a clock, so that any circuit fits any package.

    Bits are shifted in at `sin`; `load` takes the result into a register that is shifted out at `sout`.
    """
    inside, out = rtl.input_bits, rtl.output_bits
    return f"""// Three pins and a clock around the core; the shift registers are the harness's.
module top(input clk, input sin, input load, output sout);
  reg [{inside - 1}:0] si;
  reg [{out - 1}:0] so;
  wire [{out - 1}:0] y;
  {CORE} core(.clk(clk), .model_inp(si), .model_out(y));
  always @(posedge clk) begin
    si <= {{{f"si[{inside - 2}:0], " if inside > 1 else ""}sin}};
    so <= load ? y : {{1'b0{f", so[{out - 1}:1]" if out > 1 else ""}}};
  end
  assign sout = so[0];
endmodule
"""
