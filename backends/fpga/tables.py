"""Lookup tables of a circuit as modules of logic, where da4ml writes memories.

da4ml's `lookup_table.v` reads a file whose default name does not exist, at which Yosys 0.70 stops, and a
model of one Verilog file cannot hold memory files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from .decompose import Logic, decompose

LIBRARY, FILE = "lookup_table.v", "tables.v"
MOST_BITS = 12
_USE = re.compile(r'lookup_table #\((\d+), (\d+), "([^"]+)\.mem"\) (\w+) \((\w+), ([^)]+)\);')


def with_modules(files: Mapping[str, str]) -> dict[str, str]:
    """Return Verilog in which every table is a module in `tables.v`; without tables, the same files."""
    memories = {name for name in files if name.endswith(".mem")}
    made: dict[str, str] = {}

    def use(found: re.Match[str]) -> str:
        inside, outside, memory = int(found[1]), int(found[2]), found[3]
        name = memory.replace("-", "_")
        if name not in made:
            made[name] = _module(name, inside, outside, tuple(files[f"{memory}.mem"].split()))
        return f"{name} {found[4]} ({found[5]}, {found[6]});"

    kept = {
        name: _USE.sub(use, text) for name, text in files.items() if name not in memories and name != LIBRARY
    }
    if not made:
        return kept
    return {**kept, FILE: "\n".join([*(made[name] for name in sorted(made)), _CODE_MODULE])}


_CODE = "table_code"
_CODE_MODULE = f"""// One table of four inputs. ECP5_LUT4 keeps synthesis from dissolving it.
module {_CODE} #(parameter [15:0] TABLE = 16'd0) (input a, input b, input c, input d, output z);
`ifdef ECP5_LUT4
  LUT4 #(.INIT(TABLE)) lut (.A(a), .B(b), .C(c), .D(d), .Z(z));
`else
  assign z = TABLE >> {{d, c, b, a}};
`endif
endmodule
"""


@lru_cache(maxsize=4096)
def _module(name: str, inside: int, outside: int, words: tuple[str, ...]) -> str:
    """Return the module of a memory file's words; X stands for addresses that never occur."""
    head = f"module {name}(input [{inside - 1}:0] in, output [{outside - 1}:0] out);"
    if inside > MOST_BITS:
        return "\n".join([head, *_cases(inside, outside, words), "endmodule", ""])
    filled, last = [], next((w for w in words if "X" not in w), "0")
    for word in words:
        last = last if "X" in word else word
        filled.append(int(last, 16))
    bits = np.array(filled)[:, None] >> np.arange(outside) & 1
    return "\n".join([head, *_wires(decompose(bits.astype(np.uint8))), "endmodule", ""])


def _cases(inside: int, outside: int, words: tuple[str, ...]) -> list[str]:
    arms = [f"      {inside}'d{k}: value = {outside}'h{w};" for k, w in enumerate(words) if "X" not in w]
    return [
        f"  reg [{outside - 1}:0] value;", "  assign out = value;", "  always @* case (in)",
        *arms, f"      default: value = {outside}'b{'x' * outside};", "  endcase",
    ]  # fmt: skip


def _wires(logic: Logic) -> list[str]:
    names = [f"in[{k}]" for k in range(logic.inputs)]
    lines = []
    for node in logic.nodes:
        size, wire = 1 << len(node.inputs), f"t{len(names)}"
        ports = [names[w] for w in node.inputs]
        if len(names) in logic.codes:
            pins = ", ".join([*ports, *["1'b0"] * (4 - len(ports)), wire])
            lines.append(f"  wire {wire}; {_CODE} #(16'd{node.table}) u{len(names)} ({pins});")
        else:
            shift = f" >> {{{', '.join(reversed(ports))}}}" if ports else ""
            lines.append(f"  wire {wire} = {size}'b{node.table:0{size}b}{shift};")
        names.append(wire)
    return [*lines, *(f"  assign out[{k}] = {names[w]};" for k, w in enumerate(logic.outputs))]
