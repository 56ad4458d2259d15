// LANES multipliers, each with its accumulator.
//
// `word` is one word of activations. Broadcast: all lanes take its value number `select` (dense layers and
// convolutions). Own: lane l takes value l (depthwise layers, pooling, sums of tensors). Clocks from `valid`
// with `word` to the accumulators: 5; `weights` come 2 clocks after their `word`.
module folded_lanes #(
  parameter LANES = 4, SELECT = 2, VALUE = 9, WEIGHT = 8, SUM = 24
) (
  input clk,
  input own, input largest,
  input valid, input first, input in_picture, input [SELECT-1:0] select,
  input [LANES*VALUE-1:0] word,
  input [LANES*WEIGHT-1:0] weights,
  output [LANES*SUM-1:0] sums
);
  reg [LANES*VALUE-1:0] word_a, word_b;
  reg [VALUE-1:0] one;
  wire [VALUE-1:0] picked;
  reg [SELECT-1:0] select_a;
  reg in_picture_a, in_picture_b;
  reg [3:0] valids, firsts;
  // what padding counts: nothing in a sum, and never the largest
  wire [VALUE-1:0] edge_value = {largest, {(VALUE-1){1'b0}}};

  initial valids = 0;
  always @(posedge clk) begin
    valids <= {valids[2:0], valid};
    firsts <= {firsts[2:0], first};
    word_a <= word; select_a <= select; in_picture_a <= in_picture;
    word_b <= word_a; in_picture_b <= in_picture_a;
    one <= picked;
  end

  genvar l, v;
  generate
    for (v = 0; v < VALUE; v = v + 1) begin : bit_of
      wire [LANES-1:0] column;
      for (l = 0; l < LANES; l = l + 1) begin : row
        assign column[l] = word_a[l*VALUE + v];
      end
      assign picked[v] = column[select_a];
    end
    for (l = 0; l < LANES; l = l + 1) begin : lane
      reg signed [VALUE-1:0] x;
      reg signed [WEIGHT-1:0] w;
      reg signed [VALUE+WEIGHT-1:0] product;
      reg signed [SUM-1:0] sum;
      always @(posedge clk) begin
        x <= !in_picture_b ? edge_value : own ? word_b[l*VALUE +: VALUE] : one;
        w <= weights[l*WEIGHT +: WEIGHT];
        product <= x * w;
        if (valids[3])
          sum <= firsts[3] ? product : largest ? (product > sum ? product : sum) : sum + product;
      end
      assign sums[l*SUM +: SUM] = sum;
    end
  endgenerate
endmodule
