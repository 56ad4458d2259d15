"""The engine's Verilog for a program: the fixed modules of `rtl/` and a top with its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from .image import Image
from .program import Program

_MODULES = ("memory.v", "lanes.v", "requant.v", "sequencer.v", "engine.v")


def files_of(program: Program, image: Image) -> dict[str, str]:
    """Return name -> text: Verilog, and tables in hexadecimal."""
    w, units = image.widths, program.folding.units
    folder = resources.files(__package__) / "rtl"
    files = {f"folded_{name}": (folder / name).read_text() for name in _MODULES}
    files["top.v"] = top(program, image)
    files["model_program.hex"] = _hex(image.program, w.word)
    for bank in range(-(-len(image.weights) >> w.bank) or 1):
        words = image.weights[bank << w.bank : (bank + 1) << w.bank]
        files[f"model_weights_{bank:x}.hex"] = _hex(words, w.weight * program.folding.lanes)
    files["model_rows.hex"] = _hex(image.rows, w.row * units)
    for unit, table in enumerate(image.thresholds):
        files[f"model_thresholds_{unit}.hex"] = _hex(table, w.sum)
    return files


def whole(files: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files of an artifact: all modules in `model.v`, `top` among them, and the tables."""
    modules = [files[name] for name in sorted(files) if name.endswith(".v")]
    tables = {name: text.encode() for name, text in files.items() if name.endswith(".hex")}
    return {"model.v": "\n".join(modules).encode(), **tables}


def _hex(words: tuple[int, ...], bits: int) -> str:
    digits, mask = -(-bits // 4), (1 << bits) - 1
    return "".join(f"{word & mask:0{digits}x}\n" for word in words)


def parameters(program: Program, image: Image) -> dict[str, int]:
    """Return the parameters of `rtl/engine.v`."""
    w, folding = image.widths, program.folding
    return {
        "LANES": folding.lanes, "UNITS": folding.units, "SELECT": w.select, "CHUNK": w.chunk,
        "VALUE": w.value, "WEIGHT": w.weight, "SUM": w.sum, "RESULT": w.result, "ADDRESS": w.address,
        "DEPTH": program.depth, "COUNT": w.count, "PIXEL": w.pixel, "WEIGHTS": w.weights,
        "WEIGHT_DEPTH": len(image.weights), "WEIGHT_BANK": w.bank, "ROWS": w.rows,
        "ROW_DEPTH": len(image.rows),
        "STEPS": len(image.program), "INDEX": w.index, "FLUSH": program.flush, "WORD": w.word,
        "FACTOR": w.factor, "BIAS": w.bias, "TOTAL": w.total, "SHIFT": w.shift, "STRIDE": w.stride,
        "PICK": w.pick, "LEVEL": w.level, "TIES": int(w.ties), "REFINE": int(program.refine),
        "PLACE": w.place, "THRESHOLD_DEPTH": max([1, *map(len, image.thresholds)]),
    }  # fmt: skip


def top(program: Program, image: Image) -> str:
    """Return the module `top`: the engine with its parameters."""
    w, units = image.widths, program.folding.units
    values = ",\n".join(f"    .{name}({value})" for name, value in parameters(program, image).items())
    return f"""// {units} values of {w.value} bits in, {units} of {w.result} bits out.
module top(
  input clk, input rst,
  input in_valid, output in_ready, input [{units * w.value - 1}:0] in_data,
  output idle, output out_valid, output [{units * w.result - 1}:0] out_data
);
  folded_engine #(
{values}
  ) engine(
    .clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
    .idle(idle), .out_valid(out_valid), .out_data(out_data)
  );
endmodule
"""
