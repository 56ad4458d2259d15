"""Direct float32 convolution and matrix product against float64, within the bound of a dot product."""

from __future__ import annotations

import dataclasses

import f32_arrays as f
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pared.backends.cpu.native.isa import host_isa, isa_of
from pared.backends.cpu.native.kernels import conv_f32, gemm_f32
from pared.backends.cpu.native.kernels.after_f32 import After
from pared.backends.cpu.native.kernels.conv_f32 import ConvF32Spec
from pared.backends.cpu.native.kernels.gemm_f32 import GemmF32Spec, Pixels
from pared.backends.cpu.native.kernels.window import Window
from pared.targets import load_target

pytest.importorskip("tvm", reason="apache-tvm compiles the kernels (extra 'tvm')")


def check_conv(spec: ConvF32Spec, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    window, after = spec.window, spec.after
    x = rng.standard_normal((window.batch, spec.channels, window.height, window.width)).astype(np.float32)
    inner = spec.channels // spec.groups
    w = rng.standard_normal((spec.out_channels, inner, *window.kernel)).astype(np.float32)
    bias = rng.standard_normal(spec.out_channels).astype(np.float32) if after.bias else None
    want, size = f.conv(x, w, window, spec.groups), f.conv(abs(x), abs(w), window, spec.groups)
    arrays = [x if spec.nchw else f.nhwc(x)]
    if bias is not None:
        want, size = want + bias[:, None, None], size + abs(bias)[:, None, None]
    if after.residual:
        other = rng.standard_normal(want.shape).astype(np.float32)
        arrays.append(f.nhwc(other))
        want, size = want + other, size + abs(other)
    want = np.clip(want, after.low, after.high) if (after.low, after.high) != (None, None) else want
    got = f.nchw(
        f.run(conv_f32, spec, [*arrays, *conv_f32.pack(spec, w, bias)], spec.out_shape), spec.out_channels
    )
    terms = inner * window.kernel[0] * window.kernel[1]
    assert np.all(abs(got - want) <= f.dot_bound(terms, size)), float(abs(got - want).max())


@st.composite
def windows(draw: st.DrawFn) -> Window:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    height, width = ((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    return Window(
        draw(st.integers(1, 2)), draw(st.integers(height, height + 6)), draw(st.integers(width, width + 18)),
        kernel, draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), pads, dilations,
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    windows(),
    st.integers(1, 20),
    st.integers(1, 70),
    st.sampled_from([1, 1, 2, 3]),
    st.booleans(),
    st.booleans(),
)
def test_a_convolution_of_any_shape_is_within_the_bound(
    window: Window, inner: int, outer: int, groups: int, nchw: bool, rich: bool
) -> None:
    after = After(bias=True, residual=True, low=-1.0, high=6.0) if rich else After()
    check_conv(ConvF32Spec(window, inner * groups, outer * groups, groups, after, nchw))


@pytest.mark.parametrize("channels", [16, 40, 48, 80, 112])
def test_every_number_of_vectors_has_its_blocks(channels: int) -> None:
    check_conv(ConvF32Spec(Window(1, 6, 30, (3, 3), pads=(1, 1, 1, 1)), 17, channels, after=After(bias=True)))


def test_the_first_layer_of_a_resnet_reads_its_input_as_it_comes() -> None:
    window = Window(1, 40, 44, (7, 7), (2, 2), (3, 3, 3, 3))
    check_conv(ConvF32Spec(window, 3, 64, after=After(bias=True, low=0.0), nchw=True))


def test_groups_narrower_than_a_vector_share_a_block() -> None:
    spec = ConvF32Spec(Window(1, 5, 9, (3, 3), pads=(1, 1, 1, 1)), 60, 60, groups=15)
    assert spec.waste > 4
    check_conv(spec)


@pytest.mark.parametrize("outer", [16, 28, 34, 68, 80])
def test_wide_groups_have_blocks_of_their_own(outer: int) -> None:
    spec = ConvF32Spec(Window(1, 5, 9, (1, 1)), 33, 3 * outer, groups=3, after=After(bias=True, low=0.0))
    assert spec.by_group
    assert spec.waste < 1.5 or outer == 34
    check_conv(spec)


def test_lanes_behind_the_last_group_are_cleared() -> None:
    spec = ConvF32Spec(Window(1, 3, 4, (1, 1)), 8, 40, groups=2)
    x, w = np.ones((1, 8, 3, 4), np.float32), np.ones((40, 4, 1, 1), np.float32)
    out = f.run(conv_f32, spec, [f.nhwc(x), *conv_f32.pack(spec, w)], spec.out_shape)
    assert not out[..., 40:].any()
    assert np.all(out[..., :40] == 4)


def test_a_dropped_channel_is_outside_the_bound() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 64, 6, 6)).astype(np.float32)
    w = rng.standard_normal((8, 64, 3, 3)).astype(np.float32)
    window = Window(1, 6, 6, (3, 3))
    gap = abs(f.conv(x, w, window) - f.conv(x[:, :63], w[:, :63], window))
    assert np.mean(gap > f.dot_bound(64 * 9, f.conv(abs(x), abs(w), window))) > 0.9


