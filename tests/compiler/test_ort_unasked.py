"""onnxruntime's optimisations must not quantize what the compiler left in float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pared.compiler.ort import make_session, run_session

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,3,6,6] x) => (float[1,4,4,4] y)
<float s = {0.01}, uint8 z = {128}, float t = {0.25}, uint8 u = {128}> {
    a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = Conv(b, w)
    d = QuantizeLinear(c, t, u) y = DequantizeLinear(d, t, u) }"""


def test_a_float_convolution_between_quantizers_stays_float() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight[0] *= 1000  # one scale for all channels would leave nothing of the others
    model = ir.from_onnx_text(TEXT)
    value = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(weight.shape))
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    conv = next(node for node in model.graph if node.op_type == "Conv")
    conv.replace_input_with(1, value)
    x = {"x": rng.normal(size=(1, 3, 6, 6)).astype(np.float32)}
    plain, tuned = (run_session(make_session(model, optimize=how), x)["y"] for how in ("none", "all"))
    # Sums in another order may round one step of 0.25 differently, never two.
    assert np.abs(plain - tuned).max() <= 0.25
    assert np.abs(plain[:, 1:]).max() > 1.0
