"""Quantized Add gives the bytes of the reference's float arithmetic, alone and behind a convolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from int8_kernels import Array, border_of, convolve, host, inside, memory, plain, requantize, run

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.kernels import add_int8, conv_int8
from pared.backends.cpu.native.kernels.add_formula import AddFormula, add_bytes, add_formula
from pared.backends.cpu.native.kernels.add_int8 import AddInt8Spec
from pared.backends.cpu.native.kernels.conv_int8 import ConvInt8Spec
from pared.backends.cpu.native.kernels.int8_tiles import image

FEW = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TIES = (0.1, 0.2, 0.05, 0.3, 0.25)
scales = st.one_of(st.sampled_from(TIES), st.floats(0.015625, 3.0, width=32))
bytes_ = st.integers(0, 255)
formulas = st.builds(
    add_formula,
    st.tuples(scales, scales, scales),
    st.tuples(bytes_, bytes_, bytes_),
    st.sampled_from([0, 20]),
    st.sampled_from([255, 230]),
)
WAYS = ["fused", "reciprocal", "divide"]


def defined(f: AddFormula, a: Array, b: Array) -> Array:
    """Return what docs/semantics.md says, step by step in float32."""
    sa, sb, sy = (np.float32(s) for s in f.scales)
    real = (a.astype(np.int32) - f.zeros[0]).astype(np.float32) * sa
    real = real + (b.astype(np.int32) - f.zeros[1]).astype(np.float32) * sb
    return np.clip(np.rint(real / sy).astype(np.float64) + f.zeros[2], f.low, f.high).astype(np.uint8)


def check(formula: AddFormula, isa: Isa) -> None:
    """Compare all 65536 pairs of bytes."""
    a, b = (v.astype(np.uint8) for v in np.meshgrid(np.arange(256), np.arange(256)))
    x, y = image(1, 16, 16, 256), image(1, 16, 16, 256, (1, 2, 0, 1))
    spec = AddInt8Spec(x, x, y, formula)
    arrays = [a.ravel(), b.ravel(), np.zeros(y.bytes, np.uint8)]
    flat = run(add_int8.build(spec, isa), isa, arrays, spec.tasks(), 2)[-1]
    np.testing.assert_array_equal(inside(y, flat).reshape(256, 256), defined(formula, a, b))
    np.testing.assert_array_equal(border_of(y, flat), formula.zeros[2])


@FEW
@given(formulas)
def test_all_pairs_of_bytes_are_exact(formula: AddFormula) -> None:
    check(formula, host())


@settings(FEW, max_examples=5)
@given(formulas)
def test_all_pairs_of_bytes_are_exact_without_vnni(formula: AddFormula) -> None:
    check(formula, plain())


@pytest.mark.parametrize("scale", TIES)
def test_dividing_is_exact_at_ties(scale: float) -> None:
    check(AddFormula("divide", tuple(float(np.float32(s)) for s in (scale, 0.3, 0.2)), (3, 128, 7)), host())


def test_every_formula_is_chosen_somewhere() -> None:
    rng = np.random.default_rng(0)
    found = {add_formula(tuple(rng.choice(TIES, 3)), (3, 128, 7)).way for _ in range(40)}
    found |= {add_formula(tuple(rng.uniform(0.01, 1, 3)), (3, 128, 7)).way for _ in range(10)}
    assert found >= {"fused", "divide"}


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("channels", [3, 40])
def test_rows_of_any_length_are_written_and_nothing_else(width: int, channels: int) -> None:
    formula = add_formula((0.1, 0.2, 0.15), (3, 5, 9))
    a, b = image(2, 2, width, channels, (1, 1, 1, 1)), image(2, 2, width, channels)
    rng = np.random.default_rng(width)
    pixels = [rng.integers(0, 256, (2, 2, width, channels)).astype(np.uint8) for _ in range(2)]
    spec = AddInt8Spec(a, b, b, formula)
    arrays = [memory(i, p, 0, rng) for i, p in zip((a, b), pixels, strict=True)]
    flat = run(add_int8.build(spec, host()), host(), [*arrays, np.zeros(b.bytes, np.uint8)], spec.tasks())[-1]
    np.testing.assert_array_equal(inside(b, flat)[..., :channels], defined(formula, *pixels))


@pytest.mark.parametrize("channels", [16, 48, 64, 80])
@pytest.mark.parametrize("path", [host, plain])
@pytest.mark.parametrize("way", WAYS)
def test_a_residual_is_added_behind_a_convolution(channels: int, path: object, way: str) -> None:
    isa, rng = path(), np.random.default_rng(channels)
    formula = replace(add_formula((0.11, 0.2, 0.17), (40, 5, 9), low=9), way=way)
    x, y = image(1, 5, 6, 16, (1, 1, 1, 1)), image(1, 5, 6, channels, (0, 1, 1, 0))
    other = image(1, 5, 6, channels, (1, 1, 1, 1))
    spec = ConvInt8Spec(x, y, (3, 3), pads=(1, 1), zero=40, low=30, high=250, residual=other, add=formula)
    pixels = rng.integers(0, 256, (1, 5, 6, 16)).astype(np.uint8)
    second = rng.integers(0, 256, (1, 5, 6, channels)).astype(np.uint8)
    weight = rng.integers(-128, 128, (channels, 16, 3, 3)).astype(np.int8)
    bias, factor = np.arange(channels, dtype=np.int32), np.full(channels, 7e-4, np.float32)
    arrays = [memory(x, pixels, 9, rng), memory(other, second, 0, rng)]
    arrays += [*conv_int8.pack(spec, weight, bias, factor, 9), np.zeros(y.bytes, np.uint8)]
    flat = run(conv_int8.build(spec, isa), isa, arrays, spec.tasks())[-1]
    own = requantize(convolve(pixels, weight, spec, 9) + bias, factor, 40, 30, 250)
    np.testing.assert_array_equal(
        inside(y, flat)[..., :channels], add_bytes(formula, own.astype(np.int32), second.astype(np.int32))
    )
    np.testing.assert_array_equal(border_of(y, flat), formula.zeros[2])
