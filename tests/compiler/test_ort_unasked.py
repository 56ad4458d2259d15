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


BLOCKS = """<ir_version: 10, opset_import: ["" : 21]>
g (float[4,64] x, int8[64,16] w, float[2,16] s) => (float[4,16] y) {
    v = DequantizeLinear<axis: int = 0, block_size: int = 32>(w, s) y = Gemm(x, v) }"""


def test_activations_before_weights_in_blocks_stay_float() -> None:
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(BLOCKS)
    arrays = {
        "w": rng.integers(-127, 128, (64, 16)).astype(np.int8),
        "s": rng.uniform(0.01, 0.02, (2, 16)).astype(np.float32),
    }
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(arrays[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    x = {"x": rng.normal(size=(4, 64)).astype(np.float32)}
    plain, tuned = (run_session(make_session(model, optimize=how), x)["y"] for how in ("none", "all"))
    # 64 products below 4 * 2.54, summed in another order: 64 half ulps of a sum of magnitudes below 650.
    np.testing.assert_allclose(tuned, plain, rtol=0, atol=64 * 0.5 * 650 * float(np.finfo(np.float32).eps))
