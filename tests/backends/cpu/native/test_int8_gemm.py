"""Quantized matrix products give the bytes of integer arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from int8_kernels import host, plain, requantize, run

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.kernels import gemm_int8
from pared.backends.cpu.native.kernels.gemm_int8 import GemmInt8Spec

FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
products = st.builds(
    GemmInt8Spec,
    rows=st.sampled_from([1, 1, 2, 3, 4, 17]),
    terms=st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 513])),
    outputs=st.one_of(st.integers(1, 70), st.sampled_from([128, 160, 176, 200])),
    zero=st.integers(0, 255),
    low=st.sampled_from([0, 9]),
    high=st.sampled_from([255, 180]),
    small=st.booleans(),
)


def check(spec: GemmInt8Spec, isa: Isa, seed: int) -> None:
    """Compare with exact sums; unused bytes of the input are random; run in two ranges of tasks."""
    assert gemm_int8.supports(spec, isa).ok
    rng = np.random.default_rng(seed)
    zero = int(rng.integers(0, 256))
    x = rng.integers(0, 256, (spec.rows, spec.x_pitch)).astype(np.uint8)
    weight = rng.integers(-128, 128, (spec.outputs, spec.terms)).astype(np.int8)
    bias = rng.integers(-9000, 9000, spec.outputs).astype(np.int32)
    factor = (rng.uniform(0.2, 1.5, spec.outputs) / (90 * np.sqrt(spec.terms))).astype(np.float32)
    arrays = [x.ravel(), *gemm_int8.pack(spec, weight, bias, factor, zero)]
    y = np.zeros(spec.rows * spec.vectors * 16, np.uint8)
    flat = run(gemm_int8.build(spec, isa), isa, [*arrays, y], spec.tasks(), 2)[-1]
    sums = (x[:, : spec.terms].astype(np.int64) - zero) @ weight.T.astype(np.int64) + bias
    want = requantize(sums, factor, spec.zero, spec.low, spec.high)
    np.testing.assert_array_equal(flat.reshape(spec.rows, -1)[:, : spec.outputs], want)


@FEW
@given(products, st.integers(0, 2**31))
def test_any_shape_is_bit_exact(spec: GemmInt8Spec, seed: int) -> None:
    check(spec, host(), seed)


@settings(FEW, max_examples=6)
@given(products, st.integers(0, 2**31))
def test_any_shape_is_bit_exact_without_vnni(spec: GemmInt8Spec, seed: int) -> None:
    check(spec, plain(), seed)


@settings(FEW, max_examples=7)
@given(products, st.booleans(), st.integers(0, 2**31))
def test_float_results_are_the_exact_sum_rounded(spec: GemmInt8Spec, clipped: bool, seed: int) -> None:
    limits = (0.0, 6.0) if clipped else (-math.inf, math.inf)
    spec = replace(spec, rows=min(spec.rows, 3), small=False, real=limits)
    rng = np.random.default_rng(seed)
    zero = int(rng.integers(0, 256))
    x = rng.integers(0, 256, (spec.rows, spec.x_pitch)).astype(np.uint8)
    weight = rng.integers(-128, 128, (spec.outputs, spec.terms)).astype(np.int8)
    unit, offset = rng.uniform(1e-5, 1e-3, (2, spec.outputs)).astype(np.float32)
    none = np.zeros(spec.outputs, np.int32)
    arrays = [x.ravel(), *gemm_int8.pack(spec, weight, none, unit, zero, offset)]
    y = np.zeros(spec.rows * spec.vectors * 16, np.float32)
    flat = run(gemm_int8.build(spec, host()), host(), [*arrays, y], spec.tasks(), 2)[-1]
    sums = (x[:, : spec.terms].astype(np.int64) - zero) @ weight.T.astype(np.int64)
    want = np.clip(sums * unit.astype(np.float64) + offset, *limits)
    got = flat.reshape(spec.rows, -1)[:, : spec.outputs]
    # The sum, the product and the sum with the offset are rounded once each.
    np.testing.assert_allclose(got, want, rtol=4e-7, atol=4e-7 * float(np.abs(offset).max()))


def test_float_results_of_many_rows_are_refused() -> None:
    spec = GemmInt8Spec(4, 8, 3, real=(0.0, 1.0))
    assert "at most 3" in gemm_int8.supports(spec, host()).reason


def test_rows_that_overlap_are_refused() -> None:
    assert "lie 16 bytes apart" in gemm_int8.supports(GemmInt8Spec(2, 20, 3, pitch=16), host()).reason
