"""Depthwise convolution and pooling in float32 against float64, within derived bounds; maxima exactly."""

from __future__ import annotations

import f32_arrays as f
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pared.backends.cpu.native.isa import host_isa
from pared.backends.cpu.native.kernels import depthwise_f32, pool_f32
from pared.backends.cpu.native.kernels.after_f32 import After
from pared.backends.cpu.native.kernels.depthwise_f32 import DepthwiseF32Spec
from pared.backends.cpu.native.kernels.pool_f32 import PoolF32Spec
from pared.backends.cpu.native.kernels.window import Window

pytest.importorskip("tvm", reason="apache-tvm compiles the kernels (extra 'tvm')")


@st.composite
def windows(draw: st.DrawFn, ceil: bool = False) -> Window:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    height, width = ((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    pads = tuple(draw(st.integers(0, (height, width)[i % 2] - 1)) for i in range(4))
    return Window(
        draw(st.integers(1, 2)), draw(st.integers(height, height + 6)), draw(st.integers(width, width + 18)),
        kernel, draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), (pads[0], pads[1], pads[2], pads[3]),
        dilations, ceil and draw(st.booleans()),
    )  # fmt: skip


def samples(window: Window, channels: int) -> np.ndarray:
    rng = np.random.default_rng(channels)
    return rng.standard_normal((window.batch, channels, window.height, window.width)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(windows(), st.integers(1, 40), st.booleans())
def test_a_depthwise_convolution_is_within_the_bound(window: Window, channels: int, rich: bool) -> None:
    rng = np.random.default_rng(0)
    after = After(bias=True, residual=True, low=-0.5, high=6.0) if rich else After()
    x, w = samples(window, channels), rng.standard_normal((channels, 1, *window.kernel)).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32) if rich else None
    want, size = f.conv(x, w, window, channels), f.conv(abs(x), abs(w), window, channels)
    arrays = [f.nhwc(x)]
    if bias is not None:
        other = rng.standard_normal(want.shape).astype(np.float32)
        arrays.append(f.nhwc(other))
        want = np.clip(want + bias[:, None, None] + other, -0.5, 6.0)
        size = size + abs(bias)[:, None, None] + abs(other)
    spec = DepthwiseF32Spec(window, channels, after)
    got = f.run(depthwise_f32, spec, [*arrays, *depthwise_f32.pack(spec, w, bias)], spec.out_shape)
    gap = abs(f.nchw(got, channels) - want)
    assert np.all(gap <= f.dot_bound(window.kernel[0] * window.kernel[1], size)), float(gap.max())


@settings(max_examples=20, deadline=None)
@given(windows(ceil=True), st.integers(1, 40))
def test_a_maximum_is_exact(window: Window, channels: int) -> None:
    spec = PoolF32Spec(window, channels, "max")
    assume(pool_f32.supports(spec, host_isa()).ok)
    x = samples(window, channels) - 5
    want = f.patches(x, window, -np.inf).max((-1, -2))
    got = f.nchw(f.run(pool_f32, spec, [f.nhwc(x)], spec.out_shape), channels)
    np.testing.assert_array_equal(got, want.astype(np.float32))


@settings(max_examples=20, deadline=None)
@given(windows(ceil=True), st.integers(1, 40), st.booleans())
def test_an_average_is_within_the_bound(window: Window, channels: int, count_padding: bool) -> None:
    spec = PoolF32Spec(window, channels, "average", count_padding)
    assume(pool_f32.supports(spec, host_isa()).ok)
    x = samples(window, channels)
    inside = np.ones_like(x)
    if count_padding:
        top, left, bottom, right = window.pads
        inside = np.pad(inside, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=1)
        bare = Window(
            window.batch, inside.shape[2], inside.shape[3], window.kernel, window.strides, (0, 0, 0, 0),
            window.dilations, window.ceil,
        )  # fmt: skip
        counts = f.patches(inside, bare)[:, :, : window.out_height, : window.out_width].sum((-1, -2))
    else:
        counts = f.patches(inside, window).sum((-1, -2))
    want, size = f.patches(x, window).sum((-1, -2)) / counts, f.patches(abs(x), window).sum((-1, -2)) / counts
    got = f.nchw(f.run(pool_f32, spec, [f.nhwc(x)], spec.out_shape), channels)
    assert np.all(abs(got - want) <= f.dot_bound(window.kernel[0] * window.kernel[1], size))


@pytest.mark.parametrize("channels", [3, 64, 80, 130])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (5, 3)])
def test_a_global_average_is_within_the_bound(channels: int, size: tuple[int, int]) -> None:
    window = Window(3, *size, kernel=size)
    x = samples(window, channels)
    spec = PoolF32Spec(window, channels, "global")
    got = f.run(pool_f32, spec, [f.nhwc(x)], spec.out_shape)[:, :channels]
    want, mean = x.astype(np.float64).mean((2, 3)), abs(x).astype(np.float64).mean((2, 3))
    assert np.all(abs(got - want) <= f.dot_bound(size[0] * size[1], mean))


def test_a_maximum_of_minus_infinity_stays() -> None:
    window = Window(1, 4, 4, (2, 2), (2, 2))
    spec = PoolF32Spec(window, 16, "max")
    x = np.full((1, 16, 4, 4), -np.inf, np.float32)
    assert np.all(np.isneginf(f.run(pool_f32, spec, [f.nhwc(x)], spec.out_shape)))


def test_windows_without_data_are_refused() -> None:
    verdict = pool_f32.supports(PoolF32Spec(Window(1, 4, 4, (2, 2), pads=(2, 0, 0, 0)), 4, "max"), host_isa())
    assert not verdict.ok
    assert "without data" in verdict.reason
