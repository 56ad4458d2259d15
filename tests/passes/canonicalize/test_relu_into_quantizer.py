"""relu-into-quantizer: what saturates anyway needs no activation before it."""

from __future__ import annotations

import numpy as np
import pytest
from canon import assert_exact, graph, ops, reasons, run

from pared.passes.canonicalize.relu_into_quantizer import ReluIntoQuantizer

TEXT = """g (float[64] x) => (float[64] y)
{{ x8 = Mul(x, gain)  r = {}  q = QuantizeLinear(r, s, z)  y = DequantizeLinear(q, s, z) }}"""
GAIN = np.array(16, np.float32)


def model(activation: str, scale: float, zero_point: np.generic, **extra: np.ndarray):
    return graph(
        TEXT.format(activation), gain=GAIN, s=np.array(scale, np.float32), z=np.array(zero_point), **extra
    )


@pytest.mark.parametrize("zero_point", [np.uint8(0), np.int8(-128), np.uint16(0), np.int16(-32768)])
def test_relu_goes_when_zero_is_the_least_integer(zero_point: np.generic) -> None:
    before = model("Relu(x8)", 0.05, zero_point)
    after, _ = run(before, ReluIntoQuantizer())
    assert ops(after) == ["Mul", "QuantizeLinear", "DequantizeLinear"]
    assert_exact(before, after)


@pytest.mark.parametrize("zero_point", [np.uint8(1), np.int8(0)])
def test_relu_stays_when_the_quantizer_reaches_below_zero(zero_point: np.generic) -> None:
    _, stats = run(model("Relu(x8)", 0.05, zero_point), ReluIntoQuantizer())
    assert stats.changed == 0
    assert "reaches below 0" in reasons(stats)[0]


LIMITS = {"lo": np.array(0, np.float32), "hi": np.array(6, np.float32)}


def test_clip_goes_when_the_quantizer_ends_at_its_bounds() -> None:
    before = model("Clip(x8, lo, hi)", 6 / 255, np.uint8(0), **LIMITS)
    after, _ = run(before, ReluIntoQuantizer())
    assert ops(after) == ["Mul", "QuantizeLinear", "DequantizeLinear"]
    assert_exact(before, after)


def test_clip_stays_when_the_quantizer_reaches_above_it() -> None:
    _, stats = run(model("Clip(x8, lo, hi)", 6.1 / 255, np.uint8(0), **LIMITS), ReluIntoQuantizer())
    assert stats.changed == 0
    assert "reaches above 6" in reasons(stats)[0]


def test_relu_with_another_reader_stays() -> None:
    before = graph(
        """g (float[8] x) => (float[8] y) { r = Relu(x)  q = QuantizeLinear(r, s, z)
        d = DequantizeLinear(q, s, z)  y = Add(d, r) }""",
        s=np.array(0.05, np.float32), z=np.array(0, np.uint8),
    )  # fmt: skip
    _, stats = run(before, ReluIntoQuantizer())
    assert (stats.changed, len(reasons(stats))) == (0, 1)


def test_relu_that_is_an_output_stays() -> None:
    before = graph(
        """g (float[8] x) => (float[8] y, float[8] r) { r = Relu(x)  q = QuantizeLinear(r, s, z)
        y = DequantizeLinear(q, s, z) }""",
        s=np.array(0.05, np.float32), z=np.array(0, np.uint8),
    )  # fmt: skip
    _, stats = run(before, ReluIntoQuantizer())
    assert (stats.changed, reasons(stats)) == (0, ["'r' is also a graph output"])


def test_relu_before_nothing_that_quantizes_is_not_listed() -> None:
    before = graph("g (float[8] x) => (float[8] y) { r = Relu(x)  y = Neg(r) }")
    assert run(before, ReluIntoQuantizer())[1].refused == []


QUANT = """g (float[64] x) => (float[64] y) {{
    r = Relu(x)
    y = qonnx.custom_op.general.Quant<signed = {}, narrow = 0, rounding_mode = "ROUND">(r, s, z, b)
}}"""
QUANT_WEIGHTS = {
    "s": np.array(0.25, np.float32), "z": np.array(0, np.float32), "b": np.array(3, np.float32),
}  # fmt: skip


def test_relu_before_an_unsigned_quant_goes() -> None:
    before = graph(QUANT.format(0), **QUANT_WEIGHTS)
    after, _ = run(before, ReluIntoQuantizer())
    assert ops(after) == ["Quant"]
    assert_exact(before, after)


def test_relu_before_a_signed_quant_stays() -> None:
    _, stats = run(graph(QUANT.format(1), **QUANT_WEIGHTS), ReluIntoQuantizer())
    assert stats.changed == 0
