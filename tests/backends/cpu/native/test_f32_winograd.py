"""Winograd F(4x4, 3x3) against float64, within the bound of its own transforms."""

from __future__ import annotations

import f32_arrays as f
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.cpu.native.isa import host_isa
from pared.backends.cpu.native.kernels import winograd_f32
from pared.backends.cpu.native.kernels.after_f32 import After
from pared.backends.cpu.native.kernels.window import Window
from pared.backends.cpu.native.kernels.winograd_f32 import BACK, DATA, FILTER, WinogradF32Spec

pytest.importorskip("tvm", reason="apache-tvm compiles the kernels (extra 'tvm')")

# Roundings of the chain beside the sum over channels: U 1, each 1-D transform of the data at most 4 (2 of
# them), each 1-D transform back at most 5 (2 of them).
TRANSFORM_ROUNDINGS = 1 + 2 * 4 + 2 * 5


def winograd(x: np.ndarray, w: np.ndarray, window: Window, absolute: bool) -> np.ndarray:
    """F(4x4, 3x3) in float64; with `absolute`, every factor by its magnitude: what errors are relative to."""
    turn = abs if absolute else (lambda v: v)
    back, data, kernel = turn(BACK), turn(DATA), turn(FILTER)
    down, across = -(-window.out_height // 4), -(-window.out_width // 4)
    top, left, _, _ = window.pads
    wide = np.zeros((*x.shape[:2], down * 4 + 2 + top + x.shape[2], across * 4 + 2 + left + x.shape[3]))
    wide[:, :, top : top + x.shape[2], left : left + x.shape[3]] = turn(x)
    u = np.einsum("ir,ocrs,js->ocij", kernel, turn(w.astype(np.float64)), kernel)
    out = np.zeros((x.shape[0], w.shape[0], down * 4, across * 4))
    for y in range(0, down * 4, 4):
        for z in range(0, across * 4, 4):
            v = np.einsum("ir,ncrs,js->ncij", data, wide[:, :, y : y + 6, z : z + 6], data)
            m = np.einsum("ocij,ncij->noij", u, v)
            out[:, :, y : y + 4, z : z + 4] = np.einsum("ir,nors,js->noij", back, m, back)
    return out[:, :, : window.out_height, : window.out_width]


def check(spec: WinogradF32Spec) -> None:
    rng = np.random.default_rng(spec.channels)
    window, after = spec.window, spec.after
    x = rng.standard_normal((window.batch, spec.channels, window.height, window.width)).astype(np.float32)
    w = rng.standard_normal((spec.out_channels, spec.channels, 3, 3)).astype(np.float32)
    bias = rng.standard_normal(spec.out_channels).astype(np.float32) if after.bias else None
    want, size, arrays = f.conv(x, w, window), winograd(x, w, window, True), [f.nhwc(x)]
    if bias is not None:
        want, size = want + bias[:, None, None], size + abs(bias)[:, None, None]
    if after.residual:
        other = rng.standard_normal(want.shape).astype(np.float32)
        arrays.append(f.nhwc(other))
        want, size = want + other, size + abs(other)
    want = want if after.low is None else np.maximum(want, after.low)
    got = f.run(winograd_f32, spec, [*arrays, *winograd_f32.pack(spec, w, bias)], spec.out_shape)
    gap = abs(f.nchw(got, spec.out_channels) - want)
    assert np.all(gap <= f.dot_bound(spec.channels + TRANSFORM_ROUNDINGS, size)), float(gap.max())


def test_the_transforms_compute_the_convolution() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 9, 14)), rng.standard_normal((5, 3, 3, 3))
    window = Window(2, 9, 14, (3, 3), pads=(1, 0, 2, 1))
    np.testing.assert_allclose(winograd(x, w, window, False), f.conv(x, w, window), rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 2), st.integers(3, 19), st.integers(3, 19), st.tuples(*[st.integers(0, 2)] * 4),
    st.integers(1, 100), st.integers(1, 90), st.booleans(),
)  # fmt: skip
def test_any_shape_is_within_the_bound(
    batch: int, height: int, width: int, pads: tuple[int, int, int, int], c: int, oc: int, rich: bool
) -> None:
    after = After(bias=True, residual=True, low=0.0) if rich else After()
    check(WinogradF32Spec(Window(batch, height, width, (3, 3), pads=pads), c, oc, after))


@pytest.mark.parametrize("channels", [64, 65])
def test_both_places_of_the_transformed_data_work(channels: int) -> None:
    spec = WinogradF32Spec(Window(2, 24, 24, (3, 3), pads=(1, 1, 1, 1)), channels, 33)
    assert spec.on_stack == (channels == 64)
    assert spec.tasks() > 1
    check(spec)


def test_an_image_of_one_block_of_patches_is_two_tasks() -> None:
    spec = WinogradF32Spec(Window(1, 14, 13, (3, 3), pads=(1, 1, 1, 1)), 80, 256, After(bias=True, low=0.0))
    assert spec.split
    assert spec.tasks() == 2
    check(spec)


def test_a_dropped_channel_is_outside_the_bound() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 64, 8, 8)).astype(np.float32)
    w = rng.standard_normal((8, 64, 3, 3)).astype(np.float32)
    window = Window(1, 8, 8, (3, 3))
    gap = abs(f.conv(x, w, window) - f.conv(x[:, :63], w[:, :63], window))
    assert np.mean(gap > f.dot_bound(64 + TRANSFORM_ROUNDINGS, winograd(x, w, window, True))) > 0.9


@pytest.mark.parametrize("window", [Window(1, 9, 9, (3, 3), (2, 2)), Window(1, 9, 9, (5, 5))])
def test_other_strides_and_kernels_are_refused(window: Window) -> None:
    verdict = winograd_f32.supports(WinogradF32Spec(window, 16, 16), host_isa())
    assert not verdict.ok
    assert "3 x 3 with stride" in verdict.reason
