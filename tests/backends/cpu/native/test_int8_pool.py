"""Quantized pooling gives the bytes of the reference: dequantize, pool, quantize."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from int8_kernels import Array, border_of, host, inside, memory, plain, run

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.kernels import pool_int8
from pared.backends.cpu.native.kernels.average_formula import AverageFormula, average_formula
from pared.backends.cpu.native.kernels.int8_tiles import image
from pared.backends.cpu.native.kernels.pool_int8 import PoolInt8Spec
from pared.backends.reference import evaluate
from pared.compiler.ir.importer import import_model

FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TIES = (0.1, 0.2, 0.05, 0.3, 0.25)
scales = st.one_of(st.sampled_from(TIES), st.floats(0.015625, 1.0, width=32))


@st.composite
def pools(draw: st.DrawFn, average: bool) -> PoolInt8Spec:
    """Draw windows, strides, pads on all sides, odd channels, borders and batches."""
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    pads = draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1))
    strides = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = draw(st.integers(kernel[0], 9)), draw(st.integers(kernel[1], 9))
    out = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, pads, kernel, strides, strict=True)]
    channels, batch = draw(st.integers(1, 90)), draw(st.integers(1, 2))
    x = image(batch, *size, channels, draw(st.sampled_from([(0, 0, 0, 0), (1, 2, 0, 1)])))
    y = image(batch, *out, channels, draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 0, 2)])))
    spec = PoolInt8Spec(x, y, kernel, strides, pads, zero=draw(st.integers(0, 255)))
    if not average:
        return spec
    x_zero, y_scale, y_zero = draw(st.integers(0, 255)), draw(scales), spec.zero
    formula = average_formula(
        draw(scales), x_zero, y_scale, y_zero, kernel[0] * kernel[1] if spec.inside else 0
    )
    return replace(spec, average=formula, count_pads=draw(st.booleans()))


def reference(spec: PoolInt8Spec, pixels: Array) -> Array:
    """Return what `backends/reference` makes of `pixels` [N, H, W, C]."""
    f = spec.average or AverageFormula(0.125, spec.zero, 0.125, spec.zero)
    operator = "AveragePool" if spec.average else "MaxPool"
    extra = f", count_include_pad={int(spec.count_pads)}" if spec.average else ""
    shape, out = (",".join(map(str, (i.batch, i.channels, i.height, i.width))) for i in (spec.x, spec.y))
    pads = [*spec.pads, *spec.pads]
    window = f"kernel_shape={list(spec.kernel)}, strides={list(spec.strides)}, pads={pads}{extra}"
    text = f"""<ir_version: 10, opset_import: ["": 21]>
    pool (uint8[{shape}] x) => (uint8[{out}] y)
    <float xs = {{{f.x_scale:.17g}}}, uint8 xz = {{{f.x_zero}}},
     float ys = {{{f.y_scale:.17g}}}, uint8 yz = {{{f.y_zero}}}> {{
        real = DequantizeLinear(x, xs, xz)
        pooled = {operator} <{window}> (real)
        y = QuantizeLinear(pooled, ys, yz)
    }}"""
    model = import_model(ir.from_onnx_text(text)).model
    return evaluate(model, {"x": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))})["y"].transpose(
        0, 2, 3, 1
    )


def check(spec: PoolInt8Spec, isa: Isa, seed: int) -> None:
    """Compare every byte, the border included; the border of the input is random."""
    verdict = pool_int8.supports(spec, isa)
    assert verdict.ok, verdict.reason
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (spec.x.batch, spec.x.height, spec.x.width, spec.x.channels)).astype(
        np.uint8
    )
    arrays = [memory(spec.x, pixels, int(rng.integers(0, 256)), rng), np.zeros(spec.y.bytes, np.uint8)]
    flat = run(pool_int8.build(spec, isa), isa, arrays, spec.tasks(), 2)[-1]
    np.testing.assert_array_equal(inside(spec.y, flat)[..., : spec.y.channels], reference(spec, pixels))
    np.testing.assert_array_equal(border_of(spec.y, flat), spec.zero)


@FEW
@given(pools(average=False), st.integers(0, 2**31))
def test_maximum_of_any_shape_is_exact(spec: PoolInt8Spec, seed: int) -> None:
    check(spec, host(), seed)


@FEW
@given(pools(average=True), st.integers(0, 2**31))
def test_average_of_any_shape_is_exact(spec: PoolInt8Spec, seed: int) -> None:
    check(spec, host(), seed)


@settings(FEW, max_examples=5)
@given(pools(average=True), st.integers(0, 2**31))
def test_average_of_any_shape_is_exact_without_avx512(spec: PoolInt8Spec, seed: int) -> None:
    check(spec, plain(), seed)


@pytest.mark.parametrize("by_sum", [True, False])
def test_the_global_average_is_exact_both_ways(by_sum: bool) -> None:
    formula = average_formula(0.1, 7, 0.1, 3, 125)
    assert formula.by_sum
    spec = PoolInt8Spec(
        image(1, 25, 5, 64), image(1, 1, 1, 64), (25, 5), average=replace(formula, by_sum=by_sum), zero=3
    )
    check(spec, host(), 5)


def test_sums_are_not_used_where_ties_are_possible() -> None:
    assert not average_formula(0.1, 0, 0.1, 0, 4).by_sum
    assert average_formula(0.1, 0, 0.1, 0, 25).by_sum


@pytest.mark.parametrize("y_scale", [0.1, 0.0371])
def test_sums_close_to_a_tie_are_averaged_as_defined(y_scale: float) -> None:
    """With equal scales every fourth sum of four bytes is a tie, so both ways occur side by side."""
    formula = average_formula(0.1, 7, y_scale, 3, 4)
    formula = replace(formula, by_sum=False)
    assert formula.limit > 0.49 or y_scale != 0.1
    x, y = image(1, 16, 16, 40), image(1, 8, 8, 40)
    check(PoolInt8Spec(x, y, (2, 2), (2, 2), average=formula, zero=3), host(), 5)


def test_a_window_without_a_pixel_is_refused() -> None:
    spec = PoolInt8Spec(image(1, 5, 5, 4), image(1, 5, 5, 4), (2, 2), pads=(2, 0))
    assert "without a pixel" in pool_int8.supports(spec, host()).reason
