// Memories with one clock of read latency; device tools put them into block memory.

// What layers read and write: one word holds LANES values, written BANK values at a time.
module folded_activations #(
  parameter LANES = 4, UNITS = 1, VALUE = 9, DEPTH = 16, ADDRESS = 4, CHUNK = 2
) (
  input clk,
  input [ADDRESS-1:0] read_address,
  output [LANES*VALUE-1:0] read_word,
  input write, input [CHUNK-1:0] chunk, input [ADDRESS-1:0] write_address,
  input [UNITS*VALUE-1:0] values
);
  genvar b;
  generate
    for (b = 0; b < LANES / UNITS; b = b + 1) begin : bank
      reg [UNITS*VALUE-1:0] cells [0:DEPTH-1];
      reg [UNITS*VALUE-1:0] found;
      always @(posedge clk) begin
        if (write && chunk == b) cells[write_address] <= values;
        found <= cells[read_address];
      end
      assign read_word[b*UNITS*VALUE +: UNITS*VALUE] = found;
    end
  endgenerate
endmodule

// A table that a file of hexadecimal words fills.
module folded_table #(
  parameter WIDTH = 8, DEPTH = 16, ADDRESS = 4, FILE = ""
) (
  input clk, input [ADDRESS-1:0] address, output reg [WIDTH-1:0] word
);
  reg [WIDTH-1:0] cells [0:DEPTH-1];
  generate if (FILE != "") initial $readmemh(FILE, cells); endgenerate
  always @(posedge clk) word <= cells[address];
endmodule
