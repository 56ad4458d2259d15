"""Quantized products without a quantizer behind them are computed on integers and stay within the bound."""

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs pip install 'pared[tvm]'")

from test_lower_read import kinds, with_constants
from test_lower_run import ISA, assert_as_reference

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.lower import lower

pytestmark = pytest.mark.skipif(not isinstance(ISA, Isa), reason="no supported CPU")

GEMMS = {
    "bias": "y = Gemm<transB=1>(d, wd, b)",
    "no bias": "y = Gemm<transB=1>(d, wd)",
    "clipped": "t = Gemm<transB=1>(d, wd, b)\ny = Relu(t)",
    "matrix product": "t = MatMul(d, wd)\ny = Add(t, b)",
}


def product(body, batch, seed, axis):
    """Return a model with 37 quantized inputs and 21 float outputs."""
    rng = np.random.default_rng(seed)
    shape = (37, 21) if axis else (21, 37)
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (uint8[{batch},37] q) => (float[{batch},21] y) {{
      d = DequantizeLinear(q, xs, xz)
      wd = DequantizeLinear<axis={axis}>(w, ws)
      {body}
    }}"""
    arrays = {
        "w": rng.integers(-127, 128, shape).astype(np.int8),
        "ws": rng.uniform(0.001, 0.02, 21).astype(np.float32),
        "xs": np.float32(0.03),
        "xz": np.uint8(rng.integers(0, 256)),
    }
    if "b)" in body:
        arrays["b"] = rng.standard_normal(21).astype(np.float32)
    return with_constants(text, arrays)


@pytest.mark.parametrize("name", GEMMS)
def test_few_rows_run_on_integers_and_agree_with_the_reference(name, tmp_path):
    model = product(GEMMS[name], 2, 0, int("matrix" in name))
    assert "RealProduct" in kinds(model)
    assert "gemm_int8" in {step.family for step in lower(model, ISA).steps}
    x = np.random.default_rng(1).integers(0, 256, (2, 37)).astype(np.uint8)
    assert_as_reference(model, {"q": x}, tmp_path)


def test_many_rows_stay_in_float():
    assert "RealProduct" not in kinds(product(GEMMS["bias"], 4, 0, 0))


def test_an_image_with_a_border_is_read_through_zero_weights(tmp_path):
    """The padded convolution gives the image a border; the product behind the Flatten has to skip it."""
    rng = np.random.default_rng(3)
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (uint8[1,3,4,4] q) => (float[1,5] y, uint8[1,2,4,4] z) {
      d = DequantizeLinear(q, xs, xz)
      f = Flatten(q)
      fd = DequantizeLinear(f, xs, xz)
      wd = DequantizeLinear<axis=0>(w, ws)
      y = Gemm<transB=1>(fd, wd)
      kd = DequantizeLinear<axis=0>(k, ks)
      c = Conv<pads=[1,1,1,1]>(d, kd)
      z = QuantizeLinear(c, xs, xz)
    }"""
    arrays = {
        "w": rng.integers(-127, 128, (5, 48)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.02, 5).astype(np.float32),
        "k": rng.integers(-127, 128, (2, 3, 3, 3)).astype(np.int8),
        "ks": rng.uniform(0.001, 0.02, 2).astype(np.float32),
        "xs": np.float32(0.03),
        "xz": np.uint8(77),
    }
    model = with_constants(text, arrays)
    assert_as_reference(model, {"q": rng.integers(0, 256, (1, 3, 4, 4)).astype(np.uint8)}, tmp_path)
