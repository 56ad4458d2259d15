// One accumulator to one code per clock: floor((factor * a + bias) / 2^shift), kept within 0 to `levels`.
//
// `tie`: where the lowest bit of the quotient is `even`, 1 is added before (half to even). `refine`: the line
// is exact or one too low; one is added where `a` has reached the threshold behind it (~a where the factor is
// negative). Value: offset + count, or offset + 2 * count where `twice`. `raw`: the accumulator itself.
// Clocks from `a` to `value`: 10, with REFINE 13. `row` comes one clock after its `a`.
module folded_requant #(
  parameter SUM = 24, FACTOR = 24, BIAS = 48, TOTAL = 48, SHIFT = 12, STRIDE = 4, PICK = 3,
  parameter LEVEL = 8, VALUE = 9, RESULT = 24, TIES = 1, REFINE = 0, PLACE = 1, DEPTH = 1,
  parameter FILE = ""
) (
  input clk,
  input raw, input twice, input [LEVEL-1:0] levels, input signed [VALUE-1:0] offset,
  input signed [SUM-1:0] a,
  input [FACTOR+BIAS+PICK+PLACE+2:0] row,
  output reg signed [RESULT-1:0] value
);
  localparam LOW = 17;
  localparam LAST = REFINE ? 12 : 9;

  // the accumulator beside its count; kept[i] is i clocks old
  reg signed [SUM-1:0] kept [1:LAST];
  integer i;
  always @(posedge clk) begin
    kept[1] <= a;
    for (i = 2; i <= LAST; i = i + 1) kept[i] <= kept[i-1];
  end

  reg [FACTOR+BIAS+PICK+PLACE+2:0] row2;
  wire signed [FACTOR-1:0] factor;
  wire signed [BIAS-1:0] bias;
  wire refine, tie, even;
  wire [PICK-1:0] pick;
  wire [PLACE-1:0] place;
  assign {refine, place, tie, even, pick, factor, bias} = row2;
  always @(posedge clk) row2 <= row;

  // factor * a in products of at most 18 bits, which a multiplier block takes
  wire signed [LOW:0] a_low, factor_low;
  wire signed [LOW:0] a_high, factor_high;
  generate
    if (SUM > LOW + 1) begin : wide_a
      assign a_low = {1'b0, kept[2][LOW-1:0]};
      assign a_high = kept[2] >>> LOW;
    end else begin : narrow_a
      assign a_low = kept[2];
      assign a_high = 0;
    end
    if (FACTOR > LOW + 1) begin : wide_factor
      assign factor_low = {1'b0, factor[LOW-1:0]};
      assign factor_high = factor >>> LOW;
    end else begin : narrow_factor
      assign factor_low = factor;
      assign factor_high = 0;
    end
  endgenerate

  reg signed [2*LOW+1:0] ll, lh, hl, hh;
  reg signed [TOTAL-1:0] lower, upper, total, biased, tied, shifted;
  reg signed [BIAS-1:0] bias3, bias4, bias5;
  reg [PICK+1:0] mode3, mode4, mode5, mode6;
  reg [PICK-1:0] pick7;
  reg [LEVEL-1:0] count;

  wire tie6, even6;
  wire [PICK-1:0] pick6;
  assign {tie6, even6, pick6} = mode6;
  wire [(1<<PICK)-1:0] lowest;
  wire signed [TOTAL-1:0] moved [0:PICK];
  assign moved[0] = tied >>> SHIFT;
  genvar p;
  generate
    for (p = 0; p < (1 << PICK); p = p + 1) begin : bit_of
      if (SHIFT + STRIDE * p < TOTAL) assign lowest[p] = biased[SHIFT + STRIDE * p];
      else assign lowest[p] = biased[TOTAL-1];
    end
    for (p = 0; p < PICK; p = p + 1) begin : shift_of
      assign moved[p+1] = pick7[p] ? moved[p] >>> (STRIDE << p) : moved[p];
    end
  endgenerate

  always @(posedge clk) begin
    ll <= a_low * factor_low; lh <= a_low * factor_high;
    hl <= a_high * factor_low; hh <= a_high * factor_high;
    bias3 <= bias; mode3 <= {tie, even, pick};
    lower <= ll + (lh <<< LOW); upper <= hl + (hh <<< LOW);
    bias4 <= bias3; mode4 <= mode3;
    total <= lower + (upper <<< LOW);
    bias5 <= bias4; mode5 <= mode4;
    biased <= total + bias5;
    mode6 <= mode5;
    tied <= biased + $signed({1'b0, TIES && tie6 && lowest[pick6] == even6});
    pick7 <= pick6;
    shifted <= moved[PICK];
    if (shifted[TOTAL-1]) count <= 0;
    else count <= |shifted[TOTAL-1:LEVEL] || shifted[LEVEL-1:0] > levels ? levels : shifted[LEVEL-1:0];
  end

  wire [LEVEL-1:0] exact;
  generate
    if (REFINE) begin : refined
      reg [PLACE+1:0] side [3:12];
      reg [PLACE-1:0] address;
      reg [LEVEL-1:0] count10, count11, count12;
      reg signed [SUM-1:0] threshold;
      wire signed [SUM-1:0] found;
      folded_table #(.WIDTH(SUM), .DEPTH(DEPTH), .ADDRESS(PLACE), .FILE(FILE))
        thresholds(.clk(clk), .address(address), .word(found));
      integer j;
      always @(posedge clk) begin
        side[3] <= {refine, factor[FACTOR-1], place};
        for (j = 4; j <= 12; j = j + 1) side[j] <= side[j-1];
        address <= side[9][PLACE-1:0] + count;
        threshold <= found;
        count10 <= count; count11 <= count10; count12 <= count11;
      end
      wire signed [SUM-1:0] key = side[12][PLACE] ? ~kept[12] : kept[12];
      assign exact = count12 + (side[12][PLACE+1] && key >= threshold);
    end else begin : straight
      assign exact = count;
    end
  endgenerate

  wire signed [LEVEL+1:0] grown = twice ? {1'b0, exact, 1'b0} : {2'b00, exact};
  always @(posedge clk) value <= raw ? kept[LAST] : offset + grown;
endmodule
