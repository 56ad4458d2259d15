"""Quantized depthwise kernels give the bytes of integer arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from int8_kernels import border_of, convolve, host, inside, memory, plain, requantize, run

from pared.backends.cpu.native.isa import Isa
from pared.backends.cpu.native.kernels import depthwise_int8
from pared.backends.cpu.native.kernels.depthwise_int8 import DepthwiseInt8Spec
from pared.backends.cpu.native.kernels.int8_tiles import image

FEW = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def depthwise(draw: st.DrawFn) -> DepthwiseInt8Spec:
    """Draw shapes, strides, dilations, pads, odd channels, borders and batches."""
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    strides = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 3)]))
    dilations = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2)]))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    channels = draw(st.one_of(st.integers(1, 33), st.sampled_from([48, 64, 70, 96, 130, 144])))
    out = draw(st.integers(1, 9)), draw(st.integers(1, 11))
    size = [
        max(1, (o - 1) * s + (k - 1) * d + 1 - a - b)
        for o, s, k, d, a, b in zip(out, strides, kernel, dilations, pads[:2], pads[2:], strict=True)
    ]
    batch = draw(st.integers(1, 2))
    x = image(batch, *size, channels, (pads[0], pads[1], pads[2] + 1, pads[3] + 1))
    y = image(batch, *out, channels, draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)])))
    zero, low, high = (
        draw(st.integers(0, 255)),
        draw(st.sampled_from([0, 13])),
        draw(st.sampled_from([255, 200])),
    )
    return DepthwiseInt8Spec(x, y, kernel, strides, dilations, pads[:2], zero, low, high, draw(st.booleans()))


def check(spec: DepthwiseInt8Spec, isa: Isa, seed: int) -> None:
    """Compare every byte, the border included, with the oracle; run in two ranges of tasks."""
    verdict = depthwise_int8.supports(spec, isa)
    assert verdict.ok, verdict.reason
    rng = np.random.default_rng(seed)
    x_zero, c = int(rng.integers(0, 256)), spec.x.channels
    pixels = rng.integers(0, 256, (spec.x.batch, spec.x.height, spec.x.width, c)).astype(np.uint8)
    weight = rng.integers(-128, 128, (c, 1, *spec.kernel)).astype(np.int8)
    bias = rng.integers(-9000, 9000, c).astype(np.int32)
    factor = (rng.uniform(0.2, 1.5, c) / (90 * np.sqrt(weight[0].size))).astype(np.float32)
    arrays = [memory(spec.x, pixels, x_zero, rng), *depthwise_int8.pack(spec, weight, bias, factor, x_zero)]
    module = depthwise_int8.build(spec, isa)
    flat = run(module, isa, [*arrays, np.zeros(spec.y.bytes, np.uint8)], spec.tasks(), 2)[-1]
    want = requantize(convolve(pixels, weight, spec, x_zero) + bias, factor, spec.zero, spec.low, spec.high)
    np.testing.assert_array_equal(inside(spec.y, flat)[..., :c], want)
    np.testing.assert_array_equal(border_of(spec.y, flat), spec.zero)


@FEW
@given(depthwise(), st.integers(0, 2**31))
def test_any_shape_is_bit_exact(spec: DepthwiseInt8Spec, seed: int) -> None:
    check(spec, host(), seed)


@settings(FEW, max_examples=5)
@given(depthwise(), st.integers(0, 2**31))
def test_any_shape_is_bit_exact_without_vnni(spec: DepthwiseInt8Spec, seed: int) -> None:
    check(spec, plain(), seed)


@pytest.mark.parametrize("channels", [8, 32, 64, 144])
@pytest.mark.parametrize("stride", [1, 2])
def test_layers_of_mobile_networks_are_bit_exact(channels: int, stride: int) -> None:
    out = 12 // stride
    x, y = image(1, 12, 12, channels, (1, 1, 1, 1)), image(1, out, out, channels)
    check(DepthwiseInt8Spec(x, y, (3, 3), (stride, stride), pads=(1, 1), zero=4), host(), channels)


def test_a_channel_multiplier_is_refused() -> None:
    spec = DepthwiseInt8Spec(image(1, 5, 5, 8), image(1, 5, 5, 16), (1, 1))
    assert "one output per channel" in depthwise_int8.supports(spec, host()).reason
