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

// A large table in banks, one word 3 clocks after its address: what leaves a block memory is late, and goes
// through a register before and behind the choice of a bank. Bank b is in the file NAME followed by b.
module folded_banks #(
  parameter WIDTH = 8, DEPTH = 16, ADDRESS = 4, BANK = 4, NAME = ""
) (
  input clk, input [ADDRESS-1:0] address, output reg [WIDTH-1:0] word
);
  localparam BANKS = (DEPTH + (1 << BANK) - 1) >> BANK;
  wire [BANK-1:0] place = address;
  reg [ADDRESS-1:0] address1;
  genvar b;
  generate
    for (b = 0; b < BANKS; b = b + 1) begin : bank
      localparam [7:0] DIGIT = b < 10 ? 48 + b : 87 + b;
      localparam LEFT = DEPTH - (b << BANK);
      wire [WIDTH-1:0] found, chosen;
      reg [WIDTH-1:0] held;  // 0 where another bank is meant
      folded_table #(
        .WIDTH(WIDTH), .DEPTH(LEFT < (1 << BANK) ? LEFT : 1 << BANK), .ADDRESS(BANK),
        .FILE({NAME, DIGIT, ".hex"})
      ) cells(.clk(clk), .address(place), .word(found));
      always @(posedge clk) held <= address1 >> BANK == b ? found : 0;
      if (b == 0) assign chosen = held;
      else assign chosen = held | bank[b-1].chosen;
    end
  endgenerate
  always @(posedge clk) begin
    address1 <= address;
    word <= bank[BANKS-1].chosen;
  end
endmodule
