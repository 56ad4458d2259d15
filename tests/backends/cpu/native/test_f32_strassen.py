"""Strassen's product in float32 against float64, within the bound of its own formulas."""

from __future__ import annotations

import f32_arrays as f
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.cpu.native.isa import host_isa, isa_of
from pared.backends.cpu.native.kernels import strassen_f32
from pared.backends.cpu.native.kernels.after_f32 import After
from pared.backends.cpu.native.kernels.gemm_f32 import Pixels
from pared.backends.cpu.native.kernels.strassen_f32 import StrassenF32Spec
from pared.targets import load_target

pytest.importorskip("tvm", reason="apache-tvm compiles the kernels (extra 'tvm')")


@pytest.fixture(autouse=True)
def _wide_vectors() -> None:
    if host_isa().vector_bytes < 64:
        pytest.skip("needs AVX-512")


def magnitude(x: np.ndarray, w: np.ndarray, pairs: int) -> np.ndarray:
    """Return the size of each result: the formulas with magnitudes, every minus a plus."""
    rows, half, size = len(x), x.shape[1] // 2, 2 * pairs
    out = np.zeros((rows, w.shape[1]))
    for first in range(0, rows, size):
        tile = abs(x[first : first + size]).astype(np.float64)
        upper = (len(tile) + 1) // 2
        a1, a2 = tile[:upper], np.zeros((upper, x.shape[1]))
        a2[: len(tile) - upper] = tile[upper:]
        if len(tile) < 2 * upper:
            a2[-1] = a1[-1]
        for column in range(0, w.shape[1], 64):
            b1, b2 = np.split(abs(w[:, column : column + 64]).astype(np.float64), 2, axis=1)
            full = _sizes(a1[:, :half], a1[:, half:], a2[:, :half], a2[:, half:], b1, b2, half)
            out[first : first + upper, column : column + 64] = full[:upper]
            low = full[upper:][: len(tile) - upper]
            out[first + upper : first + len(tile), column : column + 64] = low
    return out


def _sizes(a11, a12, a21, a22, b1, b2, half: int) -> np.ndarray:
    b11, b12, b21, b22 = b1[:half], b2[:half], b1[half:], b2[half:]
    s1 = a21 + a22
    s2, s3 = s1 + a11, a11 + a21
    s4, t1 = a12 + s2, b12 + b11
    t2, t3 = b22 + t1, b22 + b12
    t4 = t2 + b21
    p1, p5 = a11 @ b11, s1 @ t1
    u2 = p1 + s2 @ t2
    u3 = u2 + s3 @ t3
    return np.block([[p1 + a12 @ b21, u2 + p5 + s4 @ b22], [u3 + a22 @ t4, u3 + p5]])


def check(spec: StrassenF32Spec, x: np.ndarray, w: np.ndarray, rows: np.ndarray | None = None) -> None:
    rng = np.random.default_rng(1)
    rows = x if rows is None else rows
    bias = rng.standard_normal(spec.columns).astype(np.float32) if spec.after.bias else None
    want, size = rows.astype(np.float64) @ w, magnitude(rows, w, spec.pairs)
    arrays = [x]
    if bias is not None:
        want, size = want + bias, size + abs(bias)
    if spec.after.residual:
        other = rng.standard_normal(want.shape).astype(np.float32)
        arrays.append(other)
        want, size = want + other, size + abs(other)
    want = want if spec.after.low is None else np.maximum(want, spec.after.low)
    got = f.run(strassen_f32, spec, [*arrays, *strassen_f32.pack(spec, w, bias)], spec.out_shape)
    # A result adds up four products of half the depth; twelve more roundings for the sums on both sides.
    assert np.all(abs(got - want) <= f.dot_bound(2 * spec.depth + 12, size)), float(abs(got - want).max())


@settings(max_examples=12, deadline=None)
@given(st.integers(24, 150), st.sampled_from([128, 160, 256]), st.sampled_from([64, 192]), st.booleans())
def test_a_product_of_any_size_is_within_the_bound(m: int, k: int, n: int, rich: bool) -> None:
    rng = np.random.default_rng(m)
    after = After(bias=rich, residual=rich, low=0.0 if rich else None)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    check(StrassenF32Spec(m, k, n, after), x, w)


def test_rows_of_a_page_are_copied() -> None:
    rng = np.random.default_rng(0)
    spec = StrassenF32Spec(30, 1024, 64)
    assert "A11" in spec.copied
    check(spec, rng.standard_normal((30, 1024), np.float32), rng.standard_normal((1024, 64), np.float32))


def test_rows_can_be_pixels_that_lie_apart() -> None:
    rng = np.random.default_rng(0)
    pixels = Pixels(11, 9, (2, 2))
    x, w = rng.standard_normal((2, 11, 9, 128), np.float32), rng.standard_normal((128, 64), np.float32)
    rows = x[:, ::2, ::2].reshape(-1, 128)
    check(StrassenF32Spec(len(rows), 128, 64, pixels=pixels), x.reshape(-1, 128), w, rows)


def test_a_dropped_product_is_outside_the_bound() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((28, 256), np.float32), rng.standard_normal((256, 64), np.float32)
    gap = abs(x.astype(np.float64) @ w - x[:, :255].astype(np.float64) @ w[:255])
    bound = f.dot_bound(2 * 256 + 12, magnitude(x, w, 14))
    assert np.mean(gap > bound) > 0.8


@pytest.mark.parametrize("size", [(23, 256, 64), (28, 96, 64), (28, 256, 80), (28, 250, 64)])
def test_sizes_that_do_not_halve_are_refused(size: tuple[int, int, int]) -> None:
    assert not strassen_f32.supports(StrassenF32Spec(*size), host_isa()).ok


def test_narrow_vectors_are_refused() -> None:
    narrow = isa_of(load_target("cpu-x86-avx2"))
    assert not strassen_f32.supports(StrassenF32Spec(28, 256, 64), narrow).ok
