"""Quantized Winograd kernels give the bytes of integer arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from int8_kernels import border_of, convolve, host, inside, memory, plain, requantize, run

from pared.backends.cpu.native.kernels import winograd_int8
from pared.backends.cpu.native.kernels.add_formula import add_bytes, add_formula
from pared.backends.cpu.native.kernels.conv_int8 import ConvInt8Spec
from pared.backends.cpu.native.kernels.int8_tiles import image
from pared.backends.cpu.native.kernels.winograd_int8 import BACK, DATA, FILTER, WinogradInt8Spec
from pared.compiler.backend import Array

FEW = settings(max_examples=9, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _vnni() -> None:
    if not host().vnni:
        pytest.skip("needs a CPU with avx512_vnni")


@st.composite
def layers(draw: st.DrawFn) -> WinogradInt8Spec:
    """Draw sizes, pads, odd channels, borders, batches and residuals."""
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    channels = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 70])))
    outputs = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 80, 96])))
    out = draw(st.integers(4, 13)), draw(st.integers(4, 13))
    size = max(1, out[0] + 2 - pads[0] - pads[2]), max(1, out[1] + 2 - pads[1] - pads[3])
    batch = draw(st.integers(1, 3))
    x = image(batch, *size, channels, (pads[0], pads[1], pads[2] + 2, pads[3] + 2))
    y = image(batch, *out, outputs, draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)])))
    zero, low, high = (
        draw(st.integers(0, 255)),
        draw(st.sampled_from([0, 13])),
        draw(st.sampled_from([255, 200])),
    )
    conv = ConvInt8Spec(x, y, (3, 3), pads=pads[:2], zero=zero, low=low, high=high, small=draw(st.booleans()))
    if draw(st.booleans()):
        add = add_formula((0.0213, 0.0331, 0.0417), (zero, 100, 20), draw(st.sampled_from([0, 20])))
        conv = replace(conv, residual=image(batch, *out, outputs, (1, 0, 0, 1)), add=add)
    return WinogradInt8Spec(conv)


def check(spec: WinogradInt8Spec, seed: int, extreme: bool = False) -> None:
    """Compare every byte, the border included, with the oracle; run in two ranges of tasks."""
    conv = spec.conv
    verdict = winograd_int8.supports(spec, host())
    assert verdict.ok, verdict.reason
    rng = np.random.default_rng(seed)
    x_zero, c, m = int(rng.integers(0, 256)), conv.x.channels, conv.y.channels
    values, weights = ([0, 255], [-128, 127]) if extreme else (range(256), range(-128, 128))
    pixels = rng.choice(values, (conv.x.batch, conv.x.height, conv.x.width, c)).astype(np.uint8)
    weight = rng.choice(weights, (m, c, 3, 3)).astype(np.int8)
    bias = rng.integers(-9000, 9000, m).astype(np.int32)
    factor = (rng.uniform(0.2, 1.5, m) / (90 * np.sqrt(weight[0].size))).astype(np.float32)
    other = _other(conv, rng)
    arrays = [memory(conv.x, pixels, x_zero, rng), *other]
    arrays += winograd_int8.pack(spec, weight, bias, factor, x_zero)
    module = winograd_int8.build(spec, host())
    flat = run(module, host(), [*arrays, np.zeros(conv.y.bytes, np.uint8)], spec.tasks(), 2)[-1]
    want = requantize(convolve(pixels, weight, conv, x_zero) + bias, factor, conv.zero, conv.low, conv.high)
    zero = conv.zero
    if conv.residual and conv.add:
        second = inside(conv.residual, other[0])[..., :m]
        want, zero = add_bytes(conv.add, want.astype(np.int32), second.astype(np.int32)), conv.add.zeros[2]
    np.testing.assert_array_equal(inside(conv.y, flat)[..., :m], want)
    np.testing.assert_array_equal(border_of(conv.y, flat), zero)


def _other(conv: ConvInt8Spec, rng: np.random.Generator) -> list[Array]:
    return [rng.integers(0, 256, conv.residual.bytes).astype(np.uint8)] if conv.residual else []


@FEW
@given(layers(), st.integers(0, 2**31))
def test_any_shape_is_bit_exact(spec: WinogradInt8Spec, seed: int) -> None:
    check(spec, seed)


@pytest.mark.parametrize("size", [4, 7, 14])
def test_bytes_and_weights_at_their_limits_are_bit_exact(size: int) -> None:
    x, y = image(1, size, size, 64, (1, 1, 1, 1)), image(1, size, size, 64)
    check(WinogradInt8Spec(ConvInt8Spec(x, y, (3, 3), pads=(1, 1), zero=9)), size, extreme=True)


def test_the_transforms_make_576_times_the_sums() -> None:
    rng = np.random.default_rng(0)
    patch, window = rng.integers(0, 256, (6, 6)), rng.integers(-128, 128, (3, 3))
    products = (FILTER @ window @ FILTER.T) * (DATA @ patch @ DATA.T)
    want = [[(patch[r : r + 3, c : c + 3] * window).sum() for c in range(4)] for r in range(4)]
    np.testing.assert_array_equal(BACK @ products @ BACK.T, 576 * np.array(want))


def test_both_transforms_stay_within_16_bits() -> None:
    data = np.kron(DATA, DATA)
    assert 255 * np.where(data > 0, data, 0).sum(1).max() < 2**15
    assert 255 * np.where(data < 0, data, 0).sum(1).min() >= -(2**15)
    assert 128 * np.abs(np.kron(FILTER, FILTER)).sum(1).max() < 2**15


def test_weights_whose_sums_could_leave_26_bits_do_not_fit() -> None:
    channels = winograd_int8.MOST_SUM // (255 * 127 * 9)
    assert winograd_int8.fits(np.full((1, channels, 3, 3), 127, np.int8))
    assert not winograd_int8.fits(np.full((1, channels + 1, 3, 3), 127, np.int8))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"strides": (2, 2)}, "windows of 3x3"),
        ({"kernel": (1, 1)}, "windows of 3x3"),
        ({"y": image(1, 3, 8, 16)}, "4x4 pixels"),
        ({"x": image(1, 8, 8, 3, (1, 1, 1, 1), 3)}, "whole vectors"),
        ({"x": image(1, 8, 8, 1024, (1, 1, 1, 1)), "y": image(1, 8, 8, 1024)}, "weights of"),
    ],
)
def test_what_it_does_not_compute_is_refused(change: dict[str, object], reason: str) -> None:
    conv = ConvInt8Spec(image(1, 8, 8, 16, (1, 1, 1, 1)), image(1, 8, 8, 16), (3, 3), pads=(1, 1))
    assert reason in winograd_int8.supports(WinogradInt8Spec(replace(conv, **change)), host()).reason


def test_cpus_without_vnni_are_refused() -> None:
    conv = ConvInt8Spec(image(1, 8, 8, 16, (1, 1, 1, 1)), image(1, 8, 8, 16), (3, 3), pads=(1, 1))
    assert "avx512_vnni" in winograd_int8.supports(WinogradInt8Spec(conv), plain()).reason
