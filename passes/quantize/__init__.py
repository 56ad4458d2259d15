"""Post-training quantization.

The way: `policy.decide` says what is quantized (a `QuantPlan` without scales), `calibrate.observe` streams
the ranges, `scales.assign` fills scales in, `improve.improve` betters rounding and biases,
`materialize.apply_plan` writes the operations. `equalize` goes before all this; `recurrent` does cells and
the bodies of control flow.
"""
