// The engine: sequencer, activations, LANES multipliers, UNITS requantizers.
//
// Values stream in and out UNITS at a time. Clocks: see sequencer.v, lanes.v and requant.v; README.md adds them up.
module folded_engine #(
  parameter LANES = 4, UNITS = 2, SELECT = 2, CHUNK = 1, VALUE = 9, WEIGHT = 8, SUM = 24, RESULT = 24,
  parameter ADDRESS = 8, DEPTH = 256, COUNT = 8, PIXEL = 6, WEIGHTS = 8, WEIGHT_DEPTH = 256, WEIGHT_BANK = 10,
  parameter ROWS = 8, ROW_DEPTH = 256, STEPS = 2, INDEX = 1, FLUSH = 20, WORD = 100,
  parameter FACTOR = 24, BIAS = 48, TOTAL = 48, SHIFT = 12, STRIDE = 4, PICK = 3, LEVEL = 8,
  parameter TIES = 0, REFINE = 0, PLACE = 1, THRESHOLD_DEPTH = 1
) (
  input clk, input rst,
  input in_valid, output in_ready, input [UNITS*VALUE-1:0] in_data,
  output idle, output out_valid, output [UNITS*RESULT-1:0] out_data
);
  localparam ROW = FACTOR + BIAS + PICK + PLACE + 3;
  localparam LATENCY = REFINE ? 13 : 10;

  wire raw, leaves, kept, own, largest, twice, start;
  wire [LEVEL-1:0] levels;
  wire [VALUE-1:0] offset;
  wire [CHUNK-1:0] last_chunk;
  wire [ADDRESS-1:0] write_base, address;
  wire [ROWS-1:0] row_base;
  wire valid, first, in_picture, ending, renew;
  wire [SELECT-1:0] select;
  wire [WEIGHTS-1:0] weight;
  folded_sequencer #(
    .COUNT(COUNT), .ADDRESS(ADDRESS), .PIXEL(PIXEL), .WEIGHTS(WEIGHTS), .ROWS(ROWS), .CHUNK(CHUNK),
    .SELECT(SELECT), .LEVEL(LEVEL), .VALUE(VALUE), .STEPS(STEPS), .INDEX(INDEX), .FLUSH(FLUSH), .WORD(WORD),
    .FILE("model_program.hex")
  ) sequencer(
    .clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .idle(idle), .raw(raw), .leaves(leaves),
    .kept(kept), .own(own), .largest(largest), .twice(twice), .levels(levels), .offset(offset),
    .last_chunk(last_chunk), .write_base(write_base), .start(start), .row_base(row_base), .address(address),
    .valid(valid), .first(first), .in_picture(in_picture), .ending(ending), .renew(renew), .select(select),
    .weight(weight)
  );

  wire [LANES*VALUE-1:0] word;
  wire [LANES*WEIGHT-1:0] weights;
  wire [LANES*SUM-1:0] sums;
  folded_banks #(
    .WIDTH(LANES*WEIGHT), .DEPTH(WEIGHT_DEPTH), .ADDRESS(WEIGHTS), .BANK(WEIGHT_BANK), .NAME("model_weights_")
  ) weight_table(.clk(clk), .address(weight), .word(weights));
  folded_lanes #(.LANES(LANES), .SELECT(SELECT), .VALUE(VALUE), .WEIGHT(WEIGHT), .SUM(SUM)) lanes(
    .clk(clk), .own(own), .largest(largest), .valid(valid), .first(first), .in_picture(in_picture),
    .select(select), .word(word), .weights(weights), .sums(sums)
  );

  // finished accumulators leave UNITS per clock, while the next ones are made
  reg [4:0] endings, renews;
  reg [LANES*SUM-1:0] queue;
  reg draining;
  reg [CHUNK-1:0] drained;
  reg [ROWS-1:0] row_at;
  wire take = endings[4];
  initial begin endings = 0; draining = 0; end
  always @(posedge clk) begin
    endings <= {endings[3:0], ending};
    renews <= {renews[3:0], renew};
    queue <= take ? sums : queue >> (UNITS * SUM);
    draining <= take || (draining && drained != last_chunk);
    drained <= take ? 0 : drained + 1;
    row_at <= take && renews[4] ? row_base : row_at + draining;
  end

  wire [UNITS*ROW-1:0] rows;
  wire [UNITS*RESULT-1:0] results;
  wire [UNITS*VALUE-1:0] made;
  folded_table #(.WIDTH(UNITS*ROW), .DEPTH(ROW_DEPTH), .ADDRESS(ROWS), .FILE("model_rows.hex"))
    row_table(.clk(clk), .address(row_at), .word(rows));
  genvar u;
  generate
    for (u = 0; u < UNITS; u = u + 1) begin : unit
      localparam [7:0] DIGIT = 48 + u;
      folded_requant #(
        .SUM(SUM), .FACTOR(FACTOR), .BIAS(BIAS), .TOTAL(TOTAL), .SHIFT(SHIFT), .STRIDE(STRIDE), .PICK(PICK),
        .LEVEL(LEVEL), .VALUE(VALUE), .RESULT(RESULT), .TIES(TIES), .REFINE(REFINE), .PLACE(PLACE),
        .DEPTH(THRESHOLD_DEPTH), .FILE({"model_thresholds_", DIGIT, ".hex"})
      ) requant(
        .clk(clk), .raw(raw), .twice(twice), .levels(levels), .offset(offset),
        .a(queue[u*SUM +: SUM]), .row(rows[u*ROW +: ROW]), .value(results[u*RESULT +: RESULT])
      );
      assign made[u*VALUE +: VALUE] = results[u*RESULT +: VALUE];
    end
  endgenerate

  // what is made, or comes in, is stored
  reg [LATENCY-1:0] made_valid;
  reg [CHUNK-1:0] chunk;
  reg [ADDRESS-1:0] write_at;
  wire done = made_valid[LATENCY-1];
  wire put = done || (in_valid && in_ready);
  initial made_valid = 0;
  always @(posedge clk) begin
    made_valid <= {made_valid[LATENCY-2:0], draining};
    if (start) begin chunk <= 0; write_at <= write_base; end
    else if (put) begin
      chunk <= chunk == last_chunk ? 0 : chunk + 1;
      if (chunk == last_chunk) write_at <= write_at + 1;
    end
  end
  folded_activations #(
    .LANES(LANES), .UNITS(UNITS), .VALUE(VALUE), .DEPTH(DEPTH), .ADDRESS(ADDRESS), .CHUNK(CHUNK)
  ) activations(
    .clk(clk), .read_address(address), .read_word(word), .write(put && kept), .chunk(chunk),
    .write_address(write_at), .values(in_ready ? in_data : made)
  );
  assign out_valid = done && leaves;
  assign out_data = results;
endmodule
