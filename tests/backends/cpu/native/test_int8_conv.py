"""Quantized convolution kernels give the bytes of integer arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from int8_kernels import border_of, convolve, host, inside, memory, plain, requantize, run

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.kernels import conv_int8
from pared.backends.cpu.native.kernels.conv_int8 import ConvInt8Spec
from pared.backends.cpu.native.kernels.int8_tiles import image

FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def convolutions(draw: st.DrawFn) -> ConvInt8Spec:
    """Draw shapes, strides, dilations, pads, groups, odd channels, borders and batches."""
    small = st.integers(1, 3)
    kernel, strides = (draw(small), draw(small)), (draw(small), draw(small))
    dilations = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2)]))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    group = draw(st.sampled_from([1, 1, 2, 3, 5, 16]))
    channels, outputs = (group * draw(st.integers(1, 24 if group < 4 else 9)) for _ in range(2))
    out = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size = [
        max(1, (o - 1) * s + (k - 1) * d + 1 - a - b)
        for o, s, k, d, a, b in zip(out, strides, kernel, dilations, pads[:2], pads[2:], strict=True)
    ]
    batch = draw(st.integers(1, 2))
    pitch = draw(st.sampled_from([None, channels, -(-channels // 4) * 4]))
    # The border may be wider than the padding: another consumer may need more.
    wide = draw(st.integers(0, 1))
    border = tuple(p + wide for p in pads)
    x = image(batch, *size, channels, (border[0], border[1], border[2] + 1, border[3] + 1), pitch)
    y = image(batch, *out, outputs, draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)])))
    low = draw(st.sampled_from([0, 0, 13]))
    zero, high = draw(st.integers(0, 255)), draw(st.sampled_from([255, 255, 200]))
    return ConvInt8Spec(
        x, y, kernel, strides, dilations, pads[:2], zero, low, high, group, small=draw(st.booleans())
    )


def check(spec: ConvInt8Spec, isa: Isa, seed: int, size: float = 1.0) -> None:
    """Compare every byte, the border included, with the oracle; run in two ranges of tasks."""
    verdict = conv_int8.supports(spec, isa)
    assert verdict.ok, verdict.reason
    rng = np.random.default_rng(seed)
    x_zero = int(rng.integers(0, 256))
    pixels = rng.integers(0, 256, (spec.x.batch, spec.x.height, spec.x.width, spec.x.channels)).astype(
        np.uint8
    )
    shape = (spec.y.channels, spec.x.channels // spec.group, *spec.kernel)
    weight = rng.integers(-128, 128, shape).astype(np.int8)
    bias = rng.integers(-9000, 9000, spec.y.channels).astype(np.int32)
    factor = (rng.uniform(0.2, 1.5, spec.y.channels) * size / (90 * np.sqrt(weight[0].size))).astype(
        np.float32
    )
    arrays = [memory(spec.x, pixels, x_zero, rng), *conv_int8.pack(spec, weight, bias, factor, x_zero)]
    flat = run(conv_int8.build(spec, isa), isa, [*arrays, np.zeros(spec.y.bytes, np.uint8)], spec.tasks(), 2)[
        -1
    ]
    want = requantize(convolve(pixels, weight, spec, x_zero) + bias, factor, spec.zero, spec.low, spec.high)
    np.testing.assert_array_equal(inside(spec.y, flat)[..., : spec.y.channels], want)
    np.testing.assert_array_equal(border_of(spec.y, flat), spec.zero)


@pytest.mark.parametrize(
    ("group", "each", "outputs", "band"), [(32, 4, 4, 16), (4, 34, 34, 68), (3, 80, 80, 80), (64, 1, 2, 8)]
)
def test_groups_read_their_own_channels_only(group: int, each: int, outputs: int, band: int) -> None:
    x, y = image(1, 6, 6, group * each, (1, 1, 1, 1)), image(1, 6, 6, group * outputs)
    spec = ConvInt8Spec(x, y, (3, 3), pads=(1, 1), group=group, zero=3)
    assert spec.band[1] == band
    check(spec, host(), group)


@FEW
@given(convolutions(), st.integers(0, 2**31))
def test_any_shape_is_bit_exact(spec: ConvInt8Spec, seed: int) -> None:
    check(spec, host(), seed)


@settings(FEW, max_examples=8)
@given(convolutions(), st.integers(0, 2**31))
def test_any_shape_is_bit_exact_without_vnni(spec: ConvInt8Spec, seed: int) -> None:
    check(spec, plain(), seed)


@pytest.mark.parametrize("size", [1e-3, 1e7])
def test_results_far_outside_the_bytes_saturate(size: float) -> None:
    check(ConvInt8Spec(image(1, 5, 5, 20), image(1, 5, 5, 70), (1, 1)), host(), 1, size)


@pytest.mark.parametrize("outputs", [16, 32, 48, 64, 80, 112, 144])
def test_every_number_of_channel_vectors_is_stored_in_order(outputs: int) -> None:
    check(ConvInt8Spec(image(1, 3, 3, 8), image(1, 3, 3, outputs), (1, 1), zero=7), host(), outputs)


def test_channels_may_be_the_outer_loop() -> None:
    spec = ConvInt8Spec(
        image(1, 4, 4, 256, (1, 1, 1, 1)), image(1, 4, 4, 256, (1, 0, 0, 2)), (3, 3), pads=(1, 1), zero=9
    )
    assert spec.channels_outer
    check(spec, host(), 3)


def test_padding_without_a_border_is_refused_with_both_sizes() -> None:
    spec = ConvInt8Spec(image(1, 5, 5, 4), image(1, 5, 5, 4), (3, 3), pads=(1, 1))
    assert "padding (1, 1) needs a border" in conv_int8.supports(spec, host()).reason
