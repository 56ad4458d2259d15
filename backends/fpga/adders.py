"""Adders on ECP5, mapped by ourselves: neither end of a carry chain leaves the chain.

yosys gives every chain a constant carry-in and a carry-out that nothing reads; nextpnr brings both over the
general wires, which costs two LUT4 slots at each end of each adder. Here the first half slice makes the
carry of bit 0 itself, as nextpnr's own feed-in does, its sum is one LUT4, and open ends stay open. yosys
also merges chains of additions into carry-save trees: two LUT4 per bit and operand, where a chain takes one.
Additions of few bits are left to logic optimization, which shares their LUT4s with what stands around.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

# Widest sum made of LUT4s; of 4, 5, 6 the least area on a network of 64-16-10 neurons at 3 bits.
_RIPPLE = 5
_FILE = "pared_adders.v"
# LUT contents: with C = D = 1 the carry passes where bits 15..12 say so, else it is bits 3..0 of A and B.
_PASS_OR_A = {"add": "16'h600a", "sub": "16'h900a"}
_ONLY_CARRY = {"add": "16'h0008", "sub": "16'h000b"}

_MAP = f"""(* techmap_celltype = "$add $sub" *)
module pared_adders (A, B, Y);
  parameter A_SIGNED = 0;
  parameter B_SIGNED = 0;
  parameter A_WIDTH = 1;
  parameter B_WIDTH = 1;
  parameter Y_WIDTH = 1;
  parameter _TECHMAP_CELLTYPE_ = "";
  localparam SUB = _TECHMAP_CELLTYPE_ == "$sub";
  localparam HALVES = Y_WIDTH + (Y_WIDTH & 1);
  localparam [15:0] BIT = SUB ? {_PASS_OR_A["sub"]} : {_PASS_OR_A["add"]};
  localparam [15:0] FIRST = SUB ? {_ONLY_CARRY["sub"]} : {_ONLY_CARRY["add"]};
  (* force_downto *) input [A_WIDTH-1:0] A;
  (* force_downto *) input [B_WIDTH-1:0] B;
  (* force_downto *) output [Y_WIDTH-1:0] Y;
  (* force_downto *) wire [Y_WIDTH-1:0] a, b;
  wire _TECHMAP_FAIL_ = A_SIGNED != B_SIGNED;
  \\$pos #(.A_SIGNED(A_SIGNED), .A_WIDTH(A_WIDTH), .Y_WIDTH(Y_WIDTH)) wide_a (.A(A), .Y(a));
  \\$pos #(.A_SIGNED(B_SIGNED), .A_WIDTH(B_WIDTH), .Y_WIDTH(Y_WIDTH)) wide_b (.A(B), .Y(b));
  genvar i;
  generate
    if (Y_WIDTH <= {_RIPPLE}) begin
      wire [Y_WIDTH:0] carry;
      assign carry[0] = SUB;
      for (i = 0; i < Y_WIDTH; i = i + 1) begin : bits
        wire other = SUB ? ~b[i] : b[i];
        assign Y[i] = a[i] ^ other ^ carry[i];
        assign carry[i+1] = (a[i] & other) | (a[i] & carry[i]) | (other & carry[i]);
      end
    end else begin
      wire [HALVES-1:0] aa = a, bb = b, yy;
      wire [HALVES/2:0] carry;
      for (i = 0; i < HALVES; i = i + 2) begin : slices
        if (i == 0)
          CCU2C #(.INIT0(FIRST), .INIT1(BIT), .INJECT1_0("NO"), .INJECT1_1("NO")) slice (
            .A0(aa[0]), .B0(bb[0]), .C0(1'b1), .D0(1'b1),
            .A1(aa[1]), .B1(bb[1]), .C1(1'b1), .D1(1'b1), .S1(yy[1]), .COUT(carry[1]));
        else
          CCU2C #(.INIT0(BIT), .INIT1(BIT), .INJECT1_0("NO"), .INJECT1_1("NO")) slice (.CIN(carry[i/2]),
            .A0(aa[i]), .B0(bb[i]), .C0(1'b1), .D0(1'b1), .S0(yy[i]),
            .A1(aa[i+1]), .B1(bb[i+1]), .C1(1'b1), .D1(1'b1), .S1(yy[i+1]), .COUT(carry[i/2+1]));
      end
      assign yy[0] = aa[0] ^ bb[0];
      assign Y = yy[Y_WIDTH-1:0];
    end
  endgenerate
endmodule
"""


def script(sources: str, folder: Path) -> str:
    """Return what yosys runs for the module `top` of `sources`; writes the mapping into `folder`."""
    (folder / _FILE).write_text(_MAP)
    return (
        f"read_verilog -defer -DECP5_LUT4 {sources}; "  # see tables.py
        "synth_ecp5 -top top -run begin:coarse; proc; flatten; opt_expr; opt_clean; "
        f"opt -nodffe -nosdff; wreduce; peepopt; opt_clean; opt; techmap -map {_FILE}; opt; "
        "synth_ecp5 -top top -run coarse: -json top.json"
    )


def open_ends(netlist: Path) -> int:
    """Disconnect carry-ins that no cell looks at and carry-outs that nothing reads; return how many."""
    data = json.loads(netlist.read_text())
    top = data["modules"]["top"]
    read = Counter(bit for port in top["ports"].values() for bit in port["bits"])
    for cell in top["cells"].values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] == "input":
                read.update(bits)
    ends = 0
    starts = {int(init.removeprefix("16'h"), 16) for init in _ONLY_CARRY.values()}
    for cell in top["cells"].values():
        if cell["type"] != "CCU2C":
            continue
        wires = cell["connections"]
        if not read[wires["COUT"][0]]:
            wires["COUT"], ends = ["x"], ends + 1
        if int(cell["parameters"]["INIT0"], 2) in starts:
            wires["CIN"], ends = ["x"], ends + 1
    netlist.write_text(json.dumps(data))
    return ends