def test_a_window_with_too_much_code_at_its_edges_is_refused() -> None:
    spec = ConvF32Spec(Window(1, 8, 200, (1, 25), pads=(0, 60, 0, 60), dilations=(1, 5)), 8, 8)
    verdict = conv_f32.supports(spec, host_isa())
    assert not verdict.ok
    assert "pad the input first" in verdict.reason


def check_gemm(spec: GemmF32Spec) -> None:
    rng = np.random.default_rng(spec.rows + spec.depth)
    x = rng.standard_normal((spec.rows, spec.depth)).astype(np.float32)
    w = rng.standard_normal((spec.depth, spec.columns)).astype(np.float32)
    bias = rng.standard_normal(spec.columns).astype(np.float32) if spec.after.bias else None
    want, size = x.astype(np.float64) @ w.astype(np.float64), abs(x).astype(np.float64) @ abs(w)
    if bias is not None:
        want, size = want + bias, size + abs(bias)
    given = [f.matrix(x), f.matrix(w)] if spec.weight_is_input else [f.matrix(x)]
    if spec.after.residual:
        other = rng.standard_normal(want.shape).astype(np.float32)
        given.append(f.matrix(other))
        want, size = want + other, size + abs(other)
    constants = gemm_f32.pack(spec, None if spec.weight_is_input else w, bias)
    got = f.run(gemm_f32, spec, [*given, *constants], spec.out_shape)[:, : spec.columns]
    assert np.all(abs(got - want) <= f.dot_bound(spec.depth, size)), float(abs(got - want).max())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 240), st.integers(1, 90), st.integers(1, 200), st.booleans(), st.booleans())
def test_a_product_of_any_size_is_within_the_bound(m: int, k: int, n: int, given: bool, rich: bool) -> None:
    check_gemm(GemmF32Spec(m, k, n, After(bias=rich, residual=rich), weight_is_input=given))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("columns", [10, 100, 130, 512])
def test_few_rows_split_the_sum(rows: int, columns: int) -> None:
    check_gemm(GemmF32Spec(rows, 131, columns, After(bias=True)))


@pytest.mark.parametrize("columns", [64, 256])
def test_rows_of_a_page_are_copied(columns: int) -> None:
    spec = GemmF32Spec(30, 1024, columns)
    assert spec.copies
    check_gemm(spec)


@pytest.mark.parametrize("strides", [(2, 2), (1, 3), (2, 1)])
def test_a_pointwise_convolution_with_strides_is_a_product_of_some_pixels(strides: tuple[int, int]) -> None:
    pixels = Pixels(7, 10, strides)
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 20, 7, 10), np.float32), rng.standard_normal((20, 40), np.float32)
    spec = GemmF32Spec(2 * pixels.taken, 20, 40, pixels=pixels)
    arrays = [f.nhwc(x).reshape(-1, 32), *gemm_f32.pack(spec, w)]
    got = f.run(gemm_f32, spec, arrays, spec.out_shape)[:, :40]
    rows = x[:, :, :: strides[0], :: strides[1]].transpose(0, 2, 3, 1).reshape(-1, 20).astype(np.float64)
    assert np.all(abs(got - rows @ w) <= f.dot_bound(20, abs(rows) @ abs(w)))


def test_more_rows_than_one_task_end_in_a_shorter_one() -> None:
    spec = GemmF32Spec(227, 20, 40)
    assert spec.tasks() > 1
    assert spec.rows % spec.chunk
    check_gemm(spec)


def test_an_empty_product_is_refused() -> None:
    assert not gemm_f32.supports(dataclasses.replace(GemmF32Spec(1, 1, 1), depth=0), host_isa()).ok


def test_code_for_narrower_vectors_computes_the_same() -> None:
    spec = ConvF32Spec(Window(1, 9, 15, (3, 3), pads=(1, 1, 1, 1)), 21, 48, after=After(bias=True, low=0.0))
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 21, 9, 15)).astype(np.float32)
    w, bias = (
        rng.standard_normal((48, 21, 3, 3)).astype(np.float32),
        rng.standard_normal(48).astype(np.float32),
    )
    isa = isa_of(load_target("cpu-x86-avx2"))
    if not set(isa.features) <= set(host_isa().features):
        pytest.skip("no AVX2 on this CPU")
    arrays = [f.nhwc(x), *conv_f32.pack(spec, w, bias)]
    want = np.maximum(f.conv(x, w, spec.window) + bias[:, None, None], 0)
    size = f.conv(abs(x), abs(w), spec.window) + abs(bias)[:, None, None]
    got = f.nchw(f.run(conv_f32, spec, arrays, spec.out_shape, isa=isa), 48)
    assert np.all(abs(got - want) <= f.dot_bound(21 * 9, size))
