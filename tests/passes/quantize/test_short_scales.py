from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from pared.backends.reference import evaluate
from pared.compiler.ir.importer import import_model
from pared.compiler.manager import Manager
from pared.compiler.pass_api import Context
from pared.passes.quantize.short_scales import BITS, ShortScales, rounded

TEXT = """<ir_version: 10, opset_import: ["" : 21, "qonnx.custom_op.general" : 1]>
net (float[n, 4] x) => (float[n, 4] y) <float scale = {SCALE}, float zero = {0}, float bits = {4}> {
  y = qonnx.custom_op.general.Quant <signed = 1, narrow = 0> (x, scale, zero, bits)
}"""


def quantizer(scale: float) -> ir.Model:
    import onnx

    return import_model(onnx.parser.parse_model(TEXT.replace("SCALE", repr(scale)))).model


def scale_of(model: ir.Model) -> float:
    (value,) = (
        np.asarray(v.const_value.numpy()) for n, v in model.graph.initializers.items() if "scale" in n
    )
    return float(value)


def test_scales_keep_twelve_bits_and_integers_times_scales_are_exact():
    model, stats = apply(quantizer(0.1234567))
    assert stats == 1
    scale = scale_of(model)
    assert abs(scale / 0.1234567 - 1) < 2.0**-BITS
    integers = np.arange(-255, 256)
    assert np.array_equal(np.float32(integers) * np.float32(scale), integers * scale)


def test_values_stay_on_the_same_integers():
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(0, 4, (50, 4))).astype(np.float32) * np.float32(0.1234567)
    before, after = quantizer(0.1234567), apply(quantizer(0.1234567))[0]
    a, b = (evaluate(model, {"x": x})["y"] / np.float32(scale_of(model)) for model in (before, after))
    assert np.array_equal(np.rint(a), np.rint(b))


@pytest.mark.parametrize("scale", [0.25, 0.1875])
def test_short_ones_are_left_alone(scale):
    assert apply(quantizer(scale))[1] == 0


def test_arrays_of_scales_are_rounded_one_by_one():
    scales = np.float32([0.1, 3.3, 1e-6])
    assert np.all(np.abs(rounded(scales) / scales - 1) < 2.0**-BITS)


def apply(model: ir.Model) -> tuple[ir.Model, int]:
    result = Manager().run(model, [ShortScales()], Context())
    return result.model, result.records[0].stats.changed
