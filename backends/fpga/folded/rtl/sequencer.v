// Runs a program: one instruction per layer, whose nested loops give addresses.
//
// Loops, inner first: 0 input channel, 1 column and 2 row of the window (or operand of a sum), 3 group of output
// channels, 4 column and 5 row of the output. One step per clock; loops 0 to 2 make one accumulator per lane. A
// loop that goes on while the ones inside it start again moves the read address by `move` of its number, and
// the place in the picture by `columns` and `rows`; loop 0 moves one word on behind the last lane of a word.
// Steps come in the order of their weights. The next layer begins when the last value of this one is stored.
module folded_sequencer #(
  parameter COUNT = 8, ADDRESS = 8, PIXEL = 6, WEIGHTS = 8, ROWS = 8, CHUNK = 2, SELECT = 2, LEVEL = 8,
  parameter VALUE = 9, STEPS = 2, INDEX = 1, FLUSH = 20, WORD = 100, FILE = ""
) (
  input clk, input rst,
  input in_valid, output in_ready,
  output reg idle,
  // of the layer
  output raw, output leaves, output kept, output own, output largest, output twice,
  output [LEVEL-1:0] levels, output [VALUE-1:0] offset,
  output [CHUNK-1:0] last_chunk, output [ADDRESS-1:0] write_base, output start,
  output [ROWS-1:0] row_base,
  // of the step: address first, the rest one clock later beside the word read
  output [ADDRESS-1:0] address,
  output reg valid, output reg first, output reg in_picture, output reg ending, output reg renew,
  output reg [SELECT-1:0] select,
  // beside `address`
  output reg [WEIGHTS-1:0] weight
);
  reg [WORD-1:0] code [0:STEPS-1];
  generate if (FILE != "") initial $readmemh(FILE, code); endgenerate
  reg [WORD-1:0] now;
  reg [INDEX-1:0] index;

  wire load, shared, advance;
  wire [COUNT-1:0] n0, n1, n2, n3, n4, n5, spare;
  wire [ADDRESS-1:0] read_base, move1, move2, move3, move4, move5;
  wire [PIXEL-1:0] row0, rows2, rows3, rows4, rows5, column0, columns1, columns2, columns3, columns4, columns5;
  wire [PIXEL-1:0] height, width;
  wire [WEIGHTS-1:0] weight_base;
  assign {load, raw, leaves, kept, own, largest, shared, advance, twice, n0, n1, n2, n3, n4, n5, spare,
          read_base, move1, move2, move3, move4, move5, row0, rows2, rows3, rows4, rows5,
          column0, columns1, columns2, columns3, columns4, columns5, height, width,
          weight_base, write_base, row_base, last_chunk, levels, offset} = now;

  localparam FETCH = 0, SETUP = 1, LOAD = 2, RUN = 3, PAUSE = 4, DRAIN = 5;
  reg [2:0] state;
  reg [COUNT-1:0] c0, c1, c2, c3, c4, c5, pause;
  reg [7:0] wait_left;
  reg [CHUNK-1:0] chunk;

  wire w0 = c0 == n0, w1 = c1 == n1, w2 = c2 == n2, w3 = c3 == n3, w4 = c4 == n4, w5 = c5 == n5;
  wire window = w0 && w1 && w2;
  wire all = window && w3 && w4 && w5;
  wire run = state == RUN;
  wire beat = state == LOAD && in_valid;
  assign in_ready = state == LOAD;
  assign start = state == SETUP;

  initial begin state = FETCH; index = 0; idle = 1; end
  always @(posedge clk) begin
    case (state)
      FETCH: begin now <= code[index]; state <= SETUP; end
      SETUP: begin
        state <= load ? LOAD : RUN;
        {c0, c1, c2, c3, c4, c5} <= 0;
        chunk <= 0;
        wait_left <= FLUSH - 1;
      end
      LOAD: if (beat) begin  // loops 4 and 5 count the words of an input
        idle <= 0;
        chunk <= chunk == last_chunk ? 0 : chunk + 1;
        if (chunk == last_chunk) begin
          c4 <= w4 ? 0 : c4 + 1;
          if (w4) c5 <= c5 + 1;
          if (w4 && w5) state <= DRAIN;
        end
      end
      RUN: begin
        c0 <= w0 ? 0 : c0 + 1;
        if (w0) c1 <= w1 ? 0 : c1 + 1;
        if (w0 && w1) c2 <= w2 ? 0 : c2 + 1;
        if (window) c3 <= w3 ? 0 : c3 + 1;
        if (window && w3) c4 <= w4 ? 0 : c4 + 1;
        if (window && w3 && w4) c5 <= c5 + 1;
        pause <= spare;
        if (all) state <= DRAIN;
        else if (window && spare != 0) state <= PAUSE;
      end
      PAUSE: begin
        pause <= pause - 1;
        if (pause == 1) state <= RUN;
      end
      default: begin
        wait_left <= wait_left - 1;
        if (wait_left == 0) begin
          state <= FETCH;
          index <= index == STEPS - 1 ? 0 : index + 1;
          idle <= index == STEPS - 1;
        end
      end
    endcase
    if (rst) begin state <= FETCH; index <= 0; idle <= 1; end
  end

  // the step, one clock later: its address is `at`
  reg valid1, first1, ending1, renew1;
  reg [2:0] level1;
  reg [SELECT-1:0] lane, lane1;
  reg [ADDRESS-1:0] at;
  reg [PIXEL-1:0] row, column;
  initial valid1 = 0;
  always @(posedge clk) begin
    valid1 <= run;
    first1 <= c0 == 0 && c1 == 0 && c2 == 0;
    ending1 <= run && window;
    renew1 <= c3 == 0;
    level1 <= !w0 ? 0 : !w1 ? 1 : !w2 ? 2 : !w3 ? 3 : !w4 ? 4 : 5;
    lane1 <= lane;
    lane <= !run || w0 ? 0 : lane + 1;
  end

  wire [ADDRESS-1:0] move = level1 == 0 ? &lane1 : level1 == 1 ? move1 : level1 == 2 ? move2
                          : level1 == 3 ? move3 : level1 == 4 ? move4 : move5;
  wire [PIXEL-1:0] down = level1 < 2 ? 0 : level1 == 2 ? rows2 : level1 == 3 ? rows3 : level1 == 4 ? rows4 : rows5;
  wire [PIXEL-1:0] along = level1 == 0 ? 0 : level1 == 1 ? columns1 : level1 == 2 ? columns2
                         : level1 == 3 ? columns3 : level1 == 4 ? columns4 : columns5;
  assign address = at;
  always @(posedge clk)
    if (start) begin at <= read_base; row <= row0; column <= column0; end
    else if (valid1) begin at <= at + move; row <= row + down; column <= column + along; end

  // beside the word
  initial valid = 0;
  always @(posedge clk) begin
    valid <= valid1; first <= first1; ending <= ending1; renew <= renew1; select <= lane1;
    in_picture <= row < height && column < width;
    if (start) weight <= weight_base;
    else if (valid1) weight <= level1 >= 4 || level1 == 3 && shared ? weight_base : weight + advance;
  end
endmodule
