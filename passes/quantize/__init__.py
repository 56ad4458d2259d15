"""Post-training quantization.

The way: `policy.decide` says what is quantized (a `QuantPlan` without scales), `calibrate.observe` streams
the ranges, `policy.assign` fills scales in, `equalize`, `adaround`, `bias_correct` improve weights,
`materialize.apply_plan(model, plan, integers=..., bias_shift=...)` writes the operations. `integers` maps a
weight's `Site` to integers chosen by a rounding method; `bias_shift` maps a node's name to what is added to
its bias `[channels]`. Both are computed on the float model and the plan, neither edits the model.
"""
